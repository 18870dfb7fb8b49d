//! What may share a port and what collides: each case of `ports` ends on this kernel as its table says.

use std::process::Command;

use nix::unistd::geteuid;
use serde_json::Value;

use crate::support::{Needs, Ordinary, inconclusive};

const PORTS: &str = env!("CARGO_BIN_EXE_ports");
const ANOTHER_USER: &str = "skipped: needs CAP_SETUID";

/// Holds each row to what it expects itself, and returns the rows that were not tried.
#[track_caller]
fn skipped_rows(ports: &mut Command) -> Vec<String> {
    let output = ports.args(["--format", "json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut skipped = Vec::new();
    for row in document["attempts"].as_array().unwrap() {
        let [attempt, said, expected] =
            ["attempt", "said", "expected"].map(|key| row[key].as_str().unwrap().to_owned());
        match said.starts_with("skipped: ") {
            true => skipped.push(said),
            false => assert_eq!(said, expected, "{attempt} (this kernel differs from Linux 6.18)"),
        }
    }
    // After a minute with many thousand connections a kernel forgets TIME_WAIT at once, whoever asks.
    let (no_room, skipped): (Vec<_>, Vec<_>) =
        skipped.into_iter().partition(|said| said.starts_with("skipped: needs room for one more TIME_WAIT"));
    if let Some(why) = no_room.first() {
        inconclusive(Needs::QuietMachine, why);
    }
    skipped
}

#[test]
fn two_sockets_collide_unless_both_consent_and_a_descriptor_never_does() {
    let expected = if geteuid().is_root() { &[][..] } else { &[ANOTHER_USER] };
    if !expected.is_empty() {
        inconclusive(Needs::Privilege("CAP_SETUID"), "the row with another user's socket was not tried");
    }
    assert_eq!(skipped_rows(&mut Command::new(PORTS)), expected);
}

#[test]
fn an_ordinary_user_learns_all_of_it_but_the_other_users_row() {
    let Some(ordinary) = Ordinary::new(PORTS) else { return };
    assert_eq!(skipped_rows(&mut ordinary.command()), [ANOTHER_USER]);
}

#[test]
fn the_table_for_people_has_an_answer_and_a_reason_for_each_attempt() {
    let output = Command::new(PORTS).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (answers, reasons): (Vec<_>, Vec<_>) = text.lines().partition(|line| !line.starts_with(' '));
    assert!(answers.len() >= 20 && answers.len() == reasons.len(), "{text}");
    assert!(!text.contains("this kernel differs"), "{text}");
    assert!(text.lines().all(|line| line.len() <= 132), "{text}");
}
