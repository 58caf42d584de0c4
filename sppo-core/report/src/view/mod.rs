//! The pages of runs: one run, or several side by side.

mod judging;
mod learning;
mod origin;
mod results;
mod samples;
mod verdict;
mod work;

use crate::page::{Block, Page, Section};
use crate::run::{RunReport, RunState};

/// Seconds between two looks at a run that is being played.
const RELOAD_SECONDS: u32 = 20;

/// Colours of the palette by their use in pages of one run; runs side by side have one each.
mod color {
    pub(super) const MAIN: usize = 0;
    pub(super) const REJECTED: usize = 1;
    pub(super) const CHOSEN: usize = 2;
    pub(super) const OTHER: usize = 3;
}

/// The page of one run or of several side by side, with its sections from the outcome to the origin.
#[must_use]
pub fn run_page(runs: &[RunReport]) -> Page {
    let title = match runs {
        [run] => run.name.clone(),
        _ => format!("{} runs side by side", runs.len()),
    };
    let mut page = Page::new(title, verdict::sentence(runs));
    page.facts = verdict::facts(runs);
    page.badges = verdict::badges(runs);
    let is_running = runs.iter().any(|run| run.state == RunState::Running);
    page.reload_seconds = is_running.then_some(RELOAD_SECONDS);
    page.section(results::section(runs))
        .section(learning::log_probs(runs))
        .section(learning::training(runs))
        .section(judging::section(runs))
        .section(judging::matrices(runs))
        .section(samples::section(runs))
        .section(judging::skipped(runs))
        .section(work::section(runs))
        .section(origin::section(runs))
}

/// The section with blocks that there is one of for each run: of several runs, out of the way until they are
/// asked for.
fn with_details(
    section: Section,
    runs: &[RunReport],
    summary: &str,
    blocks: Vec<Block>,
) -> Section {
    if runs.len() == 1 || blocks.is_empty() {
        return blocks.into_iter().fold(section, Section::block);
    }
    section.block(Block::Details { summary: summary.into(), blocks })
}

/// A name of something of a run; of several runs, with the run's name before it.
fn of_run(runs: &[RunReport], run: &RunReport, what: &str) -> String {
    match (runs.len(), what) {
        (1, what) => what.into(),
        (_, "") => run.name.clone(),
        (_, what) => format!("{}: {what}", run.name),
    }
}

/// `start`, or the number of the iteration.
fn iteration_name(iteration: u32) -> String {
    match iteration {
        0 => "start".into(),
        number => number.to_string(),
    }
}

/// A share, where there is anything that it can be a share of.
fn share(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// `71.0 %`, which stays on one line.
fn percent(share: f64) -> String {
    format!("{:.1}\u{a0}%", 100.0 * share)
}

/// `1 iteration`, `2 iterations`.
fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
