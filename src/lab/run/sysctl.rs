//! Kernel settings a matrix asks for: set before the server starts, and restored afterwards, even when the lab is killed.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// One setting that was changed; dropping it restores the old value.
pub struct Sysctl {
    /// A shell that reads until we close the pipe, or have died, and then writes the old value.
    restorer: Child,
}

/// Why a setting could not be made.
#[derive(Debug)]
pub enum Unset {
    /// It is not there, or we may not change it: the run is skipped, it has not failed.
    Missing(String),
    Failed(String),
}

impl Sysctl {
    /// Sets `net.ipv4.tcp_migrate_req`, for example. `None` when it has this value already.
    pub fn set(name: &str, value: &str) -> Result<Option<Sysctl>, Unset> {
        let file = PathBuf::from("/proc/sys").join(name.replace('.', "/"));
        let unset = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => Unset::Missing(format!("there is no {}", file.display())),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                Unset::Missing("needs CAP_NET_ADMIN".to_string())
            }
            _ => Unset::Failed(format!("set {name} = {value}: {error}")),
        };
        let before = fs::read_to_string(&file).map_err(unset)?.trim().to_string();
        if before == value {
            return Ok(None);
        }
        // Before the restorer is started: without the right to write there is nothing to restore.
        fs::write(&file, value).map_err(unset)?;
        let restorer = Command::new("sh")
            .args(["-c", "cat >/dev/null; printf %s \"$0\" >\"$1\"", &before])
            .arg(&file)
            .stdin(Stdio::piped())
            // Ctrl-C goes to the lab's group; the restorer must outlive it.
            .process_group(0)
            .spawn();
        match restorer {
            Ok(restorer) => Ok(Some(Sysctl { restorer })),
            Err(error) => {
                let _ = fs::write(&file, before);
                Err(Unset::Failed(format!("start a shell to restore {name}: {error}")))
            }
        }
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        drop(self.restorer.stdin.take());
        let _ = self.restorer.wait();
    }
}
