//! The rates of a `--sweep`: `1000..20000`, `1000..20000:5`.

use std::str::FromStr;

use crate::load::schedule::Rate;

/// Rates from the lowest to the highest in equal steps: what bends near the capacity shows as a bend. (In equal ratios
/// half of the points would lie far below it, where nothing happens.)
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    pub rates_per_s: Vec<f64>,
}

const STEPS: u32 = 10;

impl FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Sweep, String> {
        let shape = || format!("{text:?} is not a sweep; write it like 1000..20000 or 1000..20000:5");
        let (range, steps) = match text.split_once(':') {
            Some((range, steps)) => (range, steps.parse().map_err(|_| shape())?),
            None => (text, STEPS),
        };
        let (from, to) = range.split_once("..").ok_or_else(shape)?;
        let (from, to) = (from.parse::<Rate>()?.per_s(), to.parse::<Rate>()?.per_s());
        if !(2..=1000).contains(&steps) {
            return Err(format!("{text}: a sweep has from 2 to 1000 steps"));
        }
        if from >= to {
            return Err(format!("{text}: a sweep goes up, from the lower rate to the higher"));
        }
        let rate = |i| from + (to - from) * f64::from(i) / f64::from(steps - 1);
        Ok(Sweep { rates_per_s: (0..steps).map(rate).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_is_read_in_equal_steps() {
        let rates = |text: &str| text.parse::<Sweep>().unwrap().rates_per_s;
        assert_eq!(rates("1000..2000:5"), [1000.0, 1250.0, 1500.0, 1750.0, 2000.0]);
        assert_eq!(rates("1..10").len(), 10);
        for bad in ["", "5", "5..", "..5", "5..1", "5..5", "1..5:1", "1..5:0", "1..5:x", "1..5:1001", "a..b", "0..5"] {
            assert!(bad.parse::<Sweep>().is_err(), "{bad:?} was accepted");
        }
    }
}
