//! The verdicts as text and as JSON, from finished values.

use serde_json::{Value, json};

use super::{CommonCause, JudgedLevel, LEVELS, NotHeld, Point, ProbeResult};
use crate::terminal::{Paint, wrapped};

/// Where the second and later lines of a verdict begin.
const INDENT: usize = 8;

impl JudgedLevel {
    pub fn held(&self) -> usize {
        self.verdicts.iter().filter(|(_, verdict)| verdict.is_ok()).count()
    }

    pub fn failed(&self) -> usize {
        self.verdicts.len() - self.held() - self.skipped()
    }

    pub fn skipped(&self) -> usize {
        let is_skipped = |verdict: &ProbeResult| matches!(verdict, Err(NotHeld::NotApplicable { .. }));
        self.verdicts.iter().filter(|(_, verdict)| is_skipped(verdict)).count()
    }

    /// Its part of the hundred: each point of the level that applies counts the same, and one that was not tried counts
    /// nothing.
    fn score(&self) -> usize {
        let applicable = self.level.points().count() - self.skipped();
        (self.level.score * self.held()).checked_div(applicable).unwrap_or(0)
    }
}

/// A level: its score, what holds on one line, and each thing that is wrong.
pub fn level(judged: &JudgedLevel, command: &[String], columns: usize, paint: Paint) -> String {
    let level = judged.level;
    let heading = format!("level {} of {}: {}", level.number, LEVELS.len(), level.name);
    let score = format!("{heading:<34} {} of {} points", judged.score(), level.score);
    let mut text = paint.bold(if judged.is_part { &heading } else { &score }) + "\n";
    let held: Vec<&str> = judged.verdicts.iter().filter(|(_, verdict)| verdict.is_ok()).map(|(p, _)| p.id).collect();
    if !held.is_empty() && !judged.is_part {
        let lines = wrapped(&held.join(" "), columns.saturating_sub(6), 6).join("\n");
        text += &format!("{} {lines}\n", paint.green("ok   "));
    }
    let mut shown: Vec<&CommonCause> = Vec::new();
    for (point, verdict) in &judged.verdicts {
        match verdict {
            Ok(()) if !judged.is_part => {}
            Err(NotHeld::Broken { cause: Some(cause), .. }) if shown.iter().any(|other| is_same(other, cause)) => {}
            Err(NotHeld::Broken { cause: Some(cause), .. }) => {
                shown.push(cause);
                text += &(depending(judged, cause, columns, paint) + &more(verdict) + &advice(point, verdict, command));
            }
            Err(NotHeld::Broken { .. }) => {
                text += &(line(point, verdict, paint) + "\n" + &advice(point, verdict, command));
            }
            Ok(()) | Err(NotHeld::NotApplicable { .. }) => text += &(line(point, verdict, paint) + "\n"),
        }
    }
    if judged.held() + judged.skipped() == level.points().count() && !level.reached.is_empty() {
        text += &format!("      {}\n", level.reached);
    }
    text + "\n"
}

/// Flags that are refused are one thing that is wrong.
fn is_same(one: &CommonCause, other: &CommonCause) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

/// A cause and the points that fail because of it.
fn depending(judged: &JudgedLevel, cause: &CommonCause, columns: usize, paint: Paint) -> String {
    let (mut ids, mut flags) = (Vec::new(), Vec::new());
    for (point, verdict) in &judged.verdicts {
        if let Err(NotHeld::Broken { cause: Some(other), .. }) = verdict
            && is_same(other, cause)
        {
            ids.push(point.id);
            flags.extend(matches!(other, CommonCause::Flag(_)).then(|| other.to_string()));
        }
    }
    flags.dedup();
    let cause = if flags.is_empty() { cause.to_string() } else { flags.join(", ").replace(", the flag", ",") };
    let points = if ids.len() == 1 { "1 point depends on it" } else { &format!("{} points depend on it", ids.len()) };
    let ids = wrapped(&format!("{:INDENT$}{}", "", ids.join(" ")), columns, INDENT).join("\n");
    format!("{} {cause}: {points}\n{ids}\n", paint.red("FAIL "))
}

/// One verdict as text: a word, the id, the sentence, and what was sent, expected and found where the point is broken.
pub fn line(point: &Point, verdict: &ProbeResult, paint: Paint) -> String {
    let word = match verdict {
        Ok(()) => paint.green("ok   "),
        Err(NotHeld::Broken { .. }) => paint.red("FAIL "),
        Err(NotHeld::NotApplicable { .. }) => paint.yellow("n/a  "),
    };
    format!("{word} {:<24} {}\n{}", point.id, point.says, more(verdict)).trim_end().to_string()
}

fn more(verdict: &ProbeResult) -> String {
    match verdict {
        Ok(()) => String::new(),
        Err(NotHeld::Broken { expected, found, sent, .. }) => {
            let sent = sent.as_ref().map_or(String::new(), |sent| {
                format!("{:INDENT$}sent      request {} of a connection: {}\n", "", sent.request, sent.shown)
            });
            format!("{sent}{:INDENT$}expected  {expected}\n{:INDENT$}found     {found}\n", "", "")
        }
        Err(NotHeld::NotApplicable { why }) => format!("{:INDENT$}{why}\n", ""),
    }
}

/// What is usually missing, and the command that tries this point again.
fn advice(point: &Point, verdict: &ProbeResult, command: &[String]) -> String {
    let hint = match verdict {
        Err(NotHeld::Broken { cause: Some(cause), .. }) => hint(cause),
        _ => point.hint,
    };
    let hint = if hint.is_empty() { String::new() } else { format!("{:INDENT$}hint      {hint}\n", "") };
    let (id, command) = (point.id, shell_words::join(command));
    format!(
        "{hint}{:INDENT$}contract  lab check --explain {id}\n{:INDENT$}repeat    lab check --only {id} -- {command}\n",
        "", ""
    )
}

fn hint(cause: &CommonCause) -> &'static str {
    match cause {
        CommonCause::NotReady => {
            "print it when every worker can accept, and flush: a pipe is not a terminal (setvbuf(3))"
        }
        CommonCause::Flag(_) => "take the flag, even where it changes nothing",
        CommonCause::KeepAlive => "after the answer read the next request; close when the client does, or asks for it",
        CommonCause::Report => "at SIGTERM print the counters as one JSON document, flush, and exit with status 0",
    }
}

/// How many of the hundred points, the counts, and how far it came.
pub fn last_line(judged: &[JudgedLevel], is_part: bool) -> String {
    let [passed, failed, skipped, not_tried] = tally(judged);
    let score: usize = judged.iter().map(JudgedLevel::score).sum();
    let score = if is_part { String::new() } else { format!("score {score} of 100: ") };
    let mut text = format!("{score}{passed} passed, {failed} failed, {skipped} skipped");
    if not_tried > 0 && !is_part {
        text += &format!(", {not_tried} not tried");
    }
    if let Some(broken) = judged.iter().find(|one| one.failed() > 0) {
        text += &format!("; level {} ({}) is broken", broken.level.number, broken.level.name);
    }
    text
}

/// How many points passed, failed, were skipped and were not tried.
fn tally(judged: &[JudgedLevel]) -> [usize; 4] {
    let sum = |count: fn(&JudgedLevel) -> usize| judged.iter().map(count).sum::<usize>();
    let not_tried = super::points().len() - sum(|one| one.verdicts.len());
    [sum(JudgedLevel::held), sum(JudgedLevel::failed), sum(JudgedLevel::skipped), not_tried]
}

/// The verdicts as JSON.
pub fn document(command: &[String], judged: &[JudgedLevel]) -> String {
    let point = |level: usize, point: &Point, verdict: &ProbeResult| {
        let mut entry = match verdict {
            Ok(()) => json!({ "verdict": "held" }),
            Err(why) => json!(why),
        };
        (entry["id"], entry["says"], entry["level"]) = (json!(point.id), json!(point.says), json!(level));
        entry
    };
    let of_level = |one: &JudgedLevel| -> Vec<Value> {
        one.verdicts.iter().map(|(tried, verdict)| point(one.level.number, tried, verdict)).collect()
    };
    let rows: Vec<Value> = judged.iter().flat_map(of_level).collect();
    let [passed, failed, skipped, not_tried] = tally(judged);
    let tally = json!({ "passed": passed, "failed": failed, "skipped": skipped, "not_tried": not_tried });
    let score: usize = judged.iter().map(JudgedLevel::score).sum();
    json!({ "schema": 1, "command": command, "score": score, "tally": tally, "points": rows }).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::{broken, not_applicable, start};
    use super::*;

    const PLAIN: Paint = Paint { has_colour: false };

    fn judged(verdicts: impl IntoIterator<Item = ProbeResult>) -> JudgedLevel {
        JudgedLevel { level: &LEVELS[0], is_part: false, verdicts: LEVELS[0].points().zip(verdicts).collect() }
    }

    #[test]
    fn a_broken_point_shows_what_was_expected_and_what_was_found() {
        let shown = line(&start::READY, &broken("200", "500"), PLAIN);
        assert!(shown.starts_with("FAIL  ready-line"), "{shown}");
        assert!(shown.ends_with("expected  200\n        found     500"), "{shown}");
    }

    #[test]
    fn points_that_fail_for_one_cause_are_one_message() {
        let refused = || Err(NotHeld::new("a start", "status 2").because(CommonCause::Flag("--x".into())));
        let shown = level(&judged([Ok(()), refused(), Ok(()), refused()]), &["a b".into()], 80, PLAIN);
        assert!(
            shown.contains("\nok    ready-line ipv6\nFAIL  the flag --x is refused: 2 points depend on it\n"),
            "{shown}"
        );
        assert!(shown.contains("\n        port-0 taken-port\n") && shown.matches("FAIL").count() == 1, "{shown}");
        assert!(shown.contains("\n        repeat    lab check --only port-0 -- 'a b'\n"), "{shown}");
    }

    #[test]
    fn what_does_not_apply_costs_no_points_and_what_was_not_tried_does() {
        let half = [Ok(()), Ok(()), not_applicable("no IPv6"), broken("1", "2"), Ok(()), broken("1", "2")];
        assert_eq!(judged(half).score(), 6);
        assert_eq!(judged([Ok(())]).score(), 1);
        let two = [judged([Ok(()), broken("1", "2")])];
        assert!(last_line(&two, false).starts_with("score 1 of 100: 1 passed, 1 failed, 0 skipped, "));
        assert_eq!(last_line(&two, true), "1 passed, 1 failed, 0 skipped; level 1 (starts) is broken");
    }

    #[test]
    fn the_json_document_names_each_verdict() {
        let text =
            document(&["server".into()], &[judged([Ok(()), broken("200", "500"), not_applicable("one process")])]);
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&document["points"][0]["verdict"], &document["points"][0]["level"]), (&json!("held"), &json!(1)));
        assert_eq!(document["points"][1]["found"], "500");
        assert_eq!(document["points"][2]["verdict"], "not_applicable");
        let tried = super::super::points().len() - 3;
        assert_eq!(document["tally"], json!({ "passed": 1, "failed": 1, "skipped": 1, "not_tried": tried }));
    }
}
