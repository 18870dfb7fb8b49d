//! systemd: the unit that starts the daemon with the machine, and what the daemon says to and takes from its starter.
//!
//! The unit's `KillMode=process` leaves the applications alone when the daemon is killed; `Restart=on-failure` starts the
//! next daemon, which adopts them. `Type=notify`: the unit counts as started when clients can come.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use clap::Args;
use nix::errno::Errno;
use nix::unistd::{User, geteuid};

use crate::failure::Failure;
use crate::sys::fd::take_inherited;

/// What systemd says to the daemon alone: its applications do not get these variables.
pub const VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// The first descriptor that a starter passes (sd_listen_fds(3)).
const FIRST_PASSED: RawFd = 3;

const UNITS: &str = "/etc/systemd/system";

#[derive(Args, Debug)]
pub struct StartupArgs {
    /// Write the unit, which needs root; otherwise it is only printed
    #[arg(long)]
    install: bool,

    /// Whose applications they are [default: you, also under sudo]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

/// What the unit depends on.
struct SystemdUnit<'a> {
    program: &'a Path,
    home: &'a Path,
    user: &'a str,
    /// Where the daemon and its applications find programs such as `node`.
    path: &'a str,
}

/// Prints the unit or installs it: what a person reads.
///
/// # Errors
/// There is no such user; the unit cannot be written.
pub fn startup(args: &StartupArgs, home: Option<&OsStr>) -> Result<String, Failure> {
    let user = find_user(args.user.as_deref())?;
    let program = env::current_exe().map_err(|error| Failure::new("find the program pm", error))?;
    let home = home.map_or_else(|| user.dir.join(".pm"), PathBuf::from);
    let path = env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned());
    let text = SystemdUnit { program: &program, home: &home, user: &user.name, path: &path }.text();
    if !args.install {
        return Ok(text);
    }
    let (name, file) = install(Path::new(UNITS), &user.name, &text)?;
    Ok(format!("wrote {}; now: systemctl daemon-reload && systemctl enable --now {name}", file.display()))
}

fn find_user(named: Option<&str>) -> Result<User, Failure> {
    let by_sudo = env::var("SUDO_USER").ok().filter(|_| geteuid().is_root());
    let found = match named.map(str::to_owned).or(by_sudo) {
        Some(name) => User::from_name(&name).map(|user| user.ok_or(name)),
        None => User::from_uid(geteuid()).map(|user| user.ok_or(geteuid().to_string())),
    };
    let found = found.map_err(|errno| Failure::new("look up the user", errno))?;
    found.map_err(|name| Failure::relay(format!("there is no user {name}")))
}

/// Writes the unit into this folder: its name, and its file.
fn install(folder: &Path, user: &str, text: &str) -> Result<(String, PathBuf), Failure> {
    let name = format!("pm-{user}.service");
    let file = folder.join(&name);
    fs::write(&file, text).map_err(|error| {
        let failure = Failure::new(format!("write {}", file.display()), error);
        failure.advise("only root may install a unit; without --install it is printed")
    })?;
    Ok((name, file))
}

impl SystemdUnit<'_> {
    fn text(&self) -> String {
        let pm = quoted(&self.program.to_string_lossy(), true);
        let setting = |name: &str, value: &str| quoted(&format!("{name}={value}"), false);
        format!(
            "\
[Unit]
Description=pm: the applications of {user}
After=network.target

[Service]
Type=notify
User={user}
Environment={home}
Environment={path}
ExecStart={pm} daemon
ExecStartPost=-{pm} resurrect
ExecReload={pm} reload all
ExecStop={pm} kill
KillMode=process
Restart=on-failure
LimitNOFILE=infinity

[Install]
WantedBy=multi-user.target
",
            user = escaped(self.user),
            home = setting("PM_HOME", &self.home.to_string_lossy()),
            path = setting("PATH", self.path),
        )
    }
}

/// `%` begins a specifier in a unit (systemd.unit(5)).
fn escaped(text: &str) -> String {
    text.replace('%', "%%")
}

/// One word of a unit, whatever is in it; in a command, `$` begins a variable (systemd.service(5)).
fn quoted(text: &str, is_command: bool) -> String {
    let text = escaped(text).replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{}\"", if is_command { text.replace('$', "$$") } else { text })
}

/// Tells the starter, where one listens, a state such as `READY=1` (sd_notify(3)): whether one was told.
///
/// # Errors
/// Whom `$NOTIFY_SOCKET` names does not listen.
pub fn notify(state: &str) -> io::Result<bool> {
    env::var_os("NOTIFY_SOCKET").map_or(Ok(false), |address| notify_at(&address, state).map(|()| true))
}

fn notify_at(address: &OsStr, state: &str) -> io::Result<()> {
    let address = match address.as_bytes() {
        // unix(7): a name that is no file.
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// The sockets that the starter has opened for this process, in its order; none, if it has not (sd_listen_fds(3)).
///
/// # Errors
/// A variable is no number, or a descriptor is not open.
pub fn passed_sockets() -> nix::Result<Vec<OwnedFd>> {
    let variable = |name| env::var(name).ok();
    let count = passed_count(variable("LISTEN_PID"), variable("LISTEN_FDS"), std::process::id())?;
    (FIRST_PASSED..).take(count).map(take_inherited).collect()
}

fn passed_count(pid: Option<String>, count: Option<String>, own_pid: u32) -> nix::Result<usize> {
    match (pid, count) {
        // They were for a process that has started us.
        (Some(pid), Some(_)) if pid.parse::<u32>().map_err(|_| Errno::EINVAL)? != own_pid => Ok(0),
        (Some(_), Some(count)) => count.parse::<u16>().map(usize::from).map_err(|_| Errno::EINVAL),
        _ => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_unit_waits_for_the_daemon_and_leaves_the_applications_alone() {
        let (program, home) = (Path::new("/opt/p m/pm"), Path::new("/home/a%b/.pm"));
        let text = SystemdUnit { program, home, user: "ann", path: "/usr/bin:/opt/$x" }.text();
        for line in [
            "Type=notify",
            "User=ann",
            "ExecStart=\"/opt/p m/pm\" daemon",
            "ExecReload=\"/opt/p m/pm\" reload all",
            "Environment=\"PM_HOME=/home/a%%b/.pm\"",
            "Environment=\"PATH=/usr/bin:/opt/$x\"",
            "KillMode=process",
            "Restart=on-failure",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_word_of_a_command_stays_one_word() {
        assert_eq!(quoted("a $b \"c\" \\ 100%", true), r#""a $$b \"c\" \\ 100%%""#);
    }

    #[test]
    fn the_unit_is_written_into_the_folder_or_the_line_says_who_may() {
        let folder = env::temp_dir().join(format!("acceptlab-startup-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (name, file) = install(&folder, "ann", "[Unit]\n").unwrap();
        assert_eq!((name.as_str(), fs::read_to_string(&file).unwrap().as_str()), ("pm-ann.service", "[Unit]\n"));
        fs::remove_dir_all(&folder).unwrap();
        let line = install(&folder, "ann", "[Unit]\n").unwrap_err().to_string();
        assert!(line.contains("pm-ann.service: ") && line.contains("only root may"), "{line}");
    }

    #[test]
    fn a_user_that_is_not_there_is_named() {
        assert_eq!(
            find_user(Some("nobody-has-this-name")).unwrap_err().to_string(),
            "there is no user nobody-has-this-name"
        );
        assert!(find_user(Some("root")).unwrap().uid.is_root());
    }

    #[test]
    fn the_starter_is_told_under_a_path_and_under_an_abstract_name() {
        let path = env::temp_dir().join(format!("acceptlab-notify-{}", std::process::id()));
        let name = format!("acceptlab-notify-{}", std::process::id());
        let _ = fs::remove_file(&path);
        let abstract_address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        for (starter, address) in [
            (UnixDatagram::bind(&path).unwrap(), path.display().to_string()),
            (UnixDatagram::bind_addr(&abstract_address).unwrap(), format!("@{name}")),
        ] {
            starter.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            notify_at(OsStr::new(&address), "READY=1\n").unwrap();
            let mut received = [0; 64];
            let n = starter.recv(&mut received).unwrap();
            assert_eq!(&received[..n], b"READY=1\n");
        }
        fs::remove_file(&path).unwrap();
        assert!(notify_at(path.as_os_str(), "READY=1").is_err(), "nobody listens");
    }

    #[test]
    fn sockets_are_ours_only_if_they_were_passed_to_this_process() {
        let count =
            |pid: Option<&str>, count: Option<&str>| passed_count(pid.map(Into::into), count.map(Into::into), 7);
        assert_eq!(count(None, None), Ok(0));
        assert_eq!(count(Some("7"), Some("2")), Ok(2));
        assert_eq!(count(Some("8"), Some("2")), Ok(0), "they were for our parent");
        assert_eq!(count(None, Some("2")), Ok(0));
        assert_eq!(count(Some("7"), Some("many")), Err(Errno::EINVAL));
        assert_eq!(count(Some("7"), Some("-1")), Err(Errno::EINVAL));
    }
}
