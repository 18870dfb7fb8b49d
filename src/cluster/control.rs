//! The master's control socket ([`crate::control_socket`]): what a client may ask for. One request a client; the answer
//! may have lines before the last, which are steps.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use clap::Subcommand;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::listening_socket::SocketFile;
use super::poller::{Poller, Token};
use crate::control_socket::{self, ControlSettings, ControlSocket};
use crate::failure::Failure;
use crate::server::args::parse_workers;
use crate::sys::epoll::Interest;

#[derive(Subcommand, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum ControlRequest {
    /// The workers, and what has happened to them
    Status,
    /// Replace all workers, one after another, each when its successor listens
    Reload {
        /// Of the workers that are started from now on, in place of the master's own
        #[arg(skip)]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        environment: Option<BTreeMap<String, String>>,
        /// How workers are awaited, asked to end, and restarted from now on, as on the command line
        #[arg(skip)]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        options: Option<Vec<String>>,
    },
    /// From now on so many workers
    Scale {
        #[arg(value_name = "N", value_parser = parse_workers)]
        workers: usize,
    },
    /// Pass a JSON message to the program, received there by process.on('message')
    Send {
        /// Only to this worker
        #[arg(long, value_name = "I")]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        worker: Option<usize>,
        /// Such as '{"act": "shout"}'
        #[arg(value_name = "JSON", value_parser = parse_json)]
        message: Value,
    },
    /// Stop the master and all workers
    Stop,
}

fn parse_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("not JSON: {error}; a text is written '\"like this\"'"))
}

/// The longest request has room for a message for the workers.
const SETTINGS: ControlSettings = ControlSettings {
    owner: "this cluster",
    most_clients: 16,
    longest_request: 1 << 20,
    most_unread: 1 << 20,
    answers_once: true,
    token: |client| Token::Control(client).encode(),
};

/// The socket, where the master has one.
#[derive(Default)]
pub struct MasterControl {
    _file: Option<SocketFile>,
    socket: Option<ControlSocket>,
}

impl MasterControl {
    /// Takes the place of a socket that a dead master has left, and of no other file.
    pub fn open(path: &Path, poller: &Poller) -> Result<MasterControl, Failure> {
        let tried = || format!("control socket {}", path.display());
        let odd = |error: std::io::Error| {
            Failure::new(tried(), error).advise("choose a new file in a folder that you may write")
        };
        // Of two masters that start together, one looks, removes and binds before the other looks. A file system
        // without such locks, or a folder that may not be read, leaves it at that.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = fs::File::open(folder).map(|folder| Flock::lock(folder, FlockArg::LockExclusiveNonblock));
        let _lock = match folder {
            Ok(Err((_, errno @ Errno::EWOULDBLOCK))) => {
                return Err(Failure::new(tried(), errno)
                    .advise("another cluster starts there, or a program has locked its folder: try again"));
            }
            other => other,
        };
        let taken = |why: &str, advice: &str| Err(Failure::new(tried(), std::io::Error::other(why)).advise(advice));
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return taken("there is a file of another kind in its place", "choose another");
            }
            Ok(_) if is_stale(path) => fs::remove_file(path).map_err(odd)?,
            Ok(_) => {
                return taken("another cluster listens there", "stop it with `cluster ctl stop`, or choose another");
            }
            Err(_) => {}
        }
        let bound = control_socket::bind(path);
        let socket = bound.and_then(|listener| ControlSocket::new(listener, SETTINGS, &poller.epoll)).map_err(odd)?;
        Ok(MasterControl { _file: SocketFile::at(path), socket: Some(socket) })
    }

    pub fn accept(&mut self, poller: &Poller) {
        if let Some(socket) = &mut self.socket {
            // One that could not be accepted is tried again with the next heartbeat.
            let _ = socket.accept(&poller.epoll);
        }
    }

    pub fn accept_again(&mut self, poller: &Poller) {
        if let Some(socket) = &mut self.socket {
            socket.accept_again(&poller.epoll);
        }
    }

    /// A client can be read from or written to. Its request, once it is complete.
    pub fn receive(&mut self, id: u64, ready: Interest) -> Option<ControlRequest> {
        let socket = self.socket.as_mut()?;
        socket.receive(id, ready);
        socket.next_request(id)
    }

    pub fn send(&mut self, id: u64, line: &Value) {
        if let Some(socket) = &mut self.socket {
            socket.send(id, line);
        }
    }

    /// The last line of an answer.
    pub fn answer(&mut self, id: u64, mut line: Value) {
        line["ok"] = json!(true);
        if let Some(socket) = &mut self.socket {
            socket.answer(id, &line);
        }
    }

    /// The last line of the answer to a request that is not granted.
    pub fn refuse(&mut self, id: u64, why: &str) {
        if let Some(socket) = &mut self.socket {
            socket.refuse(id, why);
        }
    }
}

/// No process listens there any more. Any other error than a refusal says that one does.
fn is_stale(path: &Path) -> bool {
    let connected = control_socket::connect_without_waiting(path);
    connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}
