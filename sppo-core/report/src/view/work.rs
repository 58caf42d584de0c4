//! Time, speed and memory.

use super::{counted, iteration_name, of_run, with_details};
use crate::page::{BarSeries, Bars, Block, Cell, Column, Figure, Format, Section, Table};
use crate::run::RunReport;

/// Time per stage, tokens per second, and memory, predicted and measured.
pub(super) fn section(runs: &[RunReport]) -> Section {
    let mut section = Section::new("work", "Time and memory");
    match runs {
        [run] => section = section.block(Block::Figures { items: figures(run) }),
        _ => section = section.block(Block::Table(speeds(runs))),
    }
    let stages = runs
        .iter()
        .filter(|run| !run.stages.is_empty())
        .map(|run| Block::Bars(stages(runs, run)))
        .collect();
    section = with_details(section, runs, "Stage by stage", stages);
    let memory = runs.iter().filter_map(|run| memory(runs, run).map(Block::Bars)).collect();
    with_details(section, runs, "Memory", memory)
}

/// The figures of several runs, one below the other.
fn speeds(runs: &[RunReport]) -> Table {
    let mut table = Table::new([
        Column::text("run"),
        Column::number("time", Format::Duration),
        Column::number("sampling, tokens/s", Format::Number),
        Column::number("training, tokens/s", Format::Number),
        Column::number("memory, measured", Format::Bytes),
    ]);
    for run in runs {
        table.row([
            run.name.as_str().into(),
            seconds(run).into(),
            run.throughput.sampling().into(),
            run.throughput.training().into(),
            peak_memory(run).map(|bytes| bytes as f64).into(),
        ]);
    }
    table
}

fn seconds(run: &RunReport) -> f64 {
    run.iterations.iter().map(|one| one.report.seconds).sum()
}

fn peak_memory(run: &RunReport) -> Option<u64> {
    run.processes.iter().filter_map(|process| process.peak_memory).max()
}

fn figures(run: &RunReport) -> Vec<Figure> {
    let figure = |label: &str, value: Cell, format, detail: String| Figure {
        label: label.into(),
        value,
        format,
        detail: Some(detail),
    };
    let mut figures = vec![figure(
        "In all",
        seconds(run).into(),
        Format::Duration,
        counted(run.iterations.len().saturating_sub(1), "iteration"),
    )];
    let throughput = &run.throughput;
    if let Some(speed) = throughput.sampling() {
        let detail = format!("{} tokens sampled", throughput.sampled_tokens);
        figures.push(figure("Sampling, tokens/s", speed.into(), Format::Number, detail));
    }
    if let Some(speed) = throughput.training() {
        let detail = format!("{} tokens trained on, prompts included", throughput.trained_tokens);
        figures.push(figure("Training, tokens/s", speed.into(), Format::Number, detail));
    }
    if let Some(peak) = peak_memory(run) {
        let of = run.processes.iter().filter_map(|process| process.machine_memory).max();
        let detail = of.map(|bytes| format!("the machine has {:.1} GiB", bytes as f64 / GIBIBYTE));
        figures.push(figure(
            "Memory, measured",
            (peak as f64).into(),
            Format::Bytes,
            detail.unwrap_or_default(),
        ));
    }
    figures
}

const GIBIBYTE: f64 = (1u64 << 30) as f64;

/// A bar for each iteration, made of its stages.
fn stages(runs: &[RunReport], run: &RunReport) -> Bars {
    let mut iterations: Vec<u32> = run.stages.iter().map(|stage| stage.iteration).collect();
    iterations.sort_unstable();
    iterations.dedup();
    let seconds_of = |name: &str, iteration| {
        let mut found =
            run.stages.iter().filter(|one| one.iteration == iteration && one.stage == name);
        found.next().map(|stage| stage.seconds)
    };
    const ORDER: [&str; 7] = ["load", "sample", "judge", "reference", "train", "save", "evaluate"];
    let series = ORDER.iter().enumerate().map(|(color, name)| BarSeries {
        name: (*name).into(),
        color,
        values: iterations.iter().map(|&iteration| seconds_of(name, iteration)).collect(),
    });
    Bars {
        title: of_run(runs, run, "Time by stage"),
        note: Some(
            "Judging includes held-out answers; evaluating is the sampling of these.".into(),
        ),
        format: Format::Duration,
        labels: iterations.iter().map(|&iteration| iteration_name(iteration)).collect(),
        series: series.filter(|one| one.values.iter().any(Option::is_some)).collect(),
        wide: true,
    }
}

/// The prediction for each stage beside the measurement of the whole process.
fn memory(runs: &[RunReport], run: &RunReport) -> Option<Bars> {
    let process = run.processes.iter().max_by_key(|process| process.peak_memory)?;
    let mut rows: Vec<(String, f64, usize)> = process
        .predicted_memory
        .iter()
        .filter(|stage| stage.bytes > 0)
        .map(|stage| (format!("predicted, {}", stage.stage), stage.bytes as f64, 5))
        .collect();
    if rows.is_empty() {
        return None;
    }
    if let Some(peak) = process.peak_memory {
        rows.push(("measured, whole process".into(), peak as f64, 0));
    }
    let series = |color: usize, name: &str| BarSeries {
        name: name.into(),
        color,
        values: rows.iter().map(|row| (row.2 == color).then_some(row.1)).collect(),
    };
    Some(Bars {
        title: of_run(runs, run, "Memory"),
        note: Some(
            "Predicted for the policy alone, before the run; measured as the most that the process ever had in \
             RAM, with the program, its files and its oracle."
                .into(),
        ),
        format: Format::Bytes,
        labels: rows.iter().map(|row| row.0.clone()).collect(),
        series: vec![series(5, "predicted"), series(0, "measured")],
        wide: true,
    })
}
