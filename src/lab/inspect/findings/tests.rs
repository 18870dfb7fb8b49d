//! Each finding, from a recorded look: files that `lab inspect --save` has written.

use super::*;

pub fn recorded(name: &str) -> Recording {
    let path = format!("{}/src/lab/inspect/findings/recorded/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}
