//! The open connections of an event loop: found by their key, and listed in the order in which they fell silent.
//!
//! All time-outs of a loop are equally long, so the list stays in order when a connection moves to its end whenever it
//! does something: no heap, no timer per connection, no allocation.

use crate::slots::{SlotKey, Slots};

const NONE: SlotKey = u64::MAX;

struct Entry<C> {
    connection: C,
    last_active_ns: u64,
    /// The neighbours in the list.
    earlier: SlotKey,
    later: SlotKey,
    /// Registered with epoll; a connection that is served at once and closed never is.
    is_watched: bool,
}

pub struct ConnectionTable<C> {
    entries: Slots<Entry<C>>,
    /// The connection that has been silent for longest, and the one that was active last.
    first: SlotKey,
    last: SlotKey,
}

impl<C> Default for ConnectionTable<C> {
    fn default() -> ConnectionTable<C> {
        ConnectionTable { entries: Slots::default(), first: NONE, last: NONE }
    }
}

impl<C> ConnectionTable<C> {
    pub fn count(&self) -> usize {
        self.entries.count()
    }

    pub fn insert(&mut self, connection: C, now_ns: u64) -> SlotKey {
        let entry = Entry { connection, last_active_ns: now_ns, earlier: NONE, later: NONE, is_watched: false };
        let key = self.entries.insert(entry);
        self.append(key);
        key
    }

    pub fn remove(&mut self, key: SlotKey) -> Option<C> {
        self.unlink(key);
        self.entries.remove(key).map(|entry| entry.connection)
    }

    pub fn get_mut(&mut self, key: SlotKey) -> Option<&mut C> {
        self.entries.get_mut(key).map(|entry| &mut entry.connection)
    }

    /// True the first time: the caller is to register the connection.
    pub fn set_watched(&mut self, key: SlotKey) -> bool {
        self.entries.get_mut(key).is_some_and(|entry| !std::mem::replace(&mut entry.is_watched, true))
    }

    pub fn is_watched(&self, key: SlotKey) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.is_watched)
    }

    /// The connection has done something: it goes to the end of the list.
    pub fn touch(&mut self, key: SlotKey, now_ns: u64) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.last_active_ns = now_ns;
        if self.last != key {
            self.unlink(key);
            self.append(key);
        }
    }

    /// Those that were active last, at `from_ns`, were so until `to_ns`.
    pub fn extend_activity(&mut self, from_ns: u64, to_ns: u64) {
        let mut key = self.last;
        while let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.last_active_ns == from_ns) {
            entry.last_active_ns = to_ns;
            key = entry.earlier;
        }
    }

    /// The connection that has been silent for longest, and since when.
    pub fn longest_idle(&self) -> Option<(SlotKey, u64)> {
        self.entries.get(self.first).map(|entry| (self.first, entry.last_active_ns))
    }

    pub fn keys(&self) -> Vec<SlotKey> {
        self.entries.keys()
    }

    fn append(&mut self, key: SlotKey) {
        let last = std::mem::replace(&mut self.last, key);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.earlier = last;
            entry.later = NONE;
        }
        match self.entries.get_mut(last) {
            Some(before) => before.later = key,
            None => self.first = key,
        }
    }

    fn unlink(&mut self, key: SlotKey) {
        let Some(&Entry { earlier, later, .. }) = self.entries.get(key) else { return };
        match self.entries.get_mut(earlier) {
            Some(before) => before.later = later,
            None => self.first = later,
        }
        match self.entries.get_mut(later) {
            Some(after) => after.earlier = earlier,
            None => self.last = earlier,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_connection_is_at_the_front() {
        let mut table = ConnectionTable::default();
        let keys: Vec<_> = (0..4).map(|now_ns| table.insert('c', now_ns)).collect();
        assert_eq!(table.longest_idle(), Some((keys[0], 0)));
        table.touch(keys[0], 10);
        table.touch(keys[2], 11);
        assert_eq!(table.longest_idle(), Some((keys[1], 1)));
        table.remove(keys[1]);
        assert_eq!(table.longest_idle(), Some((keys[3], 3)));
        table.remove(keys[3]);
        assert_eq!(table.longest_idle(), Some((keys[0], 10)));
        table.touch(keys[2], 12);
        table.touch(keys[0], 12);
        table.extend_activity(12, 20);
        table.remove(keys[2]);
        assert_eq!(table.longest_idle(), Some((keys[0], 20)));
        table.remove(keys[0]);
        assert_eq!((table.longest_idle(), table.count()), (None, 0));
    }
}
