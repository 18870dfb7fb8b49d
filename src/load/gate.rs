//! A condition on the result: `p99<5ms`, `errors>0`. It is text on the command line and a yes or no on a report.

use std::str::FromStr;

/// One comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    pub text: String,
}

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Gate, String> {
        Ok(Gate { text: text.into() })
    }
}
