//! A configuration in JSON, YAML or TOML, as one value.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::failure::Failure;

/// No configuration is nested so deeply. The parser of JSON would need more stack than there is.
const DEEPEST: usize = 1000;

/// Reads JSON5: JSON with comments, a comma after the last item, and names without quotation marks.
///
/// # Errors
/// One line with the file and the line in it; so for all three.
pub fn json(path: &Path, text: &str) -> Result<Value, Failure> {
    let mut depth = 0;
    for (number, line) in text.lines().enumerate() {
        depth += line.matches(['[', '{']).count();
        depth = depth.saturating_sub(line.matches([']', '}']).count());
        if depth > DEEPEST {
            return Err(at(path, number + 1, "more than 1000 brackets are open"));
        }
    }
    json5::from_str(text).map_err(|error| {
        let said = error.to_string();
        let what = said.rsplit_once(" at line ").map_or(said.as_str(), |(what, _)| what);
        at(path, error.position().map_or(0, |position| position.line) + 1, what)
    })
}

/// Reads YAML 1.2, in which `no` and `on` are texts. Numbers, `true` and `false` are kept as the text that stands there:
/// the variable `VERSION: 1.10` is not 1.1. (What is to be a number is read from such a text as well.)
pub fn yaml(path: &Path, text: &str) -> Result<Value, Failure> {
    let options = || serde_saphyr::options! { strict_booleans: true };
    let read = || {
        let mut value: Value = serde_saphyr::from_str_with_options(text, options())?;
        serde_saphyr::with_deserializer_from_str_with_options(text, options(), |deserializer| {
            AsWritten(&mut value).deserialize(deserializer)
        })?;
        Ok(value)
    };
    read().map_err(|error: serde_saphyr::Error| {
        let line = error.location().map_or(0, |location| location.line() as usize);
        let error = error.without_snippet().to_string();
        at(path, line, error.lines().next().unwrap_or_default())
    })
}

/// Reads the same document a second time: its scalars as texts.
struct AsWritten<'v>(&'v mut Value);

impl<'de> DeserializeSeed<'de> for AsWritten<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.0 {
            Value::Object(_) => deserializer.deserialize_map(self),
            Value::Array(_) => deserializer.deserialize_seq(self),
            Value::Number(_) | Value::Bool(_) => {
                *self.0 = String::deserialize(deserializer)?.into();
                Ok(())
            }
            Value::String(_) | Value::Null => IgnoredAny::deserialize(deserializer).map(drop),
        }
    }
}

impl<'de> Visitor<'de> for AsWritten<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("what was read before")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match self.0.get_mut(&key) {
                Some(value) => map.next_value_seed(AsWritten(value))?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let values = self.0.as_array_mut().into_iter().flatten();
        for value in values {
            items.next_element_seed(AsWritten(value))?;
        }
        Ok(())
    }
}

pub fn toml(path: &Path, text: &str) -> Result<Value, Failure> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        at(path, text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count() + 1, error.message())
    })
}

fn at(path: &Path, line: usize, what: &str) -> Failure {
    Failure::relay(format!("{}:{line}: {}", path.display(), what.replace('\n', ", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> &'static Path {
        Path::new("apps.x")
    }

    #[test]
    fn json_may_have_comments_and_a_comma_after_the_last_item() {
        let text = "// first\n{\"a\": [1, 2, /* three */ ], // \"no\"\n \"b // c\": \"x\\\"/*y*/,}\", }\n";
        assert_eq!(json(path(), text).unwrap(), serde_json::json!({"a": [1, 2], "b // c": "x\"/*y*/,}"}));
    }

    #[test]
    fn an_error_names_the_line() {
        for (read, text) in [
            (json as fn(&Path, &str) -> Result<Value, Failure>, "{\n/* a\n comment */ \"a\": 1,\n \"b\" 2\n}"),
            (yaml, "a: 1\nb:\n  - c: 2\n d: [\n"),
            (toml, "a = 1\n\n\nb = = 2\n"),
        ] {
            let line = read(path(), text).unwrap_err().to_string();
            assert!(line.starts_with("apps.x:4: ") && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn json_and_toml_say_the_same() {
        let expected = serde_json::json!({"apps": [{"script": "a.js", "instances": 2, "env": {"A": "1"}}]});
        assert_eq!(json(path(), &expected.to_string()).unwrap(), expected);
        assert_eq!(toml(path(), "[[apps]]\nscript = 'a.js'\ninstances = 2\nenv = { A = '1' }\n").unwrap(), expected);
    }

    #[test]
    fn an_anchor_in_yaml_is_shared() {
        let text = "base: &base {max_restarts: 3}\napps:\n  - <<: *base\n    script: a.js\n";
        assert_eq!(yaml(path(), text).unwrap()["apps"][0], serde_json::json!({"max_restarts": "3", "script": "a.js"}));
    }

    #[test]
    fn yaml_keeps_the_text_of_what_is_not_a_text() {
        let text =
            "apps:\n  - name: 42\n    env: {A: 012, B: no, C: 1.10, D: true, E: ~, F: 0x1f, G: 'x', H: [1e3, on]}\n";
        let expected = serde_json::json!({"apps": [{"name": "42", "env": {
            "A": "012", "B": "no", "C": "1.10", "D": "true", "E": null, "F": "0x1f", "G": "x", "H": ["1e3", "on"]}}]});
        assert_eq!(yaml(path(), text).unwrap(), expected);
        assert_eq!(yaml(path(), "a: &x {b: 1}\nc: [*x, *x]\n").unwrap()["c"][1]["b"], "1");
    }

    #[test]
    fn what_is_nested_too_deeply_is_an_error() {
        for open in ["[", "{\"a\":", "[\n"] {
            assert!(json(path(), &open.repeat(200_000)).is_err());
        }
        assert!(yaml(path(), &"[".repeat(200_000)).is_err());
        assert!(toml(path(), &format!("a = {}", "[".repeat(200_000))).is_err());
    }
}
