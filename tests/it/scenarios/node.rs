//! Node as the oracle of a scenario's order, by the translator that the lesson uses, too.

use std::path::Path;
use std::process::Command;

use acceptlab::phased_loop::scenario::{CallbackLine, Scenario};
use serde::Serialize;

use super::Order;

const TRANSLATOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/scenarios.js");

/// The order of a scenario that is the main module, if it needs no connections.
pub fn main_order(scenario: &Scenario, folder: &Path) -> Order {
    let callback = |line: &str| {
        let line: CallbackLine = serde_json::from_str(line).expect("a callback");
        (line.phase, line.id)
    };
    node(&[], scenario, folder).lines().map(callback).collect()
}

/// The order of each scenario, all in one process.
pub fn orders(scenarios: &[Scenario], folder: &Path) -> Vec<Order> {
    let printed = node(&["--each"], scenarios, folder);
    let orders: Vec<Order> = printed.lines().map(|line| serde_json::from_str(line).expect("an order")).collect();
    assert_eq!(orders.len(), scenarios.len(), "Node printed too few orders");
    orders
}

/// What Node prints of scenarios, which are put into a file in a folder of their own.
fn node(flags: &[&str], scenarios: &(impl Serialize + ?Sized), folder: &Path) -> String {
    std::fs::create_dir_all(folder).unwrap();
    let file = folder.join("scenarios.json");
    std::fs::write(&file, serde_json::to_string(scenarios).unwrap()).unwrap();
    let output = Command::new("node").arg(TRANSLATOR).args(flags).arg(&file).output().unwrap();
    assert!(output.status.success(), "node {}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
