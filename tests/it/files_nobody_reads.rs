//! `loadgen --out` into a named pipe: the run does not wait for a reader, its report comes, and the loss is reported.

use std::process::Command;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::support::{TempFolder, start};

const LOADGEN: &str = env!("CARGO_BIN_EXE_loadgen");

#[test]
fn a_pipe_that_nobody_reads_costs_its_content_and_not_the_report() {
    let server = start("event-driven", &[]);
    let folder = TempFolder::new("unread");
    for ending in ["ndjson", "csv", "hgrm"] {
        let pipe = folder.path().join(format!("unread.{ending}"));
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let output = Command::new(LOADGEN)
            .args(["--connections", "2", "--requests", "20", "--out"])
            .arg(&pipe)
            .arg(format!("http://{}/", server.addr))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&format!(".{ending}: it is not read")), "{said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("20 answers"));
    }
}
