//! A lesson's pictures as SVG: every run a dot, its row's median and interval, and names where the eye already is. The
//! same rows give the same bytes.
//!
//! Two crates were tried with our rows (lines with their runs, bars in a band of chance): plotters 0.3 and kuva 0.6
//! give the same bytes each time and need 20 to 30 lines of ours for a picture. But neither writes a title or a
//! `<desc>`, nor colours for a dark page into the same file, nor pushes names at the ends of lines apart: kuva cuts
//! them off at the edge (and did not draw the band), plotters has places for them, and no text for a dot. Their files
//! are larger, by a third and more. What would be saved are scales and ticks; placing text is most of this code, and it
//! would stay ours.

mod bars;
mod distribution;
mod lines;
mod over_time;
mod scale;
mod series;
mod shares;
mod svg;
mod text;
mod theory;

pub use svg::{STYLE, escaped};

use crate::lab::evidence::pictures::series::lines_of;
use crate::lab::plan::experiment::Experiment;
use crate::lab::plan::matrix::PictureKind;
use crate::lab::plan::picture::Picture;
use crate::lab::record::{Record, Row};

/// A picture that is drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    pub id: String,
    pub title: String,
    pub svg: String,
}

/// All pictures of a lesson for which there are rows.
pub fn draw_all(experiment: &Experiment, record: &Record) -> Vec<Drawn> {
    let rows: Vec<&Row> = record.rows.iter().filter(|row| row.experiment == experiment.name).collect();
    experiment.pictures.iter().filter_map(|picture| draw(picture, experiment, &rows)).collect()
}

/// A picture in characters, see [`text`]; nothing where there are no rows.
pub fn in_text(picture: &Picture, experiment: &Experiment, record: &Record, width: usize, most: usize) -> Vec<String> {
    let rows: Vec<&Row> = record.rows.iter().filter(|row| row.experiment == experiment.name).collect();
    text::of_lines(picture, &lines_of(picture, experiment, &rows), width, most)
}

fn draw(picture: &Picture, experiment: &Experiment, rows: &[&Row]) -> Option<Drawn> {
    let lines = lines_of(picture, experiment, rows);
    if lines.is_empty() {
        return None;
    }
    let svg = match picture.kind {
        PictureKind::Lines => lines::over_x(picture, &lines),
        PictureKind::Distribution => distribution::of_rows(picture, &lines),
        PictureKind::OverTime => over_time::of_runs(picture, &lines),
        PictureKind::Bars => bars::of_tables(picture, &lines),
        PictureKind::Stack => bars::stacked(picture, &lines),
        PictureKind::Shares => shares::of_workers(picture, &lines),
    }?;
    Some(Drawn { id: picture.id.clone(), title: picture.title.clone(), svg })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::evidence::columns::tests::row;
    use crate::lab::plan::events::InjectedEvent;
    use crate::lab::plan::experiment::tests::parse_lesson;
    use crate::report::{TimeSeries, WorkerShare};

    fn lesson(picture: &str) -> Experiment {
        let table = "server = [{ run = \"sync\" }, { run = \"prefork --workers {w}\" }]\nload = \"loadgen\"\n\
                     axes = { w = [1, 4] }\ncolumns = [\"qps\"]\n[[picture]]\nid = \"p\"\ntitle = \"A < B\"\ntable = \"t\"\n";
        parse_lesson(&format!("{table}{picture}")).unwrap()
    }

    /// Two servers, two values of the axis, three runs of each.
    fn record() -> Record {
        let servers = ["sync", "prefork --workers {w}"];
        let cases = servers.iter().flat_map(|server| ["1", "4"].map(|w| (*server, w)));
        let of_case = |(case, (server, w)): (usize, (&str, &str))| {
            let coordinates = [("w", w), ("server", server), ("client", "loadgen")];
            let mut row = row();
            (row.experiment, row.table, row.case) = ("02-keep-alive".to_string(), "t".to_string(), case);
            row.coordinates = coordinates.map(|(name, value)| (name.to_string(), value.to_string())).to_vec();
            let load = row.load.as_mut().unwrap();
            load.latency_us.max = 9_000.0;
            [100.0, 110.0, 130.0].map(|qps| {
                row.load.as_mut().unwrap().qps = qps * (case + 1) as f64;
                row.clone()
            })
        };
        let rows = cases.enumerate().flat_map(of_case).collect();
        Record { file: String::new(), header: Default::default(), rows }
    }

    fn drawn(picture: &str) -> String {
        let mut all = draw_all(&lesson(picture), &record());
        assert_eq!(all.len(), 1, "{picture}");
        all.remove(0).svg
    }

    /// Circles, squares, triangles and diamonds.
    fn dots(svg: &str) -> usize {
        svg.matches("class=\"run ").count()
    }

    const ALL: [&str; 5] = [
        "kind = \"lines\"\nx = \"w\"\ny = \"qps\"\nlog = [\"x\", \"y\"]",
        "kind = \"bars\"\nx = \"w\"\ny = \"qps\"",
        "kind = \"shares\"",
        "kind = \"distribution\"\nlog = [\"x\"]\nonly = { w = 1 }",
        "kind = \"stack\"\ny = [\"p50\", \"p99\"]\nonly = { w = 1 }",
    ];

    #[test]
    fn the_same_rows_give_the_same_bytes_with_a_title_and_a_description() {
        for picture in ALL {
            let svg = drawn(picture);
            assert_eq!(svg, drawn(picture));
            assert!(
                svg.contains("<title>A &lt; B</title>\n<desc>") && svg.contains("prefers-color-scheme:dark"),
                "{svg}"
            );
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert_eq!(svg.matches("<g ").count(), svg.matches("</g>").count());
        }
    }

    #[test]
    fn every_run_is_a_dot_and_every_row_says_its_number_when_one_points_at_it() {
        let (lines, bars) = (drawn(ALL[0]), drawn(ALL[1]));
        assert_eq!((dots(&lines), dots(&bars)), (12, 12));
        assert!(lines.contains("<title>prefork, w 4: 440 [400, 520] requests/s (runs: 400; 440; 520)"), "{lines}");
        assert!(lines.contains("requests/s: sync 110 [100, 130] at 1, 220 [200, 260] at 4; prefork "), "{lines}");
    }

    #[test]
    fn the_shares_that_are_drawn_are_those_of_one_run_and_add_up_to_100_percent() {
        let mut record = record();
        // Another worker is the favourite in each run: by worker the medians are 20, 20 and 10 %. The last run of a row
        // is without an answer, and takes nothing away.
        let runs = [&[10, 10, 80][..], &[20, 70, 10], &[60, 20, 20], &[]];
        record.rows = record.rows.chunks(3).flat_map(|rows| [rows, &rows[..1]].concat()).collect();
        for (row, counts) in record.rows.iter_mut().zip(runs.iter().cycle()) {
            let load = row.load.as_mut().unwrap();
            let share = |connections: &u64| WorkerShare { connections: *connections, ..WorkerShare::default() };
            load.workers = counts.iter().enumerate().map(|(i, count)| (i.to_string(), share(count))).collect();
        }
        let svg = draw_all(&lesson("kind = \"shares\""), &record).remove(0).svg;
        let tooltips: Vec<&str> = svg.lines().filter(|line| line.contains(" of 100 connections")).collect();
        assert_eq!(tooltips.len(), 4, "{svg}");
        for tooltip in tooltips {
            let shares = tooltip.split(" of 100").next().and_then(|text| text.rsplit(": ").next()).unwrap();
            let percents: Vec<f64> =
                shares.split(", ").map(|share| share.trim_end_matches(" %").parse().unwrap()).collect();
            assert_eq!((percents.iter().sum::<f64>(), &percents[..]), (100.0, &[20.0, 70.0, 10.0][..]), "{tooltip}");
        }
    }

    const OVER_TIME: &str = "kind = \"over-time\"\nlog = [\"y\"]\nonly = { w = 1 }";

    #[test]
    fn a_run_over_time_has_a_chart_of_each_number_and_a_tick_for_each_event_in_both() {
        let mut record = record();
        assert_eq!(draw_all(&lesson(OVER_TIME), &record), [], "an older record has no series");
        for row in &mut record.rows {
            let load = row.load.as_mut().unwrap();
            load.duration_s = 0.4;
            load.time_series =
                Some(TimeSeries { interval_s: 0.1, answered: vec![5, 0, 10, 5], p99_us: vec![200, 0, 900, 300] });
            row.events = [100, 200].map(|at_ms| InjectedEvent { at_ms, what: "kill".to_string() }).into();
        }
        let svg = draw_all(&lesson(OVER_TIME), &record).remove(0).svg;
        let kills = svg.lines().filter(|line| line.contains("class=\"thick s1\""));
        assert_eq!(
            kills.map(|line| line.matches('M').count()).collect::<Vec<_>>(),
            [2; 4],
            "of two charts for two rows"
        );
        // The interval without an answer has no p99: before it stands one alone.
        assert_eq!((svg.matches("<polyline").count(), dots(&svg)), (2 * 2, 2), "{svg}");
        assert!(svg.contains("sync: 0 to 100 answers/s, p99 200 to 900 µs, 2 kills"), "{svg}");
        assert!(!svg.contains("NaN") && svg.contains("<desc>"), "{svg}");
    }

    #[test]
    fn what_was_not_measured_is_no_picture() {
        let mut record = record();
        record.rows.iter_mut().for_each(|row| row.failure = Some("ended".to_string()));
        for picture in ALL {
            assert_eq!(draw_all(&lesson(picture), &record), [], "{picture}");
        }
    }
}
