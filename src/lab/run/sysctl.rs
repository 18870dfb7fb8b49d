//! Kernel settings a matrix asks for: set before the server starts, and restored afterwards, even when the lab is
//! killed. Labs that ask for the same setting take turns. Whoever may not change those of the machine's network gets
//! another network for the run.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write, read_to_string};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{after, bounded, select};

use crate::console;
use crate::lab::program::Interrupt;
use crate::machine::sysctl;
use crate::sys::lock::flock;
use crate::sys::namespace::NetworkNamespace;

/// How long the lab waits for its turn before it says so.
const SILENCE: Duration = Duration::from_secs(1);

/// The settings of one run, for as long as this value lives.
#[derive(Default)]
pub struct KernelSettings {
    _made: Vec<Sysctl>,
    /// Where server and client must run.
    pub namespace: Option<Arc<NetworkNamespace>>,
}

impl KernelSettings {
    /// Makes them, and waits while another lab has one of them. A line that needs none of the changes runs in the same
    /// network as the lines beside it that do.
    pub fn make(wanted: &[(String, String)], interrupt: &Interrupt) -> Result<KernelSettings, SettingError> {
        let mut refusal = String::new();
        if wanted.iter().any(|(name, _)| name.starts_with("net.") && is_forbidden(name)) {
            let files: Vec<(String, String)> =
                wanted.iter().map(|(name, value)| (file(name).display().to_string(), value.clone())).collect();
            match NetworkNamespace::new(&files) {
                Ok(namespace) => {
                    return Ok(KernelSettings { namespace: Some(Arc::new(namespace)), ..KernelSettings::default() });
                }
                Err(error) => refusal = format!(", or a user namespace: {error}{}", forbidding_setting()),
            }
        }
        let set = |(name, value): &(String, String)| match Sysctl::set(name, value, interrupt) {
            Err(SettingError::Forbidden(why)) => Err(SettingError::Missing(why + &refusal)),
            set => set,
        };
        // In the order of their names, as a matrix keeps them: two labs never wait for each other.
        Ok(KernelSettings { _made: wanted.iter().map(set).collect::<Result<_, _>>()?, namespace: None })
    }
}

fn file(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name.replace('.', "/"))
}

/// The kernel asks at the opening already (proc_sys_permission).
fn is_forbidden(name: &str) -> bool {
    let opened = OpenOptions::new().write(true).open(file(name));
    opened.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

/// Which setting keeps an ordinary user from namespaces, where one does.
fn forbidding_setting() -> String {
    let settings = [
        ("kernel.unprivileged_userns_clone", "0"),
        ("user.max_user_namespaces", "0"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1"),
    ];
    let is_so = |(name, value): &(&str, &str)| sysctl(name).is_some_and(|now| now == *value);
    settings.into_iter().find(is_so).map_or(String::new(), |(name, value)| format!(" ({name} = {value})"))
}

/// One setting that no other lab may change; dropping it restores the old value.
struct Sysctl {
    file: PathBuf,
    before: String,
    /// A shell that reads until we close the pipe, or have died, and then writes the old value. `None` when the setting
    /// had the wanted value already.
    restorer: Option<Child>,
    /// The file, locked (flock(2)). Each network namespace has files of its own, so labs in different ones do not wait.
    lock: File,
}

/// Why a setting could not be made.
#[derive(Debug)]
pub enum SettingError {
    /// It is not there, or we may not change it: the run is skipped, it has not failed.
    Missing(String),
    /// As [`SettingError::Missing`], for want of a privilege.
    Forbidden(String),
    Failed(String),
    Interrupted,
}

impl Sysctl {
    /// Sets `net.ipv4.tcp_migrate_req`, for example.
    fn set(name: &str, value: &str, interrupt: &Interrupt) -> Result<Sysctl, SettingError> {
        let file = file(name);
        let unset = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => SettingError::Missing(format!("there is no {}", file.display())),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                SettingError::Forbidden("needs CAP_NET_ADMIN".to_string())
            }
            _ => SettingError::Failed(format!("set {name} = {value}: {error}")),
        };
        let lock = File::open(&file).map_err(unset)?;
        wait_for_turn(name, lock.try_clone().map_err(unset)?, interrupt)?;
        // Only now: until then it may be the value of another lab.
        let before = read_to_string(&lock).map_err(unset)?.trim().to_string();
        let mut made = Sysctl { file: file.clone(), before, restorer: None, lock };
        if made.before == value {
            return Ok(made);
        }
        // Without the right to write there is nothing to restore.
        let mut setting = OpenOptions::new().write(true).open(&file).map_err(unset)?;
        // The restorer first: from the write on, the old value comes back however the lab ends.
        let restorer = Command::new("sh")
            .args(["-c", "while read -r _; do :; done; printf %s \"$0\" >\"$1\"", &made.before])
            .arg(&file)
            .stdin(Stdio::piped())
            // Nothing is printed; the descriptor holds the lock until the old value is written, even when we are
            // killed.
            .stdout(made.lock.try_clone().map_err(unset)?)
            // Ctrl-C goes to the lab's group; the restorer must outlive it.
            .process_group(0)
            .spawn()
            .map_err(|error| SettingError::Failed(format!("start a shell to restore {name}: {error}")))?;
        made.restorer = Some(restorer);
        setting.write_all(value.as_bytes()).map_err(unset)?;
        Ok(made)
    }
}

/// Locks the file of a setting for all that share this opening of it. Where it cannot be locked, nobody has to wait.
fn wait_for_turn(name: &str, file: File, interrupt: &Interrupt) -> Result<(), SettingError> {
    let (sender, turn) = bounded::<()>(0);
    // A thread of its own, because a signal to stop does not end flock(2): the signals are blocked in every thread.
    thread::spawn(move || {
        let _ = flock(file, libc::LOCK_EX);
        drop(sender);
    });
    let notice = after(SILENCE);
    loop {
        select! {
            recv(turn) -> _ => return Ok(()),
            recv(interrupt) -> _ => return Err(SettingError::Interrupted),
            recv(notice) -> _ => console::log(format_args!("waiting for another lab that has set {name}")),
        }
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        let Some(restorer) = &mut self.restorer else { return };
        // It closes the pipe first.
        let how = match restorer.wait() {
            Ok(status) if status.success() => return,
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let (file, before) = (self.file.display(), &self.before);
        console::log(format_args!(
            "{file} is not restored (the shell for it: {how}); do it as root: echo '{before}' >{file}"
        ));
    }
}
