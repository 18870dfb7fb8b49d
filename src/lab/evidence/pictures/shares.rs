//! Who got the connections: a small picture for each row, a bar for each worker, and behind them the band in which 95 %
//! of the workers would lie if every connection went to a worker by chance. The bars are those of one run, so they add
//! up to 100 %. Medians over the runs would not: where one worker gets most, it is another worker in each run.

use crate::lab::evidence::columns::{connections_of_median_run, connections_per_worker};
use crate::lab::evidence::pictures::series::Line;
use crate::lab::evidence::pictures::svg::{Anchor, Svg, fill};
use crate::lab::plan::picture::Picture;
use crate::terminal::shortened;
use crate::units::grouped;

const TOP: f64 = 88.0;
const COLUMNS: usize = 4;
const CELL: (f64, f64) = (212.0, 150.0);
const PLOT: (f64, f64) = (176.0, 92.0);

const LONGEST_NAME: usize = 25;

const WHAT: [&str; 2] = [
    "Bars: each worker's share in one run, the one with the median dispersion D (of two in the middle, the lower D).",
    "Dots: each run. Grey: where 95 % of the workers lie by chance.",
];

/// The workers' shares of the connections, as parts of 1.
struct Shares {
    /// The shares in the run with the median dispersion D.
    drawn: Vec<f64>,
    /// How many connections that run had.
    connections: u64,
    runs: Vec<Vec<f64>>,
}

pub fn of_workers(picture: &Picture, lines: &[Line]) -> Option<String> {
    let cells: Vec<(&Line, Shares)> = lines.iter().filter_map(|line| Some((line, shares(line)?))).collect();
    let most = cells.iter().flat_map(|(_, shares)| shares.runs.iter().flatten().copied()).fold(0.0, f64::max);
    let top = if most <= 0.5 { 0.5 } else { 1.0 };
    let mut svg = Svg::new(&picture.title);
    for (y, what) in [44.0, 62.0].into_iter().zip(WHAT) {
        svg.text((16.0, y), Anchor::Start, "soft", what);
    }
    for (i, (line, shares)) in cells.iter().enumerate() {
        let corner = (24.0 + CELL.0 * (i % COLUMNS) as f64, TOP + CELL.1 * (i / COLUMNS) as f64);
        cell(&mut svg, corner, line, shares, top);
    }
    let height = TOP + CELL.1 * cells.len().div_ceil(COLUMNS) as f64;
    let of_cell = |(line, shares): &(&Line, Shares)| format!("{}: {}", line.name, percents(&shares.drawn));
    let description = format!("{} {}", WHAT.join(" "), cells.iter().map(of_cell).collect::<Vec<_>>().join("; "));
    (!cells.is_empty()).then(|| svg.finish(height, &description))
}

fn shares(line: &Line) -> Option<Shares> {
    let rows = &line.points.first()?.runs;
    let drawn = connections_of_median_run(rows)?;
    let runs = rows.iter().filter_map(|row| connections_per_worker(row));
    Some(Shares {
        connections: drawn.iter().sum(),
        runs: runs.map(|counts| parts(&counts)).collect(),
        drawn: parts(&drawn),
    })
}

fn parts(counts: &[u64]) -> Vec<f64> {
    let total = counts.iter().sum::<u64>() as f64;
    counts.iter().map(|count| *count as f64 / total).collect()
}

fn percents(shares: &[f64]) -> String {
    shares.iter().map(|share| format!("{:.1} %", 100.0 * share)).collect::<Vec<_>>().join(", ")
}

fn cell(svg: &mut Svg, (x, y): (f64, f64), line: &Line, shares: &Shares, top: f64) {
    let chance = 1.0 / shares.drawn.len() as f64;
    // The binomial's standard deviation, and the normal's 95 %.
    let band = 1.96 * (chance * (1.0 - chance) / shares.connections as f64).sqrt();
    let at = |share: f64| y + 18.0 + PLOT.1 * (1.0 - share / top);
    svg.open(&format!("{}: {} of {} connections", line.name, percents(&shares.drawn), grouped(shares.connections)));
    svg.text((x, y + 4.0), Anchor::Start, "ink name", &shortened(&line.name, LONGEST_NAME));
    let height = (at(chance - band) - at(chance + band)).max(2.0);
    svg.rect((x, at(chance) - height / 2.0), (PLOT.0, height), "band");
    let step = PLOT.0 / shares.drawn.len() as f64;
    for (worker, share) in shares.drawn.iter().enumerate() {
        let left = x + step * worker as f64;
        let width = (step - 4.0).max(2.0);
        svg.rect((left + 2.0, at(*share)), (width, at(0.0) - at(*share)), &format!("bar {}", fill(0)));
        let runs = shares.runs.iter().filter_map(|run| run.get(worker));
        runs.for_each(|run| svg.dot((left + step / 2.0, at(*run)), 0));
    }
    svg.line((x, at(0.0)), (x + PLOT.0, at(0.0)), "rule");
    let busiest = shares.drawn.iter().copied().fold(0.0, f64::max);
    let text = format!("busiest {:.1} %, by chance {:.1} %", 100.0 * busiest, 100.0 * chance);
    svg.text((x, at(0.0) + 15.0), Anchor::Start, "soft small", &text);
    svg.close();
}
