//! Numbers in a lesson's text that come from its claims: `<!--claim:ID-->31.8<!--/-->`. A reader of the rendered text
//! sees the number only. `lab report` rewrites what stands between the two comments.

use crate::lab::plan::claim::{Claim, Operation};

const BEGIN: &str = "<!--claim:";
const CLOSE: &str = "-->";
pub const END: &str = "<!--/-->";

/// What of a claim is cited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CitedNumber {
    /// `ID`: what was measured and is compared with the bar.
    Measured,
    /// `ID:interval`: the interval around it.
    Interval,
    /// `ID:value`: of a ratio or a difference, the first number.
    Value,
    /// `ID:over` or `ID:minus`: the second.
    Other,
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    Text(&'a str),
    Citation {
        /// The comment in front of the number.
        begin: &'a str,
        id: &'a str,
        part: CitedNumber,
        /// The number as it stands in the text; [`END`] follows it.
        shown: &'a str,
    },
}

/// A text in pieces; joined, they are the text. The error names a byte of the text.
pub fn pieces<'a>(text: &'a str, claims: &[Claim]) -> Result<Vec<Piece<'a>>, (usize, String)> {
    let mut pieces = Vec::new();
    let mut from = 0;
    while let Some(found) = text[from..].find(BEGIN) {
        let begin = from + found;
        let refuse = |what: String| (begin, what);
        let rest = &text[begin + BEGIN.len()..];
        let (name, rest) = rest.split_once(CLOSE).ok_or_else(|| refuse(format!("{BEGIN} is never closed")))?;
        let (shown, rest) =
            rest.split_once(END).ok_or_else(|| refuse(format!("the number of {name:?} has no {END} behind it")))?;
        // CommonMark 4.6: a comment at the beginning of a line makes the whole line raw HTML and ends the paragraph.
        let line = text[..begin].rsplit('\n').next().unwrap_or_default();
        if line.trim_matches([' ', '-', '*', '>']).is_empty() {
            return Err(refuse(format!("the citation of {name:?} begins a line; put a word before it")));
        }
        let (id, part) = name.split_once(':').unwrap_or((name, ""));
        let part = cited(id, part, claims).map_err(refuse)?;
        let end = text.len() - rest.len();
        let begin_comment = &text[begin..begin + BEGIN.len() + name.len() + CLOSE.len()];
        pieces.push(Piece::Text(&text[from..begin]));
        pieces.push(Piece::Citation { begin: begin_comment, id, part, shown });
        from = end;
    }
    pieces.push(Piece::Text(&text[from..]));
    Ok(pieces)
}

fn cited(id: &str, part: &str, claims: &[Claim]) -> Result<CitedNumber, String> {
    let Some(claim) = claims.iter().find(|claim| claim.id == id) else {
        let ids: Vec<&str> = claims.iter().map(|claim| claim.id.as_str()).collect();
        return Err(format!("no claim {id:?}; there are {}", ids.join(", ")));
    };
    let operation =
        claim.comparison().and_then(|comparison| comparison.other.as_ref()).map(|(operation, _)| *operation);
    match (part, operation) {
        ("", _) => Ok(CitedNumber::Measured),
        ("interval", _) => Ok(CitedNumber::Interval),
        ("value", Some(_)) => Ok(CitedNumber::Value),
        ("over", Some(Operation::Over)) | ("minus", Some(Operation::Minus)) => Ok(CitedNumber::Other),
        _ => {
            let parts = match operation {
                None => "",
                Some(Operation::Over) => ", :value, :over",
                Some(Operation::Minus) => ", :value, :minus",
            };
            Err(format!("the claim {id:?} has no {part:?}; write {id}, or {id} with :interval{parts}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::claim::Basis;

    fn claims() -> Vec<Claim> {
        let basis = Basis::Nothing("no design".to_string());
        let (source, published, is_counted, why) = (None, None, false, None);
        vec![Claim { id: "herd".to_string(), says: String::new(), basis, source, published, is_counted, why }]
    }

    #[test]
    fn a_text_is_taken_apart_and_put_together() {
        let text = "All <!--claim:herd-->31.8<!--/--> of 32 (<!--claim:herd:interval-->31 to 32<!--/-->).";
        let pieces = pieces(text, &claims()).unwrap();
        let joined: String = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.to_string(),
                Piece::Citation { begin, shown, .. } => format!("{begin}{shown}{END}"),
            })
            .collect();
        assert_eq!(joined, text);
        let parts: Vec<(CitedNumber, &str)> = pieces
            .iter()
            .filter_map(|piece| match piece {
                Piece::Citation { part, shown, .. } => Some((*part, *shown)),
                Piece::Text(_) => None,
            })
            .collect();
        assert_eq!(parts, [(CitedNumber::Measured, "31.8"), (CitedNumber::Interval, "31 to 32")]);
    }

    #[test]
    fn a_citation_that_leads_nowhere_is_refused() {
        for (text, expected) in [
            ("a <!--claim:hert-->1<!--/-->", "no claim \"hert\"; there are herd"),
            ("a <!--claim:herd:over-->1<!--/-->", "has no \"over\"; write herd, or herd with :interval"),
            ("a <!--claim:herd", "never closed"),
            ("a <!--claim:herd-->1", "has no <!--/-->"),
            ("a\n- <!--claim:herd-->1<!--/-->", "begins a line"),
        ] {
            let (at, what) = pieces(text, &claims()).unwrap_err();
            assert!(what.contains(expected), "{what}");
            assert_eq!(at, text.find("<!--").unwrap());
        }
    }
}
