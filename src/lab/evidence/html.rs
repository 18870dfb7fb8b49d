//! All pages as one HTML file that needs no network and no other file: the Markdown of the pages, with the pictures
//! inside, tables that fold and sort, and each number of a picture shown where a reader points at it or goes to it with
//! a key.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd, html};

use crate::lab::evidence::lesson::{Lesson, Links};
use crate::lab::evidence::pages::PageSection;
use crate::lab::evidence::pictures::{STYLE, escaped};
use crate::lab::evidence::{overview, pages};

const PAGE_STYLE: &str = include_str!("html.css");
const SCRIPT: &str = include_str!("html.js");
/// The browser itself refuses every request.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// The whole file.
pub fn page(lessons: &[Lesson]) -> String {
    let contents: String = lessons.iter().map(entry).collect();
    let sections: String = lessons.iter().map(section).collect();
    let before = overview::before(lessons, &Links::REPOSITORY);
    let (how, machines) = before.split_once("\n\n## ").unwrap_or((&before, ""));
    let (how, machines) = (rendered(how, &[]), rendered(&format!("## {machines}"), &[]));
    let after = rendered(&overview::after(lessons), &[]);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n<title>acceptlab: results</title>\n\
         <style>\n{STYLE}\n{PAGE_STYLE}</style>\n</head>\n<body>\n<main>\n{how}\
         <nav aria-label=\"Contents\">\n<h2>Contents</h2>\n<ul>\n{contents}</ul>\n</nav>\n{machines}{sections}\
         <section>\n{after}</section>\n</main>\n<div id=\"value\" hidden></div>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )
}

/// A lesson in the contents, with its verdicts.
fn entry(lesson: &Lesson) -> String {
    let mut verdicts: Vec<(&str, usize)> = Vec::new();
    for name in lesson.judged.iter().map(|judged| judged.verdict.name()) {
        match verdicts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => verdicts.push((name, 1)),
        }
    }
    let verdicts: Vec<String> = verdicts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let experiment = lesson.experiment;
    let (name, title) = (escaped(&experiment.name), escaped(&experiment.title));
    format!("<li><a href=\"#{name}\">{} · {title}</a> <small>{}</small></li>\n", lesson.number(), verdicts.join(", "))
}

/// A lesson's page; what is long is folded.
fn section(lesson: &Lesson) -> String {
    let mut text = format!("<section id=\"{}\">\n", escaped(&lesson.experiment.name));
    for PageSection { level, title, body } in pages::parts(lesson, false) {
        let body = rendered(&body, std::slice::from_ref(lesson));
        text += &match (level, title.as_str()) {
            (1, _) => format!("<h2>{}</h2>\n{body}", escaped(&title)),
            (2, "Claims" | "Tables") => format!("<h3>{title}</h3>\n{body}"),
            _ => format!("<details><summary>{}</summary>\n{body}</details>\n", rendered(&title, &[])),
        };
    }
    text + "</section>\n"
}

/// Markdown as HTML, with the pictures of these lessons in it. No other file is there: a link to one is only its text.
fn rendered(markdown: &str, lessons: &[Lesson]) -> String {
    let (mut is_image, mut is_link) = (false, false);
    let events = Parser::new_ext(markdown, Options::ENABLE_TABLES).filter_map(|event| {
        let raw = |text: String| Some(Event::InlineHtml(text.into()));
        match event {
            Event::Start(Tag::Image { dest_url, .. }) => {
                is_image = true;
                raw(picture(lessons, &dest_url))
            }
            Event::End(TagEnd::Image) => {
                is_image = false;
                None
            }
            _ if is_image => None,
            Event::Start(Tag::Link { dest_url, .. }) => {
                let lesson = dest_url.strip_suffix(".md").and_then(|path| path.rsplit_once("results/"));
                is_link = lesson.is_some();
                lesson.and_then(|(_, name)| raw(format!("<a href=\"#{}\">", escaped(name))))
            }
            Event::End(TagEnd::Link) => raw("</a>".to_string()).filter(|_| is_link),
            other => Some(other),
        }
    });
    let mut text = String::new();
    html::push_html(&mut text, events);
    text
}

/// The picture of this file, without the style that the page has once.
fn picture(lessons: &[Lesson], file: &str) -> String {
    let all = lessons.iter().flat_map(|lesson| lesson.pictures.iter().map(move |picture| (lesson, picture)));
    let drawn = all.filter(|(lesson, picture)| lesson.picture_file(picture) == file).map(|(_, picture)| &picture.svg);
    let style = format!("<style>\n{STYLE}\n</style>\n");
    drawn.map(|svg| format!("<span class=\"figure\" tabindex=\"0\">{}</span>", svg.replace(&style, ""))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::evidence::lesson::tests::{experiment, record};
    use crate::lab::plan::experiment::Experiment;

    #[test]
    fn the_file_stands_alone() {
        let experiment = Experiment { answer: "A `<b>` | *c*.".to_string(), ..experiment() };
        let records = [record(1)];
        let text = page(&[Lesson::of(&experiment, &records)]);
        assert!(text.contains("<code>&lt;b&gt;</code> | <em>c</em>."), "{text}");
        assert!(text.contains("<a href=\"#02-keep-alive\">02 · A title</a>"), "{text}");
        assert!(text.contains("<td style=\"text-align: right\">90</td>") || text.contains(">90</td>"), "{text}");
        for other_file in ["src=\"", "href=\"http", "url(", ".md\"", ".jsonl\""] {
            assert!(!text.contains(other_file), "{other_file} in {text}");
        }
    }
}
