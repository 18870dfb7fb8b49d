//! One value of a configuration, as people write it: `"300M"`, `"3s"`, `"max"`, `"a 'b c'"`. An error says what it is not.

use std::time::Duration;

use serde_json::Value;

use crate::units::parse_duration;

type Read<T> = Result<T, String>;

fn refuse<T>(value: &Value, expected: &str) -> Read<T> {
    Err(format!("{value} is not {expected}"))
}

/// A text; a number counts as its digits.
pub fn text(value: &Value) -> Read<String> {
    match value {
        Value::String(text) if text.contains('\0') => refuse(value, "a text without NUL"),
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => refuse(value, "a text"),
    }
}

pub fn yes_or_no(value: &Value) -> Read<bool> {
    match value {
        Value::Bool(yes) => Ok(*yes),
        Value::String(text) if text == "true" => Ok(true),
        Value::String(text) if text == "false" => Ok(false),
        _ => refuse(value, "true or false"),
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        // JavaScript and TOML write a whole number as 2.0 as well.
        Value::Number(number) => number.as_i64().or_else(|| {
            let float = number.as_f64()?;
            (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i64)
        }),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// A count, at least 0.
pub fn count(value: &Value) -> Read<u64> {
    match integer(value) {
        Some(number @ 0..) => Ok(number as u64),
        _ => refuse(value, "a whole number from 0"),
    }
}

/// Milliseconds as a number, or a text with a unit such as `3s`.
pub fn duration(value: &Value) -> Read<Duration> {
    let read = match value {
        Value::Number(number) => parse_duration(&format!("{number}ms")),
        Value::String(text) if text.trim().bytes().all(|byte| byte.is_ascii_digit()) => {
            parse_duration(&format!("{}ms", text.trim()))
        }
        Value::String(text) => parse_duration(text.trim()),
        _ => Err(String::new()),
    };
    read.or_else(|_| refuse(value, "a duration; write milliseconds as a number, or a text like \"3s\""))
}

/// Bytes as a number, or a text with a unit such as `300M`, in powers of 1024.
pub fn size(value: &Value) -> Read<u64> {
    let expected = "a size; write bytes as a number, or a text like \"300M\"";
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim().to_ascii_uppercase(),
        _ => return refuse(value, expected),
    };
    let number = text.trim_end_matches('B').trim_end_matches('I');
    let (number, bytes) = match number.as_bytes().last() {
        Some(b'K') => (&number[..number.len() - 1], 1u64 << 10),
        Some(b'M') => (&number[..number.len() - 1], 1 << 20),
        Some(b'G') => (&number[..number.len() - 1], 1 << 30),
        _ => (number, 1),
    };
    match number.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number * (bytes as f64) < 1e18 => Ok((number * bytes as f64) as u64),
        _ => refuse(value, expected),
    }
}

/// How many processes on so many CPUs: a number, `max` or 0 for one on each CPU, −1 for one less.
pub fn instances(value: &Value, cpus: usize) -> Read<usize> {
    match integer(value) {
        _ if value == "max" => Ok(cpus),
        Some(0) => Ok(cpus),
        Some(number @ 1..=10_000) => Ok(number as usize),
        Some(number @ -10_000..0) => Ok(cpus.saturating_sub(-number as usize).max(1)),
        _ => refuse(value, "a number of processes; write 1 to 10000, \"max\", or -1 for all CPUs but one"),
    }
}

/// A list of texts; one text is a list of one.
pub fn texts(value: &Value) -> Read<Vec<String>> {
    match value {
        Value::Array(items) => items.iter().map(text).collect(),
        _ => Ok(vec![text(value).or_else(|_| refuse(value, "a list of texts"))?]),
    }
}

/// A list of texts, or one text that is split as a shell splits it; nothing in it is expanded.
pub fn words(value: &Value) -> Read<Vec<String>> {
    match value {
        Value::String(text) => {
            shell_words::split(text).or_else(|_| refuse(value, "closed: a quotation mark is missing"))
        }
        _ => texts(value),
    }
}

/// Exit statuses: a list or one.
pub fn statuses(value: &Value) -> Read<Vec<i32>> {
    let status = |value: &Value| match integer(value) {
        Some(status @ 0..=255) => Ok(status as i32),
        _ => refuse(value, "an exit status from 0 to 255"),
    };
    match value {
        Value::Array(items) => items.iter().map(status).collect(),
        _ => Ok(vec![status(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_are_bytes_or_have_a_unit() {
        for (value, bytes) in [
            (json!(1000), 1000),
            (json!("300M"), 300 << 20),
            (json!("1.5g"), 3 << 29),
            (json!("512 K"), 512 << 10),
            (json!("64MiB"), 64 << 20),
            (json!("100mb"), 100 << 20),
            (json!("4096"), 4096),
        ] {
            assert_eq!(size(&value), Ok(bytes), "{value}");
        }
        for value in
            [json!("M"), json!("-1M"), json!(0), json!("3s"), json!(true), json!("NaN"), json!("1e30G"), json!("é")]
        {
            assert!(size(&value).is_err(), "{value}");
        }
    }

    #[test]
    fn durations_are_milliseconds_or_have_a_unit() {
        for (value, ms) in [
            (json!(3000), 3000),
            (json!("3s"), 3000),
            (json!("250ms"), 250),
            (json!(" 40 "), 40),
            (json!("1h"), 3_600_000),
        ] {
            assert_eq!(duration(&value), Ok(Duration::from_millis(ms)), "{value}");
        }
        for value in [json!("soon"), json!(-1), json!(""), json!([1]), json!("1e9h")] {
            assert!(duration(&value).is_err(), "{value}");
        }
    }

    #[test]
    fn instances_depend_on_the_cpus() {
        for (value, expected) in [
            (json!(3), 3),
            (json!("3"), 3),
            (json!(2.0), 2),
            (json!("max"), 4),
            (json!(0), 4),
            (json!(-1), 3),
            (json!("-1"), 3),
            (json!(-9), 1),
        ] {
            assert_eq!(instances(&value, 4), Ok(expected), "{value}");
        }
        for value in [json!("many"), json!(1.5), json!(100_000), json!(null), json!(i64::MIN)] {
            assert!(instances(&value, 4).is_err(), "{value}");
        }
    }

    #[test]
    fn arguments_are_words_as_a_shell_splits_them_or_a_list() {
        let expected = vec!["--port".to_owned(), "80".to_owned(), "a b".to_owned(), "$HOME".to_owned()];
        assert_eq!(words(&json!("--port  80 'a b' $HOME")), Ok(expected.clone()));
        assert_eq!(words(&json!(["--port", 80, "a b", "$HOME"])), Ok(expected));
        assert!(words(&json!("'open")).is_err());
        assert!(words(&json!({"a": 1})).is_err());
    }
}
