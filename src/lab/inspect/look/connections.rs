//! The connections of a listener from look to look: who owns them, which are new, which nobody accepts, and in which
//! bytes wait to be read. Counts, so that a recording stays small with 100,000 connections.

use std::collections::{BTreeMap, HashMap};

use super::Look;
use crate::sys::connections::{Connection, Key, connections_of};
use crate::sys::sock_diag::Extra;

/// Of so many connections the numbers of received segments are read at every look. Of more it would keep the kernel's
/// locks on them too long.
const FEW: usize = 2_000;

/// What has not been seen for so long is forgotten. The kernel keeps a connection as long that only we have closed
/// (`tcp_fin_timeout`), and does not list it as one meanwhile.
const KEPT_NS: u64 = 90_000_000_000;

/// Waiting for so long is long.
pub const LONG_NS: u64 = 1_000_000_000;

/// What one process has of the connections.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Owned {
    pub open: u64,
    /// Different ones since the first look.
    pub new: u64,
    /// Those in which received bytes have waited for a second, and no more came or went.
    pub unread: u64,
}

#[derive(Default)]
pub struct Tracker {
    is_begun: bool,
    /// A process and a connection that it has, and when it was last seen.
    seen_by: HashMap<(i32, u32), u64>,
    new_by: BTreeMap<i32, u64>,
    /// The cookies of a connection while it lives, and while it is in TIME_WAIT; and when it was last seen.
    known: HashMap<Key, ([u64; 2], u64)>,
    unaccepted_since: HashMap<u64, u64>,
    unread_since: HashMap<u64, (u32, u32, u64)>,
    segments: HashMap<u64, u32>,
    new: u64,
    requests: u64,
}

impl Tracker {
    /// Reads the connections of these addresses; `sockets` are those that each process has a descriptor of. Returns a look
    /// without processes and listeners, and what each process has.
    pub fn look(
        &mut self,
        addresses: &[String],
        sockets: &BTreeMap<i32, Vec<u32>>,
        now_ns: u64,
    ) -> nix::Result<(Look, BTreeMap<i32, Owned>)> {
        let read = |extra| -> nix::Result<Vec<Connection>> {
            let of_each: Vec<_> =
                addresses.iter().map(|address| connections_of(address, extra)).collect::<Result<_, _>>()?;
            Ok(of_each.into_iter().flatten().collect())
        };
        // Before the first look nobody knows how many there are.
        let first = if self.is_begun { None } else { Some(read(Extra::Nothing)?) };
        let are_many = first.as_ref().map_or(self.segments.len(), Vec::len) > FEW;
        let connections = match first {
            Some(all) if are_many => all,
            _ => read(if are_many { Extra::Nothing } else { Extra::Segments })?,
        };
        let (look, owned) = self.count(&connections, sockets, now_ns);
        Ok((Look { requests: look.requests.filter(|_| !are_many), ..look }, owned))
    }

    fn count(
        &mut self,
        connections: &[Connection],
        sockets: &BTreeMap<i32, Vec<u32>>,
        now_ns: u64,
    ) -> (Look, BTreeMap<i32, Owned>) {
        let (mut seen, mut owners) = (Look { at_ns: now_ns, ..Look::default() }, BTreeMap::new());
        let (mut unaccepted, mut unread, mut segments) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut by_inode: HashMap<u32, bool> = HashMap::new();
        for connection in connections {
            self.count_new(connection, now_ns);
            if !connection.is_alive {
                continue;
            }
            let cookie = connection.cookie;
            seen.open += 1;
            if connection.inode == 0 {
                let since = self.unaccepted_since.get(&cookie).copied().unwrap_or(now_ns);
                seen.unaccepted += 1;
                seen.unaccepted_long += u64::from(now_ns - since >= LONG_NS);
                unaccepted.insert(cookie, since);
                continue;
            }
            let before = self.segments.get(&cookie).copied();
            // A connection's first segment is the connection's own; before the first look nothing is counted.
            let until_now = before.unwrap_or(if self.is_begun { 1 } else { connection.data_segments });
            self.requests += u64::from(connection.data_segments.saturating_sub(until_now));
            segments.insert(cookie, connection.data_segments.max(until_now));
            let mut is_unread_long = false;
            if connection.received > 0 {
                let state = (connection.received, connection.data_segments);
                let since = match self.unread_since.get(&cookie) {
                    Some(&(received, segments, since)) if (received, segments) == state => since,
                    _ => now_ns,
                };
                unread.insert(cookie, (state.0, state.1, since));
                is_unread_long = now_ns - since >= LONG_NS;
            }
            by_inode.insert(connection.inode, is_unread_long);
        }
        (self.unaccepted_since, self.unread_since, self.segments) = (unaccepted, unread, segments);
        for (&pid, inodes) in sockets {
            let owned: &mut Owned = owners.entry(pid).or_default();
            // Its other sockets lead to databases, other workers or the clients of other ports.
            for (inode, is_unread_long) in inodes.iter().filter_map(|inode| by_inode.get_key_value(inode)) {
                if self.seen_by.insert((pid, *inode), now_ns).is_none() && self.is_begun {
                    *self.new_by.entry(pid).or_default() += 1;
                }
                owned.open += 1;
                owned.unread += u64::from(*is_unread_long);
            }
            owned.new = self.new_by.get(&pid).copied().unwrap_or(0);
        }
        let is_kept = |seen_ns: &u64| now_ns - seen_ns < KEPT_NS;
        self.seen_by.retain(|_, seen_ns| is_kept(seen_ns));
        self.known.retain(|_, (_, seen_ns)| is_kept(seen_ns));
        (seen.new, seen.requests) = (self.new, Some(self.requests));
        self.is_begun = true;
        (seen, owners)
    }

    /// A connection goes from its life to TIME_WAIT, where the kernel gives it another cookie.
    fn count_new(&mut self, connection: &Connection, now_ns: u64) {
        let stage = usize::from(!connection.is_alive);
        let (known, seen_ns) = self.known.entry(connection.key).or_default();
        *seen_ns = now_ns;
        let is_known = known[stage] == connection.cookie || (stage == 1 && known[0] != 0 && known[1] == 0);
        if !is_known {
            *known = [0, 0];
            self.new += u64::from(self.is_begun);
        }
        known[stage] = connection.cookie;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn connection(remote: u16, cookie: u64, inode: u32) -> Connection {
        let [local, remote] = [80, remote].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        Connection { key: Key::Tcp(local, remote), cookie, inode, is_alive: true, received: 0, data_segments: 1 }
    }

    struct Seen {
        look: Look,
        owned: BTreeMap<i32, Owned>,
    }

    fn look(tracker: &mut Tracker, connections: &[Connection], sockets: &[(i32, &[u32])], now_ns: u64) -> Seen {
        let sockets = sockets.iter().map(|(pid, inodes)| (*pid, inodes.to_vec())).collect();
        let (look, owned) = tracker.count(connections, &sockets, now_ns);
        Seen { look, owned }
    }

    #[test]
    fn a_connection_is_new_once_for_its_owner_and_once_in_all() {
        let mut tracker = Tracker::default();
        let first = look(&mut tracker, &[connection(1, 11, 101)], &[(7, &[101])], 0);
        assert_eq!((first.look.new, first.owned[&7]), (0, Owned { open: 1, new: 0, unread: 0 }));
        let both = [connection(1, 11, 101), connection(2, 12, 102)];
        for now_ns in [1, 2] {
            let seen = look(&mut tracker, &both, &[(7, &[101]), (8, &[102])], now_ns);
            assert_eq!((seen.look.new, seen.look.open), (1, 2));
            assert_eq!((seen.owned[&7].new, seen.owned[&8].new), (0, 1));
        }
    }

    #[test]
    fn only_connections_of_the_listener_are_new_ones_and_not_other_sockets() {
        let mut tracker = Tracker::default();
        look(&mut tracker, &[], &[(7, &[900])], 0);
        let seen = look(&mut tracker, &[connection(1, 11, 101)], &[(7, &[900, 901, 101])], 1);
        assert_eq!(seen.owned[&7], Owned { open: 1, new: 1, unread: 0 });
    }

    #[test]
    fn what_is_seen_no_more_is_forgotten_and_no_earlier() {
        let mut tracker = Tracker::default();
        look(&mut tracker, &[], &[], 0);
        let one = [connection(1, 11, 101)];
        for (connections, now_ns, new) in
            [(&one[..], 1, 1), (&[], KEPT_NS, 1), (&one, KEPT_NS, 1), (&[], 2 * KEPT_NS, 1), (&one, 2 * KEPT_NS, 2)]
        {
            let seen = look(&mut tracker, connections, &[(7, &[101])], now_ns);
            assert_eq!((seen.look.new, seen.owned[&7].new), (new, new), "{now_ns}");
        }
    }

    #[test]
    fn a_closed_connection_is_the_same_one_and_its_port_may_come_back() {
        let mut tracker = Tracker::default();
        look(&mut tracker, &[], &[], 0);
        let closed = |cookie| Connection { is_alive: false, inode: 0, ..connection(1, cookie, 0) };
        let stages = [connection(1, 11, 101), closed(21), closed(21), connection(1, 12, 103), closed(22), closed(23)];
        let new = stages.map(|stage| look(&mut tracker, &[stage], &[], 1).look.new);
        assert_eq!(new, [1, 1, 1, 2, 2, 3]);
    }

    #[test]
    fn what_waits_for_a_second_is_counted_until_something_moves() {
        let mut tracker = Tracker::default();
        let mut at = |unread, segments, ms: u64| {
            let unaccepted = connection(1, 11, 0);
            let held = Connection { received: unread, data_segments: segments, ..connection(2, 12, 102) };
            let seen = look(&mut tracker, &[unaccepted, held], &[(7, &[102])], ms * 1_000_000);
            (seen.look.unaccepted, seen.look.unaccepted_long, seen.owned[&7].unread)
        };
        assert_eq!(at(5, 1, 0), (1, 0, 0));
        assert_eq!(at(5, 1, 999), (1, 0, 0));
        assert_eq!(at(5, 1, 1000), (1, 1, 1));
        assert_eq!(at(5, 2, 1100), (1, 1, 0));
    }

    #[test]
    fn requests_are_the_segments_behind_a_connections_first() {
        let mut tracker = Tracker::default();
        let old = |data_segments| Connection { data_segments, ..connection(1, 11, 101) };
        let new = |data_segments| Connection { data_segments, ..connection(2, 12, 102) };
        assert_eq!(look(&mut tracker, &[old(100)], &[], 0).look.requests, Some(0));
        assert_eq!(look(&mut tracker, &[old(103), new(2)], &[], 1).look.requests, Some(4));
        assert_eq!(look(&mut tracker, &[old(103), new(2)], &[], 2).look.requests, Some(4));
    }
}
