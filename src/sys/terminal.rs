//! What the kernel knows of a terminal (ioctl_tty(2)).

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// Columns and lines of the terminal's window.
///
/// # Errors
/// ENOTTY when this is not a terminal, EIO when the terminal is gone.
pub fn window_size(terminal: impl AsFd) -> nix::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize to the address, which is that of a local variable (ioctl_tty(2)); the
    // descriptor is open, because it is borrowed.
    Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok((size.ws_col, size.ws_row))
}
