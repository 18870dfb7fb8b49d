//! Kernel settings a matrix asks for: set before the server starts, and restored afterwards, even when the lab is killed.
//! Whoever may not change those of the machine's network gets a network of his own for the run.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use crate::machine::sysctl;
use crate::sys::namespace::NetworkNamespace;

/// The settings of one run, for as long as this value lives.
#[derive(Default)]
pub struct KernelSettings {
    _changed: Vec<Sysctl>,
    /// Where server and client must run.
    pub namespace: Option<Arc<NetworkNamespace>>,
}

impl KernelSettings {
    /// Makes them. A line that needs none of the changes runs in the same network as the lines beside it that do.
    pub fn make(wanted: &[(String, String)]) -> Result<KernelSettings, Unset> {
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
        let set = |(name, value): &(String, String)| match Sysctl::set(name, value) {
            Err(Unset::Forbidden(why)) => Err(Unset::Missing(why + &refusal)),
            set => set,
        };
        let changed = wanted.iter().map(set).collect::<Result<Vec<_>, _>>()?;
        Ok(KernelSettings { _changed: changed.into_iter().flatten().collect(), namespace: None })
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

/// Which setting keeps an ordinary user from namespaces of his own, where one does.
fn forbidding_setting() -> String {
    let settings = [
        ("kernel.unprivileged_userns_clone", "0"),
        ("user.max_user_namespaces", "0"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1"),
    ];
    let is_so = |(name, value): &(&str, &str)| sysctl(name).is_some_and(|now| now == *value);
    settings.into_iter().find(is_so).map_or(String::new(), |(name, value)| format!(" ({name} = {value})"))
}

/// One setting that was changed; dropping it restores the old value.
struct Sysctl {
    /// A shell that reads until we close the pipe, or have died, and then writes the old value.
    restorer: Child,
}

/// Why a setting could not be made.
#[derive(Debug)]
pub enum Unset {
    /// It is not there, or we may not change it: the run is skipped, it has not failed.
    Missing(String),
    /// As [`Unset::Missing`], for want of a privilege.
    Forbidden(String),
    Failed(String),
}

impl Sysctl {
    /// Sets `net.ipv4.tcp_migrate_req`, for example. `None` when it has this value already.
    fn set(name: &str, value: &str) -> Result<Option<Sysctl>, Unset> {
        let file = file(name);
        let unset = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => Unset::Missing(format!("there is no {}", file.display())),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                Unset::Forbidden("needs CAP_NET_ADMIN".to_string())
            }
            _ => Unset::Failed(format!("set {name} = {value}: {error}")),
        };
        let before = fs::read_to_string(&file).map_err(unset)?.trim().to_string();
        if before == value {
            return Ok(None);
        }
        // Without the right to write there is nothing to restore.
        let mut setting = OpenOptions::new().write(true).open(&file).map_err(unset)?;
        // The restorer first: from the write on, the old value comes back however the lab ends.
        let restorer = Command::new("sh")
            .args(["-c", "cat >/dev/null; printf %s \"$0\" >\"$1\"", &before])
            .arg(&file)
            .stdin(Stdio::piped())
            // Ctrl-C goes to the lab's group; the restorer must outlive it.
            .process_group(0)
            .spawn()
            .map_err(|error| Unset::Failed(format!("start a shell to restore {name}: {error}")))?;
        let changed = Sysctl { restorer };
        setting.write_all(value.as_bytes()).map_err(unset)?;
        Ok(Some(changed))
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        drop(self.restorer.stdin.take());
        let _ = self.restorer.wait();
    }
}
