//! A scenario as JavaScript, and Node as the oracle of its order.

use std::path::Path;
use std::process::Command;

use acceptlab::phased_loop::scenario::{Scenario, ScenarioStep};

use super::Order;

const PRELUDE: &str = include_str!("prelude.js");

/// The order of a scenario that is the main module. Sockets need connections, which only [`orders`] prepares.
pub fn main_order(scenario: &Scenario, folder: &Path) -> Order {
    let orders = node(&format!("main(() => {});", block(&scenario.steps, 0)), folder);
    orders.into_iter().next().expect("Node printed an order")
}

/// The order of each scenario, all in one process.
pub fn orders(scenarios: &[Scenario], folder: &Path) -> Vec<Order> {
    let mut program = "each([\n".to_string();
    for scenario in scenarios {
        let uses = |step: &&ScenarioStep| matches!(step, ScenarioStep::Socket(_) | ScenarioStep::Close(_));
        let connections = scenario.every_step().into_iter().filter(uses).count();
        program += &format!("[{connections}, () => {}],\n", block(&scenario.steps, 0));
    }
    let orders = node(&(program + "]);"), folder);
    assert_eq!(orders.len(), scenarios.len(), "Node printed too few orders");
    orders
}

/// Runs a program in a folder of its own, and reads the orders that it prints.
fn node(program: &str, folder: &Path) -> Vec<Order> {
    std::fs::create_dir_all(folder).unwrap();
    let file = folder.join("scenarios.js");
    std::fs::write(&file, format!("{PRELUDE}\n{program}\n")).unwrap();
    let output = Command::new("node").arg(&file).output().unwrap();
    assert!(output.status.success(), "node {}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).expect("an order")).collect()
}

/// What a callback does, as JavaScript between braces.
pub fn block(steps: &[ScenarioStep], depth: usize) -> String {
    if steps.is_empty() {
        return "{}".into();
    }
    let indent = "  ".repeat(depth);
    let lines: String = steps.iter().map(|step| format!("{indent}  {};\n", statement(step, depth + 1))).collect();
    format!("{{\n{lines}{indent}}}")
}

fn statement(step: &ScenarioStep, depth: usize) -> String {
    let then = || format!("() => {}", block(step.then(), depth));
    let id = step.id().unwrap_or_default();
    match step {
        ScenarioStep::Timer(timer) => {
            let call = if timer.repeat { "interval" } else { "timer" };
            format!("{call}({id:?}, {}, {})", timer.after.as_millis(), then())
        }
        ScenarioStep::Immediate(_) => format!("immediate({id:?}, {})", then()),
        ScenarioStep::NextTick(_) => format!("nextTick({id:?}, {})", then()),
        // Both of Node's ways to queue one.
        ScenarioStep::Microtask(_) if id.len().is_multiple_of(2) => format!("promise({id:?}, {})", then()),
        ScenarioStep::Microtask(_) => format!("microtask({id:?}, {})", then()),
        ScenarioStep::ReadFile(_) => format!("readFile({id:?}, {})", then()),
        ScenarioStep::Socket(_) => format!("socket({id:?}, {})", then()),
        ScenarioStep::Close(_) => format!("close({id:?}, {})", then()),
        ScenarioStep::Clear(clear) => format!("clear({:?})", clear.timer),
        ScenarioStep::Spin(spin) => format!("spin({})", spin.duration.as_millis()),
        ScenarioStep::Again(_) | ScenarioStep::Pending(_) | ScenarioStep::Idle(_) | ScenarioStep::Prepare(_) => {
            unreachable!("Node has no call for it, and the generator draws none")
        }
    }
}
