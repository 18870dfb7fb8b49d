//! The machine behind a record: its hardware, kernel and settings. What cannot be read is left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::cpu;
use crate::machine::{number, sysctl};

const SYSCTLS: [&str; 7] = [
    "net.core.somaxconn",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_migrate_req",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_tw_reuse",
];

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    pub kernel: String,
    pub cpu: String,
    pub allowed_cpus: Vec<usize>,
    pub memory_mib: u64,
    /// What the kernel does against each vulnerability, by its name; those that do not affect this CPU are left out.
    pub mitigations: BTreeMap<String, String>,
    pub sysctls: BTreeMap<String, String>,
    /// RLIMIT_NOFILE, the soft limit.
    pub open_files: u64,
    pub user: String,
    pub rustc: String,
    pub profile: String,
    pub commit: String,
}

/// Reads all of it; `root` is the repository, and `commit` what it has of it.
pub fn take(root: &Path, commit: String) -> Fingerprint {
    Fingerprint {
        kernel: sysctl("kernel.osrelease").unwrap_or_default(),
        cpu: field_of("/proc/cpuinfo", "model name"),
        allowed_cpus: cpu::allowed(),
        memory_mib: number(&field_of("/proc/meminfo", "MemTotal")) / 1024,
        mitigations: mitigations(),
        sysctls: SYSCTLS.iter().filter_map(|name| Some((name.to_string(), sysctl(name)?))).collect(),
        open_files: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
        user: if geteuid().is_root() { "root" } else { "not root" }.to_string(),
        rustc: output(root, "rustc", &["-V"]),
        profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_string(),
        commit,
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

/// The value behind `name :` in a file of such lines.
fn field_of(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.trim() == name).map_or(String::new(), |(_, value)| value.trim().to_string())
}

fn mitigations() -> BTreeMap<String, String> {
    let folder = fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten().flatten();
    let state = |entry: fs::DirEntry| {
        let text = read(&entry.path().to_string_lossy());
        (text != "Not affected").then(|| (entry.file_name().to_string_lossy().into_owned(), text))
    };
    folder.filter_map(state).collect()
}

/// The first line a tool prints, or nothing when there is no such tool.
fn output(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(folder).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_a_kernel_and_a_cpu_we_may_use() {
        let machine = take(Path::new("."), String::new());
        assert!(!machine.kernel.is_empty() && !machine.allowed_cpus.is_empty() && machine.open_files > 0);
    }
}
