//! systemd: the unit that starts the daemon with the machine (pm.service), and what systemd and the daemon say to each
//! other.
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
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use nix::errno::Errno;
use nix::unistd::{User, geteuid};

use super::home;
use crate::failure::Failure;
use crate::sys::fd::take_inherited;

/// What systemd says to the daemon only: its applications do not get these variables.
pub const VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// The first descriptor that a starter passes (sd_listen_fds(3)).
const FIRST_PASSED: RawFd = 3;

#[derive(Args, Debug)]
pub struct StartupArgs {
    /// The only one that pm knows
    #[arg(value_name = "INIT", value_parser = ["systemd"], default_value = "systemd")]
    _init: String,

    /// Whose applications they are [default: you, also under sudo]
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
}

/// Where the unit of a user is, and the link that starts it with the machine, as `systemctl enable` makes it.
fn unit_and_link(user: &User) -> (PathBuf, PathBuf) {
    let folder = Path::new("/etc/systemd/system");
    let name = format!("pm-{}.service", user.name);
    (folder.join(&name), folder.join("multi-user.target.wants").join(name))
}

fn failed(what: &str, unit: &Path, error: io::Error) -> Failure {
    let is_forbidden = error.kind() == io::ErrorKind::PermissionDenied;
    let failure = Failure::new(format_args!("{what} {}", unit.display()), error);
    if is_forbidden { failure.advise("only root may change what starts with the machine") } else { failure }
}

/// Installs the unit as root, and otherwise shows it: what a person reads.
pub fn startup(args: &StartupArgs) -> Result<String, Failure> {
    let user = find_user(args.user.as_deref())?;
    let program = env::current_exe().map_err(|error| Failure::new("find the program pm", error))?;
    let home = env::var_os(home::VARIABLE).map_or_else(|| user.dir.join(".pm"), PathBuf::from);
    let path = env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned());
    let text = unit_text(&program, &home, &user.name, &path);
    if !geteuid().is_root() {
        let [path, home] = [format!("PATH={path}"), format!("{}={}", home::VARIABLE, home.display())];
        let words = ["sudo", "env", &path, &home, &program.to_string_lossy(), "startup", "--user", &user.name];
        return Ok(format!(
            "{text}\n# Nothing is installed yet. As root, this installs it:\n# {}\n",
            shell_words::join(words)
        ));
    }
    let (unit, link) = unit_and_link(&user);
    let install = || {
        fs::create_dir_all(link.parent().expect("it is in a folder"))?;
        fs::write(&unit, &text)?;
        match symlink(Path::new("..").join(unit.file_name().expect("it has a name")), &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    };
    install().map_err(|error| failed("write", &unit, error))?;
    Ok(format!(
        "installed {}: the daemon starts with the machine, and resurrects what `pm save` has kept\n{}",
        unit.display(),
        reload_systemd()?
    ))
}

/// Takes back what `startup` has installed.
pub fn unstartup(args: &StartupArgs) -> Result<String, Failure> {
    let (unit, link) = unit_and_link(&find_user(args.user.as_deref())?);
    let removed = fs::remove_file(&unit).and_then(|()| fs::remove_file(&link));
    removed.map_err(|error| failed("remove", &unit, error))?;
    let reloaded = reload_systemd()?;
    Ok(format!("removed {}: the daemon does not start with the machine any more\n{reloaded}", unit.display()))
}

/// Lets systemd read its units anew, if it runs here (sd_booted(3)).
fn reload_systemd() -> Result<&'static str, Failure> {
    if !Path::new("/run/systemd/system").is_dir() {
        return Ok("no systemd was told: it reads its units when it starts\n");
    }
    let status = Command::new("systemctl").arg("daemon-reload").status();
    match status.map_err(|error| Failure::new("run systemctl daemon-reload", error))?.success() {
        true => Ok(""),
        false => Err(Failure::relay("systemctl daemon-reload failed; the files are as they should be".to_owned())),
    }
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

/// The text of the unit. `path`: where the daemon and its applications find programs such as `node`.
fn unit_text(program: &Path, home: &Path, user: &str, path: &str) -> String {
    let setting = |name: &str, value: &str| quoted(&format!("{name}={value}"), false);
    include_str!("pm.service")
        .replace("{pm}", &quoted(&program.to_string_lossy(), true))
        .replace("{home}", &setting(home::VARIABLE, &home.to_string_lossy()))
        .replace("{path}", &setting("PATH", path))
        .replace("{user}", &escaped(user))
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

/// Tells the starter, where one listens, a state such as `READY=1` (sd_notify(3)).
///
/// # Errors
/// Whom `$NOTIFY_SOCKET` names does not listen.
pub fn notify(state: &str) -> io::Result<()> {
    env::var_os("NOTIFY_SOCKET").map_or(Ok(()), |address| notify_at(&address, state))
}

fn notify_at(address: &OsStr, state: &str) -> io::Result<()> {
    let address = match address.as_bytes() {
        // unix(7): a name that is no file.
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// The first socket that the starter has opened for this process, if it has (sd_listen_fds(3)).
///
/// # Errors
/// A variable is no number, or a descriptor is not open.
pub fn passed_socket() -> nix::Result<Option<OwnedFd>> {
    let variable = |name| env::var(name).ok();
    let count = passed_count(variable("LISTEN_PID"), variable("LISTEN_FDS"), std::process::id())?;
    (count > 0).then(|| take_inherited(FIRST_PASSED)).transpose()
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
        let text = unit_text(program, home, "ann", "/usr/bin:/opt/$x");
        for line in [
            "Type=notify",
            "User=ann",
            "ExecStart=\"/opt/p m/pm\" daemon",
            "ExecStartPost=-\"/opt/p m/pm\" resurrect --if-empty",
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
    fn a_user_that_is_not_there_is_named() {
        assert_eq!(
            find_user(Some("nobody-has-this-name")).unwrap_err().to_string(),
            "there is no user nobody-has-this-name"
        );
        assert!(find_user(Some("root")).unwrap().uid.is_root());
    }

    #[test]
    fn the_starter_is_told_under_a_path_and_under_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let name = format!("acceptlab-notify-{}", std::process::id());
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
