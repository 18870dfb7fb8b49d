//! One run with all that its plan asks for: its observers, its files, its report.

use crate::load::options::plan::{FileFormat, Plan, Progress};
use crate::load::output::destination::Destination;
use crate::load::output::export::{Files, both};
use crate::load::output::live::Live;
use crate::load::run::observers::{Observer, Observers};
use crate::load::run::{self, RunResult};
use crate::report::LoadReport;

/// A report, and the files beside it: the report is printed even if they cannot be written.
pub struct Measured {
    pub report: LoadReport,
    pub files: Result<(), String>,
}

/// Files are created before the run: a path that cannot be written must not cost a measurement, and a pipe may wait
/// for its reader as long as Ctrl-C still ends the program.
pub fn measure(plan: &Plan) -> Result<Measured, String> {
    let files = Files::create(&plan.files)?;
    let RunResult { report, distributions, span, observed } = run::run(plan, observers(plan)?)?;
    Ok(Measured { files: both(files.write(&distributions, &span, &report), observed), report })
}

fn observers(plan: &Plan) -> Result<Observers, String> {
    let mut observers: Vec<Box<dyn Observer>> = Vec::new();
    for (_, path) in plan.files.iter().filter(|(format, _)| *format == FileFormat::Ndjson) {
        observers.push(Box::new(Destination::create(path)?));
    }
    // Last: what fails before is said on a terminal that is not taken yet.
    if plan.progress == Progress::Live {
        observers.push(Box::new(Live::new(plan)));
    }
    Ok(Observers::new(observers, plan.interval))
}
