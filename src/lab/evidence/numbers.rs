//! How numbers are printed wherever a row is shown: in tables, claims and answers.

use crate::stats::Summary;
use crate::units::grouped;

/// `median [low, high]`, or one number when all three print the same.
pub fn spread(summary: &Summary, print: impl Fn(f64) -> String) -> String {
    let [median, low, high] = [summary.median, summary.low, summary.high].map(print);
    if low == median && high == median { median } else { format!("{median} [{low}, {high}]") }
}

/// Whole numbers with thousands separated.
pub fn count(value: f64) -> String {
    let text = grouped(value.abs().round_ties_even() as u64);
    if value.round() < 0.0 { format!("−{text}") } else { text }
}

/// Three significant digits as far as they matter.
pub fn real(value: f64) -> String {
    let magnitude = value.abs();
    let text = match magnitude {
        _ if magnitude >= 100.0 => return count(value),
        _ if magnitude >= 10.0 => format!("{magnitude:.1}"),
        _ if magnitude >= 1.0 || magnitude == 0.0 => format!("{magnitude:.2}"),
        _ if magnitude >= 0.001 => format!("{magnitude:.3}"),
        _ => return "<0.001".to_string(),
    };
    if value < 0.0 { format!("−{text}") } else { text }
}

pub fn probability(value: f64) -> String {
    if value < 0.001 { "<0.001".to_string() } else { real(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_printed_as_far_as_they_matter() {
        assert_eq!([count(0.0), count(999.6), count(1234567.0)], ["0", "1,000", "1,234,567"]);
        assert_eq!([real(0.98765), real(1.0), real(12.34), real(-1234.5)], ["0.988", "1.00", "12.3", "−1,234"]);
        assert_eq!(real(1e-9), "<0.001");
    }
}
