//! Kernel settings a matrix asks for: set before the server starts, and put back afterwards, even when the lab is
//! killed.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// One setting that was changed; dropping it puts the old value back.
pub struct Sysctl {
    /// A shell that reads until we close the pipe, or are no more, and then writes the old value.
    keeper: Child,
}

/// Why a setting could not be made.
#[derive(Debug)]
pub enum Unset {
    /// The kernel does not have it, or we may not: no reason to call the run a failure.
    Missing(String),
    Failed(String),
}

impl Sysctl {
    /// Sets `net.ipv4.tcp_migrate_req` and the like. `None` when it has this value already.
    ///
    /// # Errors
    /// One line that says what is missing, or what went wrong.
    pub fn set(name: &str, value: &str) -> Result<Option<Sysctl>, Unset> {
        let file = PathBuf::from("/proc/sys").join(name.replace('.', "/"));
        let told = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => Unset::Missing(format!("this kernel has no {name}")),
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                Unset::Missing("needs CAP_NET_ADMIN".to_string())
            }
            _ => Unset::Failed(format!("set {name} = {value}: {error}")),
        };
        let before = fs::read_to_string(&file).map_err(told)?.trim().to_string();
        if before == value {
            return Ok(None);
        }
        // Tried before the keeper is there: who may not write has nothing to put back.
        fs::write(&file, value).map_err(told)?;
        let keeper = Command::new("sh")
            .args(["-c", "cat >/dev/null; printf %s \"$0\" >\"$1\"", &before])
            .arg(&file)
            .stdin(Stdio::piped())
            // Ctrl-C goes to the lab's group; the keeper must outlive it.
            .process_group(0)
            .spawn();
        match keeper {
            Ok(keeper) => Ok(Some(Sysctl { keeper })),
            Err(error) => {
                let _ = fs::write(&file, before);
                Err(Unset::Failed(format!("start a shell to put {name} back: {error}")))
            }
        }
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
