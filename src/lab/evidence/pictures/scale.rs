//! From values to pixels.

use crate::lab::evidence::pictures::svg::{Anchor, Svg};
use crate::units::grouped;

/// A linear or a logarithmic scale between two places.
pub struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    is_log: bool,
}

impl Scale {
    /// For these values. A linear scale begins at 0; a logarithmic one puts what is 0 one decade below the smallest
    /// value.
    pub fn new(values: impl Iterator<Item = f64> + Clone, is_log: bool, from: f64, to: f64) -> Scale {
        let high = values.clone().fold(0.0, f64::max);
        if !is_log {
            let high = if high > 0.0 { high } else { 1.0 };
            return Scale { low: 0.0, high: top(high), from, to, is_log };
        }
        let smallest = values.clone().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
        let smallest = if smallest.is_finite() { smallest } else { 1.0 };
        let has_zero = values.clone().any(|value| value <= 0.0);
        let low = if has_zero { smallest / 10.0 } else { smallest };
        // A scale of one value has room around it.
        Scale { low, high: if high > low { high } else { 10.0 * low }, from, to, is_log }
    }

    /// For places rather than amounts: a linear scale, too, begins at the smallest value.
    pub fn of_places(values: impl Iterator<Item = f64> + Clone, is_log: bool, from: f64, to: f64) -> Scale {
        let scale = Scale::new(values.clone(), is_log, from, to);
        let [low, high] = [values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max)];
        if is_log || low >= high { scale } else { Scale { low, high, ..scale } }
    }

    pub fn at(&self, value: f64) -> f64 {
        let share = match self.is_log {
            true => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        self.from + share * (self.to - self.from)
    }

    /// Round values, at most eight of them.
    pub fn ticks(&self) -> Vec<f64> {
        if !self.is_log {
            let step = step(self.high);
            return (0..).map(|i| f64::from(i) * step).take_while(|value| *value <= self.high * 1.0001).collect();
        }
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        let within = |value: &f64| *value >= self.low * 0.999 && *value <= self.high * 1.001;
        let factors: &[f64] =
            if decades.clone().count() <= 3 || self.high < 100.0 * self.low { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let all = decades.flat_map(|exponent| factors.iter().map(move |factor| factor * 10f64.powi(exponent)));
        all.filter(within).collect()
    }
}

/// 1, 2 or 5 times a power of ten, so that there are four to eight steps.
fn step(high: f64) -> f64 {
    let power = 10f64.powf((high / 4.0).log10().floor());
    let factor = [5.0, 2.0].into_iter().find(|factor| factor * power <= high / 4.0).unwrap_or(1.0);
    factor * power
}

/// The next step above the largest value, so that no dot touches the edge.
fn top(high: f64) -> f64 {
    let step = step(high);
    (high / step).ceil() * step
}

/// A line and a value for each tick of an upright scale.
pub fn grid(svg: &mut Svg, y: &Scale, (left, right): (f64, f64)) {
    for tick in y.ticks() {
        svg.line((left, y.at(tick)), (right, y.at(tick)), "grid");
        svg.text((left - 8.0, y.at(tick) + 4.0), Anchor::End, "soft small", &label(tick));
    }
}

/// A value below or beside a scale.
pub fn label(value: f64) -> String {
    if value >= 1000.0 {
        return grouped(value.round() as u64);
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_scale_begins_at_zero_and_has_round_steps() {
        let scale = Scale::new([3.0, 298.6].into_iter(), false, 0.0, 300.0);
        assert_eq!(scale.ticks(), [0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0]);
        assert_eq!((scale.at(0.0), scale.at(150.0)), (0.0, 150.0));
    }

    #[test]
    fn a_logarithmic_scale_shows_zero_below_everything() {
        let scale = Scale::new([0.0, 100.0, 10_000.0].into_iter(), true, 0.0, 300.0);
        assert_eq!(scale.at(0.0), 0.0);
        assert!((scale.at(100.0) - 100.0).abs() < 1e-9);
        assert_eq!(scale.ticks().len(), 4);
    }

    #[test]
    fn no_value_is_a_scale_all_the_same() {
        for is_log in [false, true] {
            let scale = Scale::new([0.0].into_iter(), is_log, 0.0, 1.0);
            assert!(scale.at(0.0).is_finite() && !scale.ticks().is_empty());
        }
    }

    #[test]
    fn labels_have_no_digits_that_say_nothing() {
        assert_eq!([label(0.0), label(0.5), label(250.0), label(12_000.0)], ["0", "0.5", "250", "12,000"]);
    }
}
