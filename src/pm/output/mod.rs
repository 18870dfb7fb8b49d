//! What a person reads: pure, from the entries of `jlist`. [`list`]: all processes in a table; [`describe`]: one of them;
//! [`monit`]: what they use now, and the logs of one, on a full screen.

pub mod describe;
pub mod list;
pub mod monit;

pub use describe::describe;
pub use list::list;
pub use monit::MonitView;

/// A duration in its largest whole unit, as PM2 shows it: `12s`, `5m`, `3h`, `2D`.
fn age(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86_400 => format!("{}h", seconds / 3600),
        seconds => format!("{}D", seconds / 86_400),
    }
}

fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1000.0 { format!("{mib:.1} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}
