//! Values under keys that a report or a timer can carry. A place is used again for a new value with a new generation,
//! so the key of a removed value finds nothing.

/// A generation and a place, in 63 bits.
pub type SlotKey = u64;

const PLACE_BITS: u32 = 31;

pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

struct Slot<T> {
    value: Option<T>,
    generation: u32,
}

impl<T> Default for Slots<T> {
    fn default() -> Slots<T> {
        Slots { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn insert(&mut self, value: T) -> SlotKey {
        let place = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { value: None, generation: 0 });
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[place as usize];
        slot.value = Some(value);
        slot.generation = slot.generation.wrapping_add(1);
        key(slot.generation, place)
    }

    pub fn get(&self, key: SlotKey) -> Option<&T> {
        let slot = self.slots.get(place(key))?;
        slot.value.as_ref().filter(|_| slot.generation == generation(key))
    }

    pub fn get_mut(&mut self, key: SlotKey) -> Option<&mut T> {
        let slot = self.slots.get_mut(place(key))?;
        slot.value.as_mut().filter(|_| slot.generation == generation(key))
    }

    pub fn remove(&mut self, key: SlotKey) -> Option<T> {
        self.get(key)?;
        self.free.push(place(key) as u32);
        self.slots[place(key)].value.take()
    }

    pub fn keys(&self) -> Vec<SlotKey> {
        let used = self.slots.iter().zip(0..).filter(|(slot, _)| slot.value.is_some());
        used.map(|(slot, place)| key(slot.generation, place)).collect()
    }
}

fn key(generation: u32, place: u32) -> SlotKey {
    u64::from(generation) << PLACE_BITS | u64::from(place)
}

fn place(key: SlotKey) -> usize {
    (key & ((1 << PLACE_BITS) - 1)) as usize
}

fn generation(key: SlotKey) -> u32 {
    (key >> PLACE_BITS) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_used_again_has_another_key() {
        let mut slots = Slots::default();
        let before = slots.insert('a');
        assert_eq!((slots.remove(before), slots.remove(before)), (Some('a'), None));
        let after = slots.insert('b');
        assert_eq!((slots.get(before), slots.get(after), slots.count()), (None, Some(&'b'), 1));
        assert_eq!(slots.keys(), [after]);
    }

    #[test]
    fn keys_leave_the_highest_bit_free() {
        let last = key(u32::MAX, (1 << PLACE_BITS) - 1);
        assert_eq!(last, u64::MAX >> 1);
        assert_eq!((generation(last), place(last)), (u32::MAX, (1 << PLACE_BITS) - 1));
    }
}
