//! A lesson in a dozen lines for a terminal: title, answer, claims, one small picture.

use crate::lab::evidence::claims::ClaimVerdict;
use crate::lab::evidence::lesson::Lesson;
use crate::lab::evidence::pictures;
use crate::terminal::{Paint, shortened, wrapped};

const MOST_LINES: usize = 12;
const LINES_OF_THE_ANSWER: usize = 3;
/// A picture of fewer lines says nothing.
const LINES_OF_A_PICTURE: usize = 4;

/// The lesson in short: at most a dozen lines, none of them wider than the terminal.
pub fn of(lesson: &Lesson, width: usize, paint: Paint) -> Vec<String> {
    let title = shortened(&format!("{} · {}", lesson.number(), lesson.experiment.title), width);
    let mut lines = vec![paint.bold(&title)];
    lines.extend(lesson.incomplete().map(|line| shortened(&line, width)));
    let mut judged = lesson.judged.clone();
    // First what may surprise.
    judged.sort_by_key(|judged| {
        !matches!(judged.verdict, ClaimVerdict::Fails | ClaimVerdict::Undecided | ClaimVerdict::SeenOnce(false))
    });
    let claims: Vec<String> = judged.iter().map(|judged| judged.line(width, paint)).collect();
    let picture = lesson.experiment.pictures.iter().find(|picture| picture.fits_a_terminal());
    let for_a_picture = if picture.is_some() { LINES_OF_A_PICTURE } else { 0 };
    let room = MOST_LINES - lines.len() - for_a_picture;
    if !lesson.answer.is_empty() {
        let most = LINES_OF_THE_ANSWER.min(room.saturating_sub(claims.len()).max(1));
        lines.extend(beginning(wrapped(&without_marks(lesson.short_answer()), width, 0), most, width));
    }
    let room = MOST_LINES - lines.len() - for_a_picture;
    let left_out = claims.len().saturating_sub(room) + 1;
    if left_out > 1 {
        lines.extend(claims.into_iter().take(room - 1));
        lines.push(shortened(&format!("and {left_out} more: lab claims {}", lesson.number()), width));
    } else {
        lines.extend(claims);
    }
    if let (Some(picture), Some(record)) = (picture, lesson.record) {
        let room = MOST_LINES - lines.len();
        lines.extend(pictures::in_text(picture, lesson.experiment, record, width, room));
    }
    lines
}

/// The pictures that a matrix calls headlines, in full: the end of a run of several lessons.
pub fn headlines(lessons: &[Lesson], width: usize, paint: Paint) -> Vec<String> {
    let mut lines = Vec::new();
    for lesson in lessons {
        let Some(record) = lesson.record else { continue };
        for picture in lesson.experiment.pictures.iter().filter(|picture| picture.headline) {
            let drawn = pictures::in_text(picture, lesson.experiment, record, width, usize::MAX);
            if !drawn.is_empty() {
                lines.push(String::new());
                lines.push(paint.bold(&shortened(&format!("{} · {}", lesson.number(), picture.title), width)));
                lines.extend(drawn);
            }
        }
    }
    lines
}

/// The first `most` lines; a text that goes on is marked at its end.
fn beginning(mut lines: Vec<String>, most: usize, width: usize) -> Vec<String> {
    if lines.len() > most {
        lines.truncate(most);
        let last = lines.pop().unwrap_or_default();
        lines.push(shortened(&format!("{last} …"), width));
    }
    lines.into_iter().map(|line| shortened(&line, width)).collect()
}

/// Markdown's marks say nothing in a terminal.
fn without_marks(text: &str) -> String {
    text.replace(['`', '*'], "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::evidence::columns::tests::row;
    use crate::lab::plan::experiment::Experiment;
    use crate::lab::plan::experiment::tests::parse_lesson;
    use crate::lab::record::Record;

    fn lesson() -> Experiment {
        let claim = |i: usize| {
            format!(
                "[[claim]]\nid = \"c{i}\"\nsays = \"It answers more than a hundred requests in a second\"\n\
                 value = {{ table = \"t\", column = \"qps\", server = \"sync\" }}\nbar = \">= 80 requests/s\"\n"
            )
        };
        let claims: String = (0..8).map(claim).collect();
        let table = format!(
            "server = [{{ run = \"sync\" }}, {{ run = \"prefork --workers 3\" }}]\nload = \"loadgen\"\ncolumns = [\"qps\"]\n\
             [[picture]]\nid = \"p\"\ntitle = \"Answers\"\nkind = \"bars\"\ntable = \"t\"\ny = \"qps\"\nheadline = true\n{claims}"
        );
        let answer = "The `sync` one answers, and the *other* one answers as well. ".repeat(8);
        Experiment { answer, ..parse_lesson(&table).unwrap() }
    }

    fn record() -> Record {
        let of = |(case, server): (usize, &str)| {
            let mut row = row();
            (row.experiment, row.table, row.case) = ("02-keep-alive".to_string(), "t".to_string(), case);
            row.coordinates =
                vec![("server".to_string(), server.to_string()), ("client".to_string(), "loadgen".to_string())];
            row.load.as_mut().unwrap().qps = 90.0 * (case + 1) as f64;
            row
        };
        let rows = ["sync", "prefork --workers 3"].into_iter().enumerate().map(of).collect();
        Record { file: String::new(), header: Default::default(), rows }
    }

    const PLAIN: Paint = Paint { has_colour: false };

    #[test]
    fn a_lesson_is_a_dozen_lines_that_fit_whatever_the_width() {
        let (lesson, records) = (lesson(), [record()]);
        let lesson = Lesson::of(&lesson, &records);
        for width in [1, 20, 40, 80, 100, 400] {
            let lines = of(&lesson, width, PLAIN);
            assert!(lines.len() <= 12, "{lines:#?}");
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{width}: {lines:#?}");
        }
        let text = of(&lesson, 100, PLAIN).join("\n");
        assert!(text.starts_with("02 · A title\nThe sync one answers") && text.contains(" …\n"), "{text}");
        assert!(text.contains("seen once") && text.contains("more: lab claims 02"), "{text}");
        assert!(text.contains("sync  ██") && text.ends_with(" 180"), "{text}");
    }

    #[test]
    fn a_headline_is_drawn_in_full() {
        let (lesson, records) = (lesson(), [record()]);
        let text = headlines(&[Lesson::of(&lesson, &records)], 80, PLAIN).join("\n");
        assert!(text.starts_with("\n02 · Answers\n") && text.contains("prefork --workers 3  ██"), "{text}");
    }
}
