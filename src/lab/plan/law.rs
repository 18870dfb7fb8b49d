//! Laws: how many answers per second theory allows, as a formula over five letters. [`EXPLANATION`] is what
//! `lab explain` prints about them.

use crate::lab::plan::command::{ClientCommand, ServerCommand};
use crate::phased_loop::args::DEFAULT_THREADS;

pub const EXPLANATION: &str = "\
Laws (written in a matrix as `law = \"min(M,C)/N\"`)

  A law is X/N: X requests are worked on at the same time, and each takes N seconds. No server with this
  architecture can answer more requests per second. It answers exactly so many when no worker is ever
  idle while a request waits.

  N: seconds of work per request, from --work (of a mixture: the mean)
  X: 1, M, C, H, P, or the smallest of several, such as min(M,C)
     M: workers, from --workers, else the number of CPUs
     H: helper threads, from --pool, else 4
     C: clients, from --connections
     P: CPUs the server may use

  Example: 3 workers, 8 clients, 10 ms of work: min(3,8) / 0.010 s = 300 requests per second.";

/// A parsed law: the letters whose smallest value is X.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Law {
    terms: Vec<char>,
}

impl Law {
    pub fn parse(text: &str) -> Result<Law, String> {
        let numerator = text.strip_suffix("/N").unwrap_or_default();
        let letters = numerator.strip_prefix("min(").and_then(|rest| rest.strip_suffix(')')).unwrap_or(numerator);
        let letter = |term: &str| term.parse().ok().filter(|letter| "1MCHP".contains(*letter));
        let terms = letters.split(',').map(letter).collect::<Option<Vec<char>>>().ok_or_else(|| {
            format!("{text:?} is not a law; write 1/N, M/N, C/N, H/N, P/N or the smallest of several, like min(M,C)/N")
        })?;
        Ok(Law { terms })
    }

    /// Answers per second by the law, for these command lines; `None` when a letter has no value in them.
    pub fn predict(&self, server: &ServerCommand, client: &ClientCommand, server_cpus: usize) -> Option<f64> {
        let value = |letter: &char| match letter {
            'M' => Some(server.workers.unwrap_or(server_cpus) as f64),
            'C' => client.connections.map(|connections| connections as f64),
            'H' => Some(server.pool.unwrap_or(DEFAULT_THREADS) as f64),
            'P' => Some(server_cpus as f64),
            _ => Some(1.0),
        };
        let values = self.terms.iter().map(value).collect::<Option<Vec<f64>>>()?;
        let seconds = server.work.as_ref()?.mean_s();
        (seconds > 0.0).then_some(values.into_iter().fold(f64::INFINITY, f64::min) / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFORK: &str = "prefork --workers 3 --work block:10ms";
    const EIGHT: &str = "loadgen --connections 8";

    fn predict(law: &str, server: &str, client: &str) -> Option<f64> {
        Law::parse(law).unwrap().predict(&server.to_string().into(), &client.to_string().into(), 2)
    }

    #[test]
    fn each_law_takes_its_letters_from_the_command_lines() {
        let law = |text: &str| predict(text, PREFORK, EIGHT).unwrap();
        assert_eq!(law("1/N"), 100.0);
        assert_eq!(law("M/N"), 300.0);
        assert_eq!(law("C/N"), 800.0);
        assert_eq!(law("min(M,C)/N"), 300.0);
        assert_eq!(law("min(M,C,P)/N"), 200.0);
        assert_eq!(predict("min(H,C)/N", "event-loop --work block:10ms", EIGHT), Some(400.0));
        assert_eq!(predict("min(H,C)/N", "event-loop --pool 6 --work block:10ms", EIGHT), Some(600.0));
    }

    #[test]
    fn an_unknown_law_is_refused() {
        for bad in ["", "N", "2/N", "1/M", "min()/N", "min(M/N", "MC/N", "min(M,Q)/N"] {
            assert!(Law::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_mixture_costs_its_mean() {
        let promised = predict("1/N", "event-driven --work 90%none,10%block:5ms", EIGHT).unwrap();
        assert!((promised - 2000.0).abs() < 1e-6, "{promised}");
    }

    #[test]
    fn work_that_costs_nothing_has_no_law() {
        assert_eq!(predict("1/N", "sync --work none", EIGHT), None);
        assert_eq!(predict("1/N", "sync", EIGHT), None);
    }
}
