//! What share of the requests took at most so long: a curve for each row, its runs behind it as thin ones.

use crate::lab::evidence::pictures::scale::{Scale, label};
use crate::lab::evidence::pictures::series::{Line, commands};
use crate::lab::evidence::pictures::svg::{Anchor, Svg, WIDTH, fill, stroke, width_of};
use crate::lab::plan::picture::{Picture, Published};
use crate::lab::record::Row;
use crate::report::LoadReport;
use crate::stats::median;

const TOP: f64 = 62.0;
const BOTTOM: f64 = 332.0;
const LEFT: f64 = 64.0;
/// Where a name may stand, as a share of the requests: figures from elsewhere are medians and maxima.
const NAMED_AT: [f64; 4] = [0.8, 0.2, 0.7, 0.3];

/// Share of the requests and time in µs, rising.
type Points = Vec<(f64, f64)>;

struct DistributionCurve<'a> {
    line: &'a Line<'a>,
    runs: Vec<Points>,
    medians: Points,
}

pub fn of_rows(picture: &Picture, lines: &[Line]) -> Option<String> {
    let curves: Vec<DistributionCurve> = lines.iter().filter_map(curve).collect();
    let measured = curves.iter().flat_map(|curve| &curve.runs).flatten().map(|(_, us)| *us);
    let published = picture.published.iter().map(|figure| figure.value);
    let room = picture.published.iter().map(|figure| width_of(&figure.label) * 0.85).fold(0.0, f64::max);
    let right = WIDTH - room - 16.0;
    let x = Scale::new(measured.chain(published).collect::<Vec<_>>().into_iter(), picture.log_x, LEFT + 8.0, right);
    let mut svg = Svg::new(&picture.title);
    svg.text((16.0, TOP - 16.0), Anchor::Start, "soft", "requests that took at most so long, %");
    for percent in [0.0, 20.0, 40.0, 60.0, 80.0, 100.0] {
        let y = height(percent / 100.0);
        svg.line((LEFT, y), (right, y), "grid");
        svg.text((LEFT - 8.0, y + 4.0), Anchor::End, "soft small", &label(percent));
    }
    for tick in x.ticks() {
        svg.line((x.at(tick), BOTTOM), (x.at(tick), BOTTOM + 4.0), "rule");
        svg.text((x.at(tick), BOTTOM + 17.0), Anchor::Middle, "soft small", &label(tick));
    }
    svg.line((LEFT, BOTTOM), (right, BOTTOM), "rule");
    svg.text(((LEFT + right) / 2.0, BOTTOM + 36.0), Anchor::Middle, "soft", "response time µs");
    let place = |points: &Points| points.iter().map(|(share, us)| (x.at(*us), height(*share))).collect::<Vec<_>>();
    for (series, curve) in curves.iter().enumerate() {
        svg.open(&format!("{}: {}{}", curve.line.name, in_words(curve), commands(&curve.line.points[0])));
        curve.runs.iter().for_each(|run| svg.polyline(&place(run), &format!("line thin {}", stroke(series)), ""));
        svg.curve(&place(&curve.medians), series);
        svg.close();
    }
    for (series, curve) in curves.iter().enumerate() {
        let (x, y) = free_place(series, &curves, &x, right);
        svg.text((x + 10.0, y + 4.0), Anchor::Start, &fill(series), &curve.line.name);
    }
    picture.published.iter().for_each(|figure| mark(&mut svg, figure, &picture.published, &x));
    let of_curve = |curve: &DistributionCurve| format!("{} {}", curve.line.name, in_words(curve));
    let description = curves.iter().map(of_curve).collect::<Vec<_>>().join("; ");
    let description = format!("The response times µs that a share of the requests took at most: {description}.");
    (!curves.is_empty()).then(|| svg.finish(BOTTOM + 48.0, &description))
}

fn curve<'a>(line: &'a Line) -> Option<DistributionCurve<'a>> {
    let runs: Vec<Points> = line.points.first()?.runs.iter().filter_map(|row| quantiles(row)).collect();
    let times = |i: usize| runs.iter().filter_map(|run| Some(run.get(i)?.1)).collect::<Vec<f64>>();
    let shares = runs.first()?.iter().enumerate();
    let medians = shares.filter_map(|(i, (share, _))| Some((*share, median(&times(i))?))).collect();
    Some(DistributionCurve { line, runs, medians })
}

/// The quantiles of a row; only the upper half where its record is older than the others.
fn quantiles(row: &Row) -> Option<Points> {
    let load = row.load.as_ref().filter(|load| load.latency_us.max > 0.0)?;
    let times = &load.latency_us;
    let upper = [(0.5, times.p50), (0.9, times.p90), (0.99, times.p99), (0.999, times.p99_9), (1.0, times.max)];
    let all: Points = LoadReport::QUANTILES.into_iter().zip(load.latency_quantiles_us.iter().copied()).collect();
    Some(if all.is_empty() { upper.into() } else { all })
}

fn height(share: f64) -> f64 {
    BOTTOM - share * (BOTTOM - TOP)
}

/// `1 % 2,100, 50 % 24,600, 100 % 144,000`.
fn in_words(curve: &DistributionCurve) -> String {
    let word = |(share, us): &(f64, f64)| format!("{} % {}", label(100.0 * share), label(us.round()));
    curve.medians.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// The place beside a curve that has the most room to its right.
fn free_place(series: usize, curves: &[DistributionCurve], x: &Scale, right: f64) -> (f64, f64) {
    // Of the run that is farthest to the right.
    let at = |curve: &DistributionCurve, share: f64| {
        let times = curve.runs.iter().filter_map(|run| run.iter().find(|(known, _)| *known >= share));
        x.at(times.map(|(_, us)| *us).fold(0.0, f64::max))
    };
    let room = |share: f64| {
        let own = at(&curves[series], share);
        let others = curves.iter().map(|curve| at(curve, share)).filter(|other| *other > own);
        others.fold(right, f64::min) - own
    };
    let widest = NAMED_AT.into_iter().rev().max_by(|a, b| room(*a).total_cmp(&room(*b))).unwrap_or(0.5);
    (at(&curves[series], widest), height(widest))
}

/// A figure from elsewhere; of two at one height the left one has its label on its left.
fn mark(svg: &mut Svg, figure: &Published, all: &[Published], x: &Scale) {
    let (place, y) = (x.at(figure.value), height(figure.percent / 100.0));
    let is_left = all.iter().any(|other| other.percent == figure.percent && other.value > figure.value);
    // Above the last request there is no curve.
    let (dx, dy) = if figure.percent < 100.0 { (10.0, 4.0) } else { (-6.0, -10.0) };
    let (dx, anchor) = if is_left { (-dx, Anchor::End) } else { (dx, Anchor::Start) };
    svg.open(&format!("{}: {} % took at most {} µs", figure.label, label(figure.percent), label(figure.value)));
    svg.published((place, y));
    svg.text((place + dx, y + dy), anchor, "soft small", &figure.label);
    svg.close();
}
