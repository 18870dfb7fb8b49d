//! A configuration in JSON, YAML or TOML, as one value.

use std::path::Path;

use serde_json::Value;

use crate::failure::Failure;

/// Reads JSON in which comments and a comma after the last item are allowed.
///
/// # Errors
/// One line with the file and the line in it; so for all three.
pub fn json(path: &Path, text: &str) -> Result<Value, Failure> {
    serde_json::from_str(&without_comments(text)).map_err(|error| {
        let said = error.to_string();
        let what = said.rsplit_once(" at line ").map_or(said.as_str(), |(what, _)| what);
        at(path, error.line(), what)
    })
}

pub fn yaml(path: &Path, text: &str) -> Result<Value, Failure> {
    serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line() as usize);
        let error = error.without_snippet().to_string();
        at(path, line, error.lines().next().unwrap_or_default())
    })
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

/// Puts spaces where comments and commas before a closing bracket are, so that every line keeps its number.
fn without_comments(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    // Where the last comma is, as long as only space and comments have come after it.
    let mut comma = None;
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        match (character, rest.peek()) {
            ('"', _) => {
                plain.push('"');
                while let Some(character) = rest.next() {
                    plain.push(character);
                    match character {
                        '\\' => plain.extend(rest.next()),
                        '"' => break,
                        _ => {}
                    }
                }
                comma = None;
            }
            ('/', Some('/')) => while rest.next_if(|&character| character != '\n').is_some() {},
            ('/', Some('*')) => {
                let mut before = ' ';
                rest.next();
                for character in rest.by_ref() {
                    plain.push(if character == '\n' { '\n' } else { ' ' });
                    if (before, character) == ('*', '/') {
                        break;
                    }
                    before = character;
                }
            }
            (',', _) => {
                comma = Some(plain.len());
                plain.push(',');
            }
            (character, _) => {
                if let (']' | '}', Some(comma)) = (character, comma) {
                    plain.replace_range(comma..=comma, " ");
                }
                if !character.is_whitespace() {
                    comma = None;
                }
                plain.push(character);
            }
        }
    }
    plain
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
    fn the_three_say_the_same() {
        let expected = serde_json::json!({"apps": [{"script": "a.js", "instances": 2, "env": {"A": "1"}}]});
        assert_eq!(json(path(), &expected.to_string()).unwrap(), expected);
        let text = "apps:\n  - script: a.js\n    instances: 2\n    env:\n      A: '1'\n";
        assert_eq!(yaml(path(), text).unwrap(), expected);
        assert_eq!(toml(path(), "[[apps]]\nscript = 'a.js'\ninstances = 2\nenv = { A = '1' }\n").unwrap(), expected);
    }

    #[test]
    fn an_anchor_in_yaml_is_shared() {
        let text = "base: &base {max_restarts: 3}\napps:\n  - <<: *base\n    script: a.js\n";
        assert_eq!(yaml(path(), text).unwrap()["apps"][0], serde_json::json!({"max_restarts": 3, "script": "a.js"}));
    }
}
