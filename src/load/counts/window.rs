//! The measured window, and when one request was due, sent and answered in it; by the monotonic clock.

#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Start of the schedule, and of the warm-up.
    pub start_ns: u64,
    pub open_ns: u64,
    /// `u64::MAX` as long as a number of requests, or Ctrl-C, is still to end it.
    pub close_ns: u64,
}

impl Window {
    /// Zero when the run was stopped before the window opened.
    pub fn duration_ns(&self) -> u64 {
        self.close_ns.saturating_sub(self.open_ns)
    }

    pub fn contains(&self, at_ns: u64) -> bool {
        (self.open_ns..self.close_ns).contains(&at_ns)
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Timestamps {
    pub due_ns: u64,
    /// `None` when it never was.
    pub sent_ns: Option<u64>,
    pub first_byte_ns: Option<u64>,
    /// Answered, failed or given up.
    pub end_ns: u64,
}

impl Timestamps {
    pub fn unsent(due_ns: u64, end_ns: u64) -> Timestamps {
        Timestamps { due_ns, sent_ns: None, first_byte_ns: None, end_ns }
    }

    pub fn send_delay_ns(&self) -> Option<u64> {
        self.sent_ns.map(|sent_ns| sent_ns.saturating_sub(self.due_ns))
    }
}
