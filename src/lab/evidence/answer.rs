//! The numbers in a lesson's text. They come from its claims, so that text and data cannot part. On paper and in a
//! terminal [`fill`] replaces the citations; in the lesson itself [`outdated`] finds those that the records have
//! overtaken.

use std::fs;
use std::path::{Path, PathBuf};

use crate::lab::evidence::claims::{JudgedClaim, judge};
use crate::lab::plan::citation::{CitedNumber, END, Piece, pieces};
use crate::lab::plan::claim::Claim;
use crate::lab::plan::experiment::Experiment;
use crate::lab::record::{Record, Row};

/// The text with numbers in place of its citations; – where nothing was measured.
pub fn fill(text: &str, experiment: &Experiment, judged: &[JudgedClaim]) -> String {
    let render = |piece: &Piece| match piece {
        Piece::Text(text) => text.to_string(),
        Piece::Citation { id, part, .. } => number(id, *part, judged).unwrap_or("–".to_string()),
    };
    taken_apart(text, &experiment.claims).iter().map(render).collect()
}

/// The same text with new numbers between the comments; an old number stays where nothing was measured.
fn updated(text: &str, claims: &[Claim], judged: &[JudgedClaim]) -> String {
    let render = |piece: &Piece| match piece {
        Piece::Text(text) => text.to_string(),
        Piece::Citation { begin, id, part, shown } => {
            let number = number(id, *part, judged).unwrap_or(shown.to_string());
            format!("{begin}{number}{END}")
        }
    };
    taken_apart(text, claims).iter().map(render).collect()
}

fn taken_apart<'a>(text: &'a str, claims: &[Claim]) -> Vec<Piece<'a>> {
    pieces(text, claims).expect("the file was checked when it was read")
}

fn number(id: &str, part: CitedNumber, judged: &[JudgedClaim]) -> Option<String> {
    let judged = judged.iter().find(|judged| judged.claim.id == id)?;
    match part {
        CitedNumber::Measured => Some(judged.print(judged.summary?.median)),
        CitedNumber::Interval => {
            let [low, high] = judged.interval()?.map(|end| judged.print(end));
            Some(if low == high { low } else { format!("{low} to {high}") })
        }
        CitedNumber::Value => Some(judged.print_side(judged.sides?[0])),
        CitedNumber::Other => Some(judged.print_side(judged.sides?[1])),
    }
}

/// The lessons below `root` whose numbers are not those of the newest full record, each with the text that it should
/// have. A quick run does not change a lesson.
pub fn outdated(root: &Path, experiments: &[Experiment], records: &[Record]) -> Result<Vec<(PathBuf, String)>, String> {
    let mut found = Vec::new();
    for experiment in experiments {
        let is_its = |row: &Row| row.experiment == experiment.name;
        let is_full = |record: &&Record| record.header.scale == "full" && record.rows.iter().any(is_its);
        let Some(record) = records.iter().rev().find(is_full) else { continue };
        let path = root.join("experiments").join(format!("{}.md", experiment.name));
        let text = fs::read_to_string(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
        let new = updated(&text, &experiment.claims, &judge(experiment, &record.rows));
        if new != text {
            found.push((path, new));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::evidence::claims::ClaimVerdict;
    use crate::lab::plan::experiment::tests::parse_lesson;
    use crate::stats::summarize;

    const LESSON: &str = "server = [{ run = \"sync\" }, { run = \"prefork\" }]\nload = \"loadgen\"\ncolumns = [\"qps\"]\n\
                          [[claim]]\nid = \"gain\"\nsays = \"It gains\"\n\
                          value = { table = \"t\", column = \"qps\", server = \"sync\" }\n\
                          over = { server = \"prefork\" }\nbar = \">= 2 times\"";

    #[test]
    fn citations_become_numbers_and_stay_citations_in_the_lesson() {
        let experiment = parse_lesson(LESSON).unwrap();
        let values = vec![1.5, 2.0, 2.5];
        let judged = JudgedClaim {
            claim: &experiment.claims[0],
            verdict: ClaimVerdict::Undecided,
            summary: summarize(&values),
            values,
            sides: Some([4000.0, 2000.0]),
        };
        let text = "It gains <!--claim:gain-->9<!--/--> times (<!--claim:gain:interval-->9<!--/-->): \
                    <!--claim:gain:value-->9<!--/--> after <!--claim:gain:over-->9<!--/-->.";
        let judged = [judged];
        let filled = fill(text, &experiment, &judged);
        assert_eq!(filled, "It gains 2.00 times (1.50 to 2.50): 4,000 after 2,000.");
        let new = updated(text, &experiment.claims, &judged);
        assert!(new.contains("gains <!--claim:gain-->2.00<!--/--> times"), "{new}");
        assert_eq!(fill(&new, &experiment, &judged), filled);
        assert!(fill(text, &experiment, &[]).starts_with("It gains – times"));
        assert_eq!(updated(text, &experiment.claims, &[]), text);
    }
}
