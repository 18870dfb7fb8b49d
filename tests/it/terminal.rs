//! A real terminal: tmux holds the other end of it, types the keys and reads the screen.

use std::process::Command;

use acceptlab::lab::observe::processes::{family, poll_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{FOREVER, Needs, inconclusive};

/// A terminal of 80 × 24 with a shell in it; gone when dropped.
pub struct Terminal {
    socket: String,
}

impl Terminal {
    /// `None`, and the test is inconclusive, where there is no tmux.
    #[track_caller]
    pub fn open(name: &str) -> Option<Terminal> {
        let terminal = Terminal { socket: format!("acceptlab-{name}-{}", std::process::id()) };
        let shell = ["env", "PS1=prompt> ", "ENV=", "sh"];
        let size = ["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24"];
        let opened = Command::new("tmux").args(["-L", &terminal.socket]).args(size).args(shell).status();
        if !opened.is_ok_and(|status| status.success()) {
            inconclusive(Needs::Tool("tmux"), "not installed");
            return None;
        }
        // What is typed before the shell asks for it is echoed where it does not belong.
        terminal.shows(|screen| screen.starts_with("prompt>"));
        Some(terminal)
    }

    pub fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux").args(["-L", &self.socket]).args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    pub fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The screen, once it is as it should be.
    #[track_caller]
    pub fn shows(&self, what: impl Fn(&str) -> bool) -> String {
        let seen = poll_until(FOREVER, || Some(self.screen()).filter(|screen| what(screen)));
        seen.unwrap_or_else(|| panic!("the screen never came to show it:\n{}", self.screen()))
    }

    /// The terminal is the shell's again: on its first screen, with a cursor, echoing what is typed.
    #[track_caller]
    pub fn is_given_back(&self) {
        self.keys(&["stty -a | grep -o ' echo '; echo $((40 + 2)) is back", "Enter"]);
        let screen = self.shows(|screen| screen.lines().any(|line| line == "42 is back"));
        assert!(screen.lines().any(|line| line == " echo"), "{screen}");
        assert!(screen.contains("prompt> stty"), "what is typed is not echoed:\n{screen}");
        let state = self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]);
        assert_eq!(state.trim(), "0 1", "second screen, cursor");
    }

    /// Signals what the shell has started.
    pub fn signal(&self, signal: Signal) {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]).trim().parse().unwrap();
        let program = family(shell)[1];
        kill(Pid::from_raw(program.pid), signal).unwrap();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}
