//! Which server of another project a process is, by its command line.

use Kind::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Gunicorn,
    Uvicorn,
    Puma,
    Nginx,
    Haproxy,
    Apache,
    Node,
    /// Any other.
    Other,
}

impl Kind {
    /// The kind that the first words of a command line mean.
    pub fn of(words: &[String]) -> Kind {
        let name = |word: &str| word.rsplit('/').next().unwrap_or(word).to_lowercase();
        // A program that writes its own title has it as one word: `puma 5.6.5 (tcp://127.0.0.1:8080) [folder]`.
        let first =
            words.first().and_then(|title| title.split(' ').next()).map(|word| name(word.trim_end_matches(':')));
        let first = first.unwrap_or_default();
        let is_interpreter =
            INTERPRETERS.contains(&first.trim_end_matches(|end: char| end.is_ascii_digit() || end == '.'));
        let behind = words.iter().skip(1).take(if is_interpreter { 2 } else { 0 });
        let mut names = std::iter::once(first).chain(behind.map(|word| name(word)));
        let found = names.find_map(|name| PROGRAMS.iter().find(|(program, _)| *program == name));
        found.map_or(Kind::Other, |(_, kind)| *kind)
    }
}

/// Recognized by the name of its program.
const PROGRAMS: [(&str, Kind); 10] = [
    ("gunicorn", Gunicorn),
    ("uvicorn", Uvicorn),
    ("puma", Puma),
    ("pm2", Node),
    ("nginx", Nginx),
    ("haproxy", Haproxy),
    ("apache2", Apache),
    ("httpd", Apache),
    ("node", Node),
    ("nodejs", Node),
];

/// Their first or second argument is the program.
const INTERPRETERS: [&str; 4] = ["python", "pypy", "ruby", "bundle"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_the_first_words_of_its_command() {
        let kind = |command: &str| Kind::of(&command.split(' ').map(String::from).collect::<Vec<_>>());
        assert_eq!(kind("nginx: worker process"), Kind::Nginx);
        assert_eq!(kind("/usr/bin/python3 /opt/venv/bin/gunicorn --reuse-port app"), Kind::Gunicorn);
        assert_eq!(kind("/usr/bin/python3 -m uvicorn app:app"), Kind::Uvicorn);
        assert_eq!(kind("node server.js"), Kind::Node);
        assert_eq!(Kind::of(&["puma 5.6.5 (tcp://127.0.0.1:8080) [shop]".to_string()]), Kind::Puma);
        assert_eq!(kind("python3.11 /usr/bin/gunicorn app"), Kind::Gunicorn);
        for other in ["./my-nginx-test --listen x", "node_exporter", "nodemon server.js", "./server node puma"] {
            assert_eq!(kind(other), Kind::Other, "{other}");
        }
    }
}
