//! The open connections of an event loop: found by their number, and listed in the order in which they fell silent.
//!
//! All time-outs of a loop are equally long, so the list stays in order when a connection moves to its end whenever it
//! does something: no heap, no timer per connection, no allocation.

use super::connection::Connection;

const NONE: u32 = u32::MAX;

/// The number of an open connection. Numbers are used again; [`Table::generation`] tells the users apart.
pub type Number = u32;

struct Place {
    connection: Option<Connection>,
    /// Counts the connections that have had this number.
    generation: u32,
    last_active_ns: u64,
    /// The neighbours in the list; a free place has its successor in the list of free places in `later`.
    earlier: u32,
    later: u32,
    /// Registered with epoll; a connection that is served at once and closed never is.
    watched: bool,
}

/// Connections by number, and in the order of their last activity.
pub struct Table {
    places: Vec<Place>,
    first_free: u32,
    /// The connection that has been silent for longest, and the one that was active last.
    first: u32,
    last: u32,
    open: usize,
}

impl Table {
    pub fn len(&self) -> usize {
        self.open
    }

    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    pub fn insert(&mut self, connection: Connection, now_ns: u64) -> Number {
        if self.first_free == NONE {
            self.first_free = self.places.len() as u32;
            self.places.push(Place {
                connection: None,
                generation: 0,
                last_active_ns: 0,
                earlier: NONE,
                later: NONE,
                watched: false,
            });
        }
        let number = self.first_free;
        let place = &mut self.places[number as usize];
        self.first_free = place.later;
        place.connection = Some(connection);
        place.generation = place.generation.wrapping_add(1);
        place.watched = false;
        place.last_active_ns = now_ns;
        self.open += 1;
        self.append(number);
        number
    }

    pub fn remove(&mut self, number: Number) -> Option<Connection> {
        let connection = self.places[number as usize].connection.take()?;
        self.unlink(number);
        self.places[number as usize].later = self.first_free;
        self.first_free = number;
        self.open -= 1;
        Some(connection)
    }

    pub fn get_mut(&mut self, number: Number) -> Option<&mut Connection> {
        self.places.get_mut(number as usize)?.connection.as_mut()
    }

    pub fn generation(&self, number: Number) -> u32 {
        self.places[number as usize].generation
    }

    /// True the first time: the caller is to register the connection.
    pub fn set_watched(&mut self, number: Number) -> bool {
        !std::mem::replace(&mut self.places[number as usize].watched, true)
    }

    pub fn is_watched(&self, number: Number) -> bool {
        self.places[number as usize].watched
    }

    /// The connection has done something: it goes to the end of the list.
    pub fn touch(&mut self, number: Number, now_ns: u64) {
        self.places[number as usize].last_active_ns = now_ns;
        if self.last != number {
            self.unlink(number);
            self.append(number);
        }
    }

    /// The connection that has been silent for longest, and since when.
    pub fn longest_idle(&self) -> Option<(Number, u64)> {
        self.places.get(self.first as usize).map(|place| (self.first, place.last_active_ns))
    }

    /// The numbers of all open connections.
    pub fn numbers(&self) -> Vec<Number> {
        let is_open = |&number: &u32| self.places[number as usize].connection.is_some();
        (0..self.places.len() as u32).filter(is_open).collect()
    }

    fn append(&mut self, number: Number) {
        let last = std::mem::replace(&mut self.last, number);
        let place = &mut self.places[number as usize];
        (place.earlier, place.later) = (last, NONE);
        match self.places.get_mut(last as usize) {
            Some(before) => before.later = number,
            None => self.first = number,
        }
    }

    fn unlink(&mut self, number: Number) {
        let (earlier, later) = (self.places[number as usize].earlier, self.places[number as usize].later);
        match self.places.get_mut(earlier as usize) {
            Some(before) => before.later = later,
            None => self.first = later,
        }
        match self.places.get_mut(later as usize) {
            Some(after) => after.earlier = earlier,
            None => self.last = earlier,
        }
    }
}

impl Default for Table {
    fn default() -> Table {
        Table { places: Vec::new(), first_free: NONE, first: NONE, last: NONE, open: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn connection() -> Connection {
        Connection::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()))
    }

    #[test]
    fn the_longest_idle_connection_is_at_the_front() {
        let mut table = Table::default();
        let numbers: Vec<_> = (0..4).map(|now_ns| table.insert(connection(), now_ns)).collect();
        assert_eq!(table.longest_idle(), Some((numbers[0], 0)));
        table.touch(numbers[0], 10);
        table.touch(numbers[2], 11);
        assert_eq!(table.longest_idle(), Some((numbers[1], 1)));
        table.remove(numbers[1]);
        assert_eq!(table.longest_idle(), Some((numbers[3], 3)));
        table.remove(numbers[3]);
        assert_eq!(table.longest_idle(), Some((numbers[0], 10)));
        table.remove(numbers[0]);
        table.remove(numbers[2]);
        assert_eq!((table.longest_idle(), table.len()), (None, 0));
    }

    #[test]
    fn a_number_used_again_has_another_generation() {
        let mut table = Table::default();
        let number = table.insert(connection(), 0);
        let before = table.generation(number);
        table.remove(number);
        assert_eq!(table.insert(connection(), 1), number);
        assert_ne!(table.generation(number), before);
    }
}
