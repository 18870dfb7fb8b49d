//! Whether a process that ended starts again: now, after a pause, or never.
