//! Each finding, from a recorded look.
