//! What the master has to know about Node's command line: whether it asks for an inspector, and whether it has a file.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Node's `process.debugPort` where no other is given, and the range it stays in (`lib/internal/cluster/primary.js`).
const DEFAULT_PORT: u16 = 9229;
const LOWEST_PORT: u16 = 1024;

/// Options of Node whose value is the next argument.
const WITH_VALUE: &str =
    "-e --eval -p --print -pe -r --require --import -C --conditions --loader --experimental-loader --title";

/// `node -e` without an argument: Node's library takes part in a cluster only where `process.argv[1]` exists.
pub fn advice(program: &[OsString]) -> Option<&'static str> {
    let has_script = script_index(program)? < program.len();
    (!has_script).then_some(
        "node without a file does not join the cluster: its listen() does not come to this master; put the program \
         into a file: cluster -- node FILE",
    )
}

/// The inspector's port of each worker: as under Node's own primary, the first after the port that was asked for, then
/// the next ones, a new one for each process that is ever started.
pub struct InspectorPorts {
    argument: Option<usize>,
    node_options: Option<OsString>,
    next: u16,
}

impl InspectorPorts {
    /// `None` where neither the program's arguments nor `NODE_OPTIONS` ask for an inspector, or for any free port.
    pub fn of(program: &[OsString], node_options: Option<&OsStr>) -> Option<InspectorPorts> {
        let options = &program[..script_index(program).unwrap_or(0)];
        let argument = options.iter().rposition(|option| asks_for_inspector(&option.to_string_lossy()));
        let text = node_options.unwrap_or_default().to_string_lossy();
        let words = || text.split_whitespace();
        let node_options = node_options.filter(|_| words().any(asks_for_inspector)).map(OsStr::to_owned);
        if argument.is_none() && node_options.is_none() {
            return None;
        }
        // The command line is stronger than the environment, and the last option stronger than those before it.
        let arguments = options.iter().map(|option| option.to_string_lossy().into_owned());
        let all: Vec<String> = words().map(str::to_owned).chain(arguments).collect();
        let asked = all.iter().rev().filter(|word| asks_for_inspector(word)).find_map(|word| port_in(word));
        match asked.unwrap_or(DEFAULT_PORT) {
            0 => None,
            port => Some(InspectorPorts { argument, node_options, next: after(port) }),
        }
    }

    pub fn next_command(&mut self, program: &[OsString]) -> (Vec<OsString>, Option<OsString>) {
        let option = format!("--inspect-port={}", self.next);
        self.next = after(self.next);
        let mut arguments = program.to_vec();
        if let Some(index) = self.argument {
            arguments.insert(index + 1, OsString::from(&option));
        }
        let node_options = self.node_options.clone().map(|mut options| {
            options.push(" ");
            options.push(&option);
            options
        });
        (arguments, node_options)
    }
}

fn after(port: u16) -> u16 {
    port.checked_add(1).unwrap_or(LOWEST_PORT)
}

fn asks_for_inspector(option: &str) -> bool {
    option.starts_with("--inspect") || option.starts_with("--debug-port")
}

/// `--inspect=PORT`, `--inspect-brk=HOST:PORT`.
fn port_in(option: &str) -> Option<u16> {
    let (_, value) = option.split_once('=')?;
    value.rsplit(':').next()?.parse().ok()
}

/// Where Node's options end: the index of the file, or the length where there is none. `None`: the program is not Node.
fn script_index(program: &[OsString]) -> Option<usize> {
    let name = Path::new(program.first()?).file_name()?.to_str()?;
    if !["node", "nodejs"].contains(&name) {
        return None;
    }
    let mut index = 1;
    while let Some(argument) = program.get(index) {
        match argument.to_string_lossy() {
            option if option == "--" => return Some(index + 1),
            option if WITH_VALUE.split(' ').any(|known| option == known) => index += 2,
            option if option.starts_with('-') && option != "-" => index += 1,
            _ => return Some(index),
        }
    }
    Some(program.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn node_without_a_file_is_advised_and_nothing_else() {
        for line in ["node -e code", "/usr/bin/node --inspect -p code", "node", "node -e code --"] {
            assert!(advice(&words(line)).is_some(), "{line}");
        }
        for line in
            ["node app.js", "node -r x app.js -e y", "node -e code argument", "node -e code -- --listen", "sh -c x"]
        {
            assert!(advice(&words(line)).is_none(), "{line}");
        }
    }

    #[test]
    fn each_worker_has_the_next_port_where_an_inspector_is_asked_for() {
        let next = |line: &str, env: Option<&str>| {
            let program = words(line);
            let mut ports = InspectorPorts::of(&program, env.map(OsStr::new))?;
            let (arguments, node_options) = ports.next_command(&program);
            let arguments: Vec<_> = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
            Some((arguments.join(" "), node_options.map(|options| options.into_string().unwrap())))
        };
        let arguments = |line: &str| next(line, None).map(|(arguments, _)| arguments);
        assert_eq!(arguments("node --inspect a.js").as_deref(), Some("node --inspect --inspect-port=9230 a.js"));
        assert_eq!(
            arguments("node --inspect-brk=[::1]:9300 -r x a.js").as_deref(),
            Some("node --inspect-brk=[::1]:9300 --inspect-port=9301 -r x a.js")
        );
        for line in ["node a.js --inspect", "node --inspect=0 a.js", "sh --inspect"] {
            assert_eq!(arguments(line), None, "{line}");
        }
        let from_env = next("npm start", Some("--max-old-space-size=99 --inspect"));
        assert_eq!(from_env.unwrap().1.unwrap(), "--max-old-space-size=99 --inspect --inspect-port=9230");
        assert_eq!(after(65535), 1024);
    }
}
