//! Whether this process is a worker of a cluster, as Node's `lib/child_process.js` and `lib/internal/cluster/child.js`
//! decide it: by its environment. Read once.

use std::os::fd::RawFd;
use std::sync::OnceLock;

/// What the environment of a worker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// `NODE_CHANNEL_FD`: its end of the channel to the master.
    pub channel: RawFd,
    /// `WORKER_ID`: its number among the workers. A master that gives none, as Node's, counts its processes from 1
    /// (`NODE_UNIQUE_ID`).
    pub number: usize,
    /// `ACCEPTLAB_SCOREBOARD_FD`: the master's scoreboard; Node's has none.
    pub scoreboard: Option<RawFd>,
}

/// `None` for a process that is not a worker.
///
/// # Errors
/// Which variable has a value that makes no sense.
pub fn of_this_process() -> Result<Option<Membership>, String> {
    static FOUND: OnceLock<Result<Option<Membership>, String>> = OnceLock::new();
    FOUND.get_or_init(|| read(|name| std::env::var(name).ok())).clone()
}

pub fn is_member() -> bool {
    matches!(of_this_process(), Ok(Some(_)))
}

fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Membership>, String> {
    let number = |name: &str| match variable(name) {
        None => Ok(None),
        Some(text) => match text.parse::<u32>() {
            Ok(number) if number < 1 << 24 => Ok(Some(number)),
            _ => Err(format!("{name}={text}: not a number; only a master sets it")),
        },
    };
    let (Some(unique_id), Some(channel)) = (number("NODE_UNIQUE_ID")?, number("NODE_CHANNEL_FD")?) else {
        return Ok(None);
    };
    let own = number("WORKER_ID")?.unwrap_or(unique_id.saturating_sub(1));
    let scoreboard = number("ACCEPTLAB_SCOREBOARD_FD")?.map(|fd| fd as RawFd);
    Ok(Some(Membership { channel: channel as RawFd, number: own as usize, scoreboard }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_from(variables: &[(&str, &str)]) -> Result<Option<Membership>, String> {
        read(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn a_worker_has_a_channel_and_a_unique_id() {
        assert_eq!(read_from(&[]), Ok(None));
        assert_eq!(read_from(&[("NODE_CHANNEL_FD", "3")]), Ok(None));
        let of_node = read_from(&[("NODE_CHANNEL_FD", "3"), ("NODE_UNIQUE_ID", "7")]);
        assert_eq!(of_node, Ok(Some(Membership { channel: 3, number: 6, scoreboard: None })));
        let ours = read_from(&[
            ("NODE_CHANNEL_FD", "9"),
            ("NODE_UNIQUE_ID", "7"),
            ("WORKER_ID", "2"),
            ("ACCEPTLAB_SCOREBOARD_FD", "8"),
        ]);
        assert_eq!(ours, Ok(Some(Membership { channel: 9, number: 2, scoreboard: Some(8) })));
    }

    #[test]
    fn what_is_not_a_number_is_refused() {
        for odd in ["", "x", "-1", "99999999999"] {
            let refused = read_from(&[("NODE_CHANNEL_FD", odd), ("NODE_UNIQUE_ID", "1")]).unwrap_err();
            assert!(refused.starts_with("NODE_CHANNEL_FD="), "{refused}");
        }
    }
}
