//! Win rates, lengths, and the table of iterations.

use sppo_core::statistics::Interval;

use super::{color, iteration_name, of_run, with_details};
use crate::page::{
    Axis, Block, Column, Format, IntervalSeries, Intervals, Lines, Section, Series, Table,
};
use crate::run::{IterationSummary, RunReport};

/// Win rate per iteration with its interval and at equal length, lengths, and all of it as a table.
pub(super) fn section(runs: &[RunReport]) -> Section {
    let mut section = Section::new("results", "Win rate");
    if runs.iter().any(|run| run.iterations.iter().any(|one| one.report.win_rate.is_some())) {
        section =
            section.block(Block::Intervals(win_rates(runs))).block(Block::Lines(lengths(runs)));
    }
    let tables: Vec<Block> = runs
        .iter()
        .filter(|run| !run.iterations.is_empty())
        .map(|run| Block::Table(table(runs, run)))
        .collect();
    if runs.len() > 1 {
        section = section.block(Block::Table(last_iterations(runs)));
    }
    with_details(section, runs, "Iteration by iteration", tables)
}

/// The last iteration of each run, one below the other.
fn last_iterations(runs: &[RunReport]) -> Table {
    let mut table = Table::new([
        Column::text("run"),
        Column::number("iterations", Format::Integer),
        Column::number("win rate", Format::Percent),
        Column::number("at equal length", Format::Percent),
        Column::number("tokens", Format::Number),
        Column::number("chosen", Format::Signed),
        Column::number("rejected", Format::Signed),
        Column::number("time", Format::Duration),
    ]);
    table.title = Some("After the last iteration".into());
    table.note = Some(
        "Win rates are against each run's own start. Chosen and rejected: mean change of the log-probability in \
         the last iteration."
            .into(),
    );
    for run in runs {
        let last = run.iterations.last().filter(|last| last.report.iteration > 0);
        let report = last.map(|last| &last.report);
        table.row([
            run.name.as_str().into(),
            run.iterations.len().saturating_sub(1).into(),
            report.and_then(|report| report.win_rate).into(),
            last.and_then(|last| last.length_controlled).into(),
            report.and_then(|report| report.mean_response_tokens).into(),
            report.and_then(|report| report.chosen_log_prob_change).into(),
            report.and_then(|report| report.rejected_log_prob_change).into(),
            run.iterations.iter().map(|one| one.report.seconds).sum::<f64>().into(),
        ]);
    }
    table
}

fn win_rates(runs: &[RunReport]) -> Intervals {
    let most = runs.iter().map(|run| run.iterations.len()).max().unwrap_or(0);
    let confidence = runs.first().map_or(0.95, |run| run.confidence);
    let mut series = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let mut add = |name: &str, color, hollow, of: fn(&IterationSummary) -> Option<Interval>| {
            let points: Vec<Option<Interval>> = run.iterations.iter().skip(1).map(of).collect();
            if points.iter().any(Option::is_some) {
                let name = of_run(runs, run, name);
                series.push(IntervalSeries { name, color, hollow, points });
            }
        };
        let of_start = if runs.len() == 1 { "against the start" } else { "" };
        let main = if runs.len() == 1 { color::MAIN } else { index };
        add(of_start, main, false, |one| one.report.win_rate);
        // Of several runs, these are in the tables: each has its interval in the chart already.
        if runs.len() > 1 {
            continue;
        }
        add("at equal length", main, true, |one| one.length_controlled);
        if run.iterations.len() > 2 {
            add("against the iteration before", color::OTHER, false, |one| one.against_previous);
        }
    }
    Intervals {
        title: "Win rate on held-out prompts".into(),
        note: Some(format!(
            "Mean probability that the oracle prefers the model's answer, over both orders of presentation, \
             with its {:.0} % bootstrap interval over prompts.",
            100.0 * confidence
        )),
        y: Axis::new("win rate", Format::Percent),
        labels: (1..most as u32).map(iteration_name).collect(),
        reference: Some(0.5),
        series,
        wide: false,
    }
}

fn lengths(runs: &[RunReport]) -> Lines {
    let series = runs.iter().enumerate().map(|(index, run)| Series {
        name: of_run(runs, run, "mean length"),
        color: index,
        x: run.iterations.iter().map(|one| f64::from(one.report.iteration)).collect(),
        y: run.iterations.iter().map(|one| one.report.mean_response_tokens).collect(),
        ..Series::default()
    });
    Lines {
        title: "Length of held-out answers".into(),
        note: Some("An oracle may prefer long or short answers for their length alone.".into()),
        x: Axis::new("iteration (0 is the start)", Format::Integer),
        y: Axis::new("tokens", Format::Number),
        series: series.collect(),
        ..Lines::default()
    }
}

fn table(runs: &[RunReport], run: &RunReport) -> Table {
    let mut table = Table::new([
        Column::text("iteration"),
        Column::number("win rate", Format::Percent),
        Column::number("at equal length", Format::Percent),
        Column::number("against the one before", Format::Percent),
        Column::number("tokens", Format::Number),
        Column::number("ended", Format::Percent),
        Column::number("prompts", Format::Integer),
        Column::number("trained on", Format::Integer),
        Column::number("time", Format::Duration),
    ]);
    table.title = (runs.len() > 1).then(|| run.name.clone());
    for one in &run.iterations {
        let IterationSummary { report, against_previous, length_controlled, prompts, .. } = one;
        let played = |count: usize| (report.iteration > 0).then_some(count);
        table.row([
            iteration_name(report.iteration).into(),
            report.win_rate.into(),
            (*length_controlled).into(),
            (*against_previous).into(),
            report.mean_response_tokens.into(),
            report.stop_rate.into(),
            played(*prompts).into(),
            played(report.examples).into(),
            report.seconds.into(),
        ]);
    }
    table.without_empty_columns()
}
