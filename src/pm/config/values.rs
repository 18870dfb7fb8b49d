//! One value of a configuration, as people write it: `"300M"`, `"3s"`, `"max"`, `"a 'b c'"`. It becomes a value as
//! [`super::AppConfig`] has it; an error says what it is not.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::cpu;
use crate::pm::cron::CronRestart;
use crate::units::parse_duration;

pub type ReadValue = Result<Value, String>;

fn refuse(value: &Value, expected: &str) -> ReadValue {
    Err(format!("{value} is not {expected}"))
}

/// A text; a number counts as its digits.
pub fn text(value: &Value) -> ReadValue {
    match value {
        Value::String(text) if text.contains('\0') => refuse(value, "a text without NUL"),
        Value::String(_) => Ok(value.clone()),
        Value::Number(number) => Ok(number.to_string().into()),
        _ => refuse(value, "a text"),
    }
}

/// A word of `T`; PM2 also writes `fork_mode`, and `raw` for text.
pub fn word<T: DeserializeOwned>(value: &Value) -> ReadValue {
    let text = text(value)?;
    let word = match text.as_str().unwrap_or_default() {
        "raw" => "text",
        word => word.trim_end_matches("_mode"),
    };
    serde_json::from_value::<T>(word.into()).map(|_| word.into()).map_err(|error| error.to_string())
}

/// A program, or nothing for `none`.
pub fn interpreter(value: &Value) -> ReadValue {
    let program = text(value)?;
    Ok(if program == "none" || program == "" { Value::Null } else { program })
}

pub fn yes_or_no(value: &Value) -> ReadValue {
    match value {
        Value::Bool(_) => Ok(value.clone()),
        Value::String(text) if text == "true" => Ok(true.into()),
        Value::String(text) if text == "false" => Ok(false.into()),
        _ => refuse(value, "true or false"),
    }
}

/// A number or a text, without the blanks around it; of other values, nothing.
fn written(value: &Value) -> String {
    text(value).ok().as_ref().and_then(Value::as_str).unwrap_or_default().trim().to_owned()
}

/// JavaScript and TOML write a whole number as 2.0 as well.
fn integer(value: &Value) -> Option<i64> {
    let text = written(value);
    text.strip_suffix(".0").unwrap_or(&text).parse().ok()
}

pub fn count(value: &Value) -> ReadValue {
    integer(value)
        .filter(|&number| number >= 0)
        .map_or_else(|| refuse(value, "a whole number from 0"), |number| Ok(json!(number)))
}

/// Milliseconds as a number, or a text with a unit such as `3s`.
pub fn duration(value: &Value) -> ReadValue {
    let text = written(value);
    let unit = if text.ends_with(|last: char| last.is_ascii_digit()) { "ms" } else { "" };
    match parse_duration(&format!("{text}{unit}")) {
        Ok(duration) => Ok(json!(duration.as_millis() as u64)),
        Err(_) => refuse(value, "a duration; write milliseconds as a number, or a text like \"3s\""),
    }
}

/// Bytes as a number, or a text with a unit such as `300M`, in powers of 1024.
pub fn size(value: &Value) -> ReadValue {
    let text = written(value).to_ascii_uppercase();
    let text = text.trim_end_matches('B').trim_end_matches('I');
    let units = [("K", 1u64 << 10), ("M", 1 << 20), ("G", 1 << 30), ("", 1)];
    let split = units.into_iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes as f64)));
    let bytes = split.and_then(|(number, bytes)| Some(number.trim().parse::<f64>().ok()? * bytes));
    match bytes {
        Some(bytes) if (1.0..1e18).contains(&bytes) => Ok(json!(bytes as u64)),
        _ => refuse(value, "a size; write bytes as a number, or a text like \"300M\""),
    }
}

pub fn instances(value: &Value) -> ReadValue {
    instances_on(value, cpu::allowed().len())
}

/// How many processes on so many CPUs: a number, `max` or 0 for one on each CPU, −1 for one less.
fn instances_on(value: &Value, cpus: usize) -> ReadValue {
    match integer(value) {
        _ if value == "max" => Ok(json!(cpus)),
        Some(0) => Ok(json!(cpus)),
        Some(number @ 1..=10_000) => Ok(json!(number)),
        Some(number @ -10_000..0) => Ok(json!(cpus.saturating_sub(-number as usize).max(1))),
        _ => refuse(value, "a number of processes; write 1 to 10000, \"max\", or -1 for all CPUs but one"),
    }
}

/// A list of what `read` reads; one value is a list of one.
fn list(value: &Value, read: fn(&Value) -> ReadValue) -> ReadValue {
    match value {
        Value::Array(items) => items.iter().map(read).collect(),
        _ => Ok(json!([read(value)?])),
    }
}

pub fn texts(value: &Value) -> ReadValue {
    list(value, text)
}

/// A list of texts, or one text that is split as a shell splits it; nothing in it is expanded.
pub fn words(value: &Value) -> ReadValue {
    match value {
        Value::String(text) => match shell_words::split(text) {
            Ok(words) => Ok(json!(words)),
            Err(_) => refuse(value, "closed: a quotation mark is missing"),
        },
        _ => texts(value),
    }
}

pub fn statuses(value: &Value) -> ReadValue {
    list(value, |value| match integer(value) {
        Some(status @ 0..=255) => Ok(json!(status)),
        _ => refuse(value, "an exit status from 0 to 255"),
    })
}

/// A pattern, or false or 0 for none.
pub fn cron_pattern(value: &Value) -> ReadValue {
    if yes_or_no(value) == Ok(Value::Bool(false)) || integer(value) == Some(0) {
        return Ok(Value::Null);
    }
    let pattern = text(value)?;
    CronRestart::new(pattern.as_str().unwrap_or_default(), 0).map(|_| pattern)
}

/// `true` watches all of the working directory, a list these files and folders in it.
pub fn watch(value: &Value) -> ReadValue {
    match yes_or_no(value) {
        Ok(Value::Bool(true)) => Ok(json!(["."])),
        Ok(_) => Ok(json!([])),
        Err(_) => texts(value),
    }
}

#[cfg(test)]
mod tests {
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
            assert_eq!(size(&value), Ok(json!(bytes)), "{value}");
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
            assert_eq!(duration(&value), Ok(json!(ms)), "{value}");
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
            assert_eq!(instances_on(&value, 4), Ok(json!(expected)), "{value}");
        }
        for value in [json!("many"), json!(1.5), json!(100_000), json!(null), json!(i64::MIN)] {
            assert!(instances_on(&value, 4).is_err(), "{value}");
        }
    }

    #[test]
    fn arguments_are_words_as_a_shell_splits_them_or_a_list() {
        let expected = json!(["--port", "80", "a b", "$HOME"]);
        assert_eq!(words(&json!("--port  80 'a b' $HOME")), Ok(expected.clone()));
        assert_eq!(words(&json!(["--port", 80, "a b", "$HOME"])), Ok(expected));
        assert!(words(&json!("'open")).is_err());
        assert!(words(&json!({"a": 1})).is_err());
    }
}
