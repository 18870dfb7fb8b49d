//! Whether what an application runs is there, before it is started.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use super::dump::Application;
use crate::failure::Failure;

/// Whether there is what this application runs: its folder, its program, and the script that an interpreter reads. A
/// cluster or an interpreter would only find out later.
pub fn check_program(app: &Application) -> Result<(), Failure> {
    let config = &app.config;
    let tried = |what: &Path| format!("start {}", what.display());
    if !config.cwd.is_dir() {
        let tried = format!("{} in {}", tried(&config.script), config.cwd.display());
        return Err(Failure::new(tried, Errno::ENOENT).advise("cwd has to be a folder"));
    }
    let Some(interpreter) = &config.interpreter else {
        let advice = "make it executable (chmod +x), or name an --interpreter";
        return find_program(app, &config.script).map_err(|errno| match errno {
            Errno::EACCES => Failure::new(tried(&config.script), errno).advise(advice),
            _ => Failure::new(tried(&config.script), errno),
        });
    };
    let script = config.cwd.join(&config.script);
    fs::metadata(&script).map_err(|error| Failure::new(tried(&script), error))?;
    let interpreter = Path::new(interpreter);
    find_program(app, interpreter)
        .map_err(|errno| Failure::new(tried(interpreter), errno).advise("install it, or name another --interpreter"))
}

/// As execvp(3) finds it: a name without a slash is looked for in PATH.
fn find_program(app: &Application, program: &Path) -> nix::Result<()> {
    let look = |path: &Path| access(path, AccessFlags::X_OK);
    if program.as_os_str().as_bytes().contains(&b'/') {
        return look(&app.config.cwd.join(program));
    }
    let path = app.config.env.get("PATH").or_else(|| app.environment.get("PATH"));
    let folders = path.map_or("/bin:/usr/bin", String::as_str).split(':');
    let mut found = folders.map(|folder| app.config.cwd.join(folder).join(program)).filter(|path| path.is_file());
    found.find_map(|path| look(&path).ok()).ok_or(Errno::ENOENT)
}
