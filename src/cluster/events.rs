//! What happens to the workers, as lines of JSON on standard error.

use std::io::Write;

use serde_json::{Value, json};

use crate::units::monotonic_ns;

/// Tells events with their time since the start.
pub struct Events {
    start_ns: u64,
}

impl Events {
    pub fn new() -> Events {
        Events { start_ns: monotonic_ns() }
    }

    /// `fields` is an object, to which the event's name and time are added.
    pub fn tell(&self, event: &str, mut fields: Value) {
        fields["event"] = json!(event);
        fields["at_s"] = json!((monotonic_ns() - self.start_ns) as f64 / 1e9);
        // In one write, so that no worker's output comes between. Who has closed our standard error wants no events.
        let _ = std::io::stderr().write_all(format!("{fields}\n").as_bytes());
    }
}

impl Default for Events {
    fn default() -> Events {
        Events::new()
    }
}
