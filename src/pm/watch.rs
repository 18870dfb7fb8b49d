//! Files that changed.
