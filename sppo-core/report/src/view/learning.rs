//! Training: log-probabilities with their targets, loss, gradient norm and learning rate.

use std::collections::BTreeMap;

use super::{color, iteration_name, of_run, with_details};
use crate::page::{Axis, Block, Column, Format, Lines, Mark, Section, Series, Table};
use crate::run::{IterationSummary, RunReport, StepSummary};

/// A target further away than this many times the largest log-ratio would flatten the lines: it is hidden until
/// it is asked for.
const TARGET_IN_SIGHT: f64 = 6.0;
/// Steps that are drawn of a run, at most and about.
const MOST_STEPS: usize = 1000;

/// A number of a step.
type StepValue = fn(&StepSummary) -> Option<f64>;
/// A number of an iteration.
type IterationValue = fn(&IterationSummary) -> Option<f64>;

/// One side of a pair.
struct Side {
    name: &'static str,
    color: usize,
    log_ratio: StepValue,
    change: IterationValue,
    target: IterationValue,
}

const CHOSEN: Side = Side {
    name: "chosen",
    color: color::CHOSEN,
    log_ratio: |step| step.chosen_log_ratio,
    change: |one| one.report.chosen_log_prob_change,
    target: |one| one.chosen_target,
};
const REJECTED: Side = Side {
    name: "rejected",
    color: color::REJECTED,
    log_ratio: |step| step.rejected_log_ratio,
    change: |one| one.report.rejected_log_prob_change,
    target: |one| one.rejected_target,
};

/// Change of the log-probabilities of chosen and rejected responses, step by step, with the targets.
pub(super) fn log_probs(runs: &[RunReport]) -> Section {
    let mut section = Section::new("log-probs", "Log-probabilities").note(
        "Lines: mean log-ratios log(π/πₜ) of each batch just before its own step, which begins every iteration at 0. \
         Circles: the change on the first 16 examples after the iteration, when they have been trained on. Chosen \
         answers should rise towards their target, rejected ones fall.",
    );
    if runs.iter().all(|run| run.steps.is_empty()) {
        return section;
    }
    match runs {
        [run] => {
            let lines =
                [&CHOSEN, &REJECTED].map(|side| side_lines(run, side, side.color, side.name));
            let title = "Chosen and rejected answers, with their targets";
            section =
                section.block(Block::Lines(log_ratio_lines(title, lines.concat(), marks(run))));
        }
        runs => {
            for (side, title) in [(&CHOSEN, "Chosen answers"), (&REJECTED, "Rejected answers")] {
                let lines = runs
                    .iter()
                    .enumerate()
                    .map(|(index, run)| side_lines(run, side, index, &run.name));
                let lines: Vec<Series> = lines.flatten().collect();
                section = section.block(Block::Lines(log_ratio_lines(title, lines, Vec::new())));
            }
        }
    }
    let tables = runs.iter().map(|run| Block::Table(changes(runs, run))).collect();
    with_details(section, runs, "Iteration by iteration", tables)
}

fn log_ratio_lines(title: &str, series: Vec<Series>, marks: Vec<Mark>) -> Lines {
    let is_hidden = series.iter().any(|line| line.hidden);
    let note = is_hidden.then(|| {
        "The targets are far outside of this range; click on their names to see them.".to_owned()
    });
    Lines {
        title: title.into(),
        note,
        x: Axis::new("optimiser step", Format::Integer),
        y: Axis::new("log-ratio (nats per answer)", Format::Signed),
        series,
        marks,
        wide: true,
    }
}

/// The line of one side of the pairs, its change after each iteration and, where there is one, its target.
fn side_lines(run: &RunReport, side: &Side, color: usize, name: &str) -> Vec<Series> {
    let measured = line_of_steps(run, name.to_owned(), color, side.log_ratio);
    let after = after_iterations(run, format!("{name}, trained on"), color, side.change);
    let measurements = |side: &Side| {
        let ratios = run.steps.iter().map(side.log_ratio);
        largest_of(ratios.chain(run.iterations.iter().map(side.change)))
    };
    let largest = measurements(&CHOSEN).max(measurements(&REJECTED));
    let targets: BTreeMap<u32, f64> = run
        .iterations
        .iter()
        .filter_map(|one| Some((one.report.iteration, (side.target)(one)?)))
        .collect();
    let of_iteration = |step: &StepSummary| targets.get(&step.iteration).copied();
    let mut target = line_of_steps(run, format!("{name}, target"), color, of_iteration);
    target.dashed = true;
    target.hidden = largest_of(target.y.iter().copied()) > TARGET_IN_SIGHT * largest;
    match targets.is_empty() {
        true => vec![measured, after],
        false => vec![measured, after, target],
    }
}

/// A point after the last step of each iteration.
fn after_iterations(run: &RunReport, name: String, color: usize, value: IterationValue) -> Series {
    let mut series = Series { name, color, ..Series::default() };
    for one in &run.iterations {
        let last = run.steps.iter().rfind(|step| step.iteration == one.report.iteration);
        if let (Some(last), Some(value)) = (last, value(one)) {
            let place = last.number as f64;
            series.x.extend([place + 0.3, place + 0.5]);
            series.y.extend([Some(value), None]);
        }
    }
    series
}

/// The largest absolute value; 0 without any.
fn largest_of(values: impl Iterator<Item = Option<f64>>) -> f64 {
    values.flatten().map(f64::abs).fold(0.0, f64::max)
}

/// Distance of the steps that are drawn: of a long run not all, so that its page stays small.
fn stride(run: &RunReport) -> usize {
    run.steps.len().div_ceil(MOST_STEPS).max(1)
}

/// A line over the steps of a run, interrupted between iterations where `value` begins anew.
fn line_of_steps(
    run: &RunReport,
    name: String,
    color: usize,
    value: impl Fn(&StepSummary) -> Option<f64>,
) -> Series {
    let mut series = Series { name, color, ..Series::default() };
    let stride = stride(run);
    for (index, step) in run.steps.iter().enumerate() {
        let is_first = index > 0 && run.steps[index - 1].iteration != step.iteration;
        if is_first {
            series.x.push(step.number as f64 - 0.5);
            series.y.push(None);
        }
        let is_last = index + 1 == run.steps.len();
        if !is_first && !is_last && !index.is_multiple_of(stride) {
            continue;
        }
        series.x.push(step.number as f64);
        series.y.push(value(step));
    }
    series
}

/// The beginning of each iteration.
fn marks(run: &RunReport) -> Vec<Mark> {
    let mut marks = Vec::new();
    for (index, step) in run.steps.iter().enumerate() {
        if index == 0 || run.steps[index - 1].iteration != step.iteration {
            let label = format!("iteration {}", step.iteration);
            marks.push(Mark { x: step.number as f64 - 0.5, label });
        }
    }
    marks
}

/// Changes after each iteration beside the targets.
fn changes(runs: &[RunReport], run: &RunReport) -> Table {
    let mut table = Table::new([
        Column::text("iteration"),
        Column::number("chosen", Format::Signed),
        Column::number("target", Format::Signed),
        Column::number("rejected", Format::Signed),
        Column::number("target", Format::Signed),
    ]);
    table.title = Some(of_run(runs, run, "After the iteration"));
    table.note = Some(
        "Mean change of the log-probability on the first 16 examples; the targets are means over all examples."
            .into(),
    );
    for one in run.iterations.iter().filter(|one| one.report.iteration > 0) {
        table.row([
            iteration_name(one.report.iteration).into(),
            one.report.chosen_log_prob_change.into(),
            one.chosen_target.into(),
            one.report.rejected_log_prob_change.into(),
            one.rejected_target.into(),
        ]);
    }
    table
}

/// Loss, gradient norm and learning rate, step by step.
pub(super) fn training(runs: &[RunReport]) -> Section {
    let mut section = Section::new("training", "Training");
    if runs.iter().all(|run| run.steps.is_empty()) {
        return section;
    }
    if let Some(stride) = runs.iter().map(stride).max().filter(|stride| *stride > 1) {
        section = section.note(format!("Of many steps, one in {stride} is drawn."));
    }
    let charts: [(&str, Axis, StepValue); 3] = [
        ("Loss", Axis::new("mean over the batch", Format::Number), |step| step.loss),
        ("Gradient norm", Axis::new("before clipping", Format::Number), |step| step.gradient_norm),
        ("Learning rate", Axis::new("", Format::Scientific), |step| step.learning_rate),
    ];
    for (title, y, value) in charts {
        let series = runs.iter().enumerate().map(|(index, run)| {
            line_of_steps(run, of_run(runs, run, &title.to_lowercase()), index, value)
        });
        section = section.block(Block::Lines(Lines {
            title: title.into(),
            x: Axis::new("optimiser step", Format::Integer),
            y,
            series: series.collect(),
            marks: match runs {
                [run] => marks(run),
                _ => Vec::new(),
            },
            ..Lines::default()
        }));
    }
    section
}
