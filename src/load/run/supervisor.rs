//! The main thread while the others measure: it watches the clock, the signals and the threads, announces the
//! phases, and takes the CPU time at both ends of the measured window.

use std::io::IsTerminal;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::console;
use crate::failure::Failure;
use crate::load::client::control::{RunControl, ThreadStatus};
use crate::load::counts::window::Window;
use crate::load::options::plan::Progress;
use crate::load::run::observers::Observers;
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::process::Usage;
use crate::units::monotonic_ns;

const PROGRESS_FROM_NS: u64 = 2_000_000_000;
const PROGRESS_EVERY_NS: u64 = 1_000_000_000;
const SIGNAL: u64 = 0;
const THREAD: u64 = 1;

pub struct Supervisor<'a> {
    control: &'a RunControl,
    signals: SignalFd,
    epoll: Epoll,
    announces_phases: bool,
    /// Standard error is a terminal, so a person may be waiting in front of it.
    shows_progress: bool,
    marks: u64,
}

impl<'a> Supervisor<'a> {
    /// Blocks SIGINT and SIGTERM for this thread and all it starts: from here on they are read from a descriptor.
    pub fn new(control: &'a RunControl, progress: Progress) -> nix::Result<Supervisor<'a>> {
        let ends: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
        ends.thread_block()?;
        let signals = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let epoll = Epoll::new(2)?;
        epoll.add(&signals, SIGNAL, Interest::EPOLLIN)?;
        epoll.add(&control.thread_event, THREAD, Interest::EPOLLIN)?;
        let shows_progress = progress == Progress::Auto && std::io::stderr().is_terminal();
        let announces_phases = progress == Progress::Phases;
        Ok(Supervisor { control, signals, epoll, announces_phases, shows_progress, marks: 0 })
    }

    pub fn announce(&self, phase: &str) {
        if self.announces_phases {
            console::log(format_args!("phase {phase}"));
        }
    }

    /// Whether the run is to end; reads the signals that came.
    pub fn is_interrupted(&self) -> bool {
        while let Ok(Some(_)) = self.signals.read_signal() {
            self.control.interrupt(monotonic_ns());
        }
        self.control.stopped_at_ns().is_some()
    }

    pub fn await_ready(&mut self, threads: u64) -> Result<(), Failure> {
        while self.marks < threads {
            self.wait(None)?;
        }
        Ok(())
    }

    /// Waits until all threads are done. Returns the window as it became, and the CPU time spent in it.
    pub fn await_done(
        &mut self,
        threads: u64,
        mut window: Window,
        observers: &mut Observers,
    ) -> Result<(Window, Usage), Failure> {
        let (mut cpu_at_open, mut cpu_at_close) = (None, None);
        if window.open_ns > window.start_ns {
            self.announce("warmup");
        }
        let mut progress_ns = window.start_ns + PROGRESS_EVERY_NS;
        let mut observers_ns = observers.next_ns(window.start_ns);
        loop {
            let now_ns = monotonic_ns();
            window.close_ns = window.close_ns.min(self.control.stopped_at_ns().unwrap_or(u64::MAX));
            if cpu_at_open.is_none() && now_ns >= window.open_ns && window.open_ns < window.close_ns {
                cpu_at_open = Some(Usage::of_process());
                self.announce("measure");
            }
            if cpu_at_close.is_none() && now_ns >= window.close_ns {
                cpu_at_close = Some(Usage::of_process());
                self.announce("drain");
            }
            // Only now: a short run may be done before this thread first looks, and had its phases too.
            if self.marks == ThreadStatus::MARKS * threads {
                break;
            }
            if now_ns >= progress_ns {
                self.show_progress(now_ns, &window);
                progress_ns += PROGRESS_EVERY_NS;
            }
            if now_ns >= observers_ns {
                if observers.observe(&window) {
                    self.control.interrupt(now_ns);
                }
                observers_ns = observers.next_ns(now_ns);
            }
            let ahead =
                [window.open_ns, window.close_ns, progress_ns, observers_ns].into_iter().filter(|&at| at > now_ns);
            self.wait(ahead.min().map(|at_ns| Duration::from_nanos(at_ns - now_ns)))?;
        }
        if cpu_at_close.is_none() {
            // A number of requests ended the window, and the threads with it.
            self.announce("drain");
        }
        if self.shows_progress {
            console::redraw("\r\x1b[K");
        }
        let now = Usage::of_process();
        Ok((window, cpu_at_close.unwrap_or(now).cpu_since(&cpu_at_open.unwrap_or(now))))
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Failure> {
        let failed = |errno| Failure::new("wait for the threads", errno).advise("does a sandbox forbid epoll_wait(2)?");
        for i in 0..self.epoll.wait(timeout).map_err(failed)? {
            match self.epoll.report(i).token {
                THREAD => self.marks += self.control.thread_event.read().unwrap_or(0),
                _ => _ = self.is_interrupted(),
            }
        }
        Ok(())
    }

    fn show_progress(&self, now_ns: u64, window: &Window) {
        let end_ns = window.close_ns;
        if !self.shows_progress || end_ns.saturating_sub(window.start_ns) <= PROGRESS_FROM_NS {
            return;
        }
        let seconds = |ns: u64| (ns as f64 / 1e9).round();
        let elapsed_s = seconds(now_ns - window.start_ns);
        let what = match now_ns {
            now_ns if now_ns < window.open_ns => "warming up",
            now_ns if now_ns < end_ns => "measuring",
            _ => "waiting for the last answers",
        };
        let of = match end_ns {
            u64::MAX => String::new(),
            end_ns => format!(" of {} s", seconds(end_ns - window.start_ns)),
        };
        // Carriage return and "erase to the end of the line" (ECMA-48, EL): the line replaces itself.
        console::redraw(&format!("\r\x1b[K{what}: {elapsed_s} s{of}"));
    }
}
