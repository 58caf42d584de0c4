//! A comparison's plan and outcome for people.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use sppo_core::comparison::{ArmReport, ComparisonReport};

use super::plan::ComparisonPlan;
use crate::commands::win_rates::{MATRIX_NOTE, matrix};
use crate::failure::Result;
use crate::output;
use crate::terminal::{
    Alignment, Table, Terminal, counted, duration, interval, number, percent, signed,
};

/// The plan as JSON.
#[derive(Serialize)]
struct PlanSummary<'a> {
    directory: &'a std::path::Path,
    judge: &'a str,
    /// To services, at most; `null` when no oracle asks one.
    expected_requests: Option<u64>,
    runs: Vec<RunSummary<'a>>,
}

#[derive(Serialize)]
struct RunSummary<'a> {
    name: &'a str,
    arm: &'a str,
    seed: u64,
    training_prompts: usize,
    held_out_prompts: usize,
    /// Whether it was begun already.
    resume: bool,
    settings: BTreeMap<String, String>,
}

/// Prints what would be done.
pub(super) fn plan(plan: &ComparisonPlan, json: bool, terminal: &Terminal) -> Result<()> {
    let runs = plan.runs.iter().map(|run| RunSummary {
        name: &run.cell.name,
        arm: &run.cell.arm,
        seed: run.plan.config.seed,
        training_prompts: run.plan.prompts.training.len(),
        held_out_prompts: run.plan.prompts.held_out.len(),
        resume: run.plan.resume,
        settings: run.cell.settings(),
    });
    let runs: Vec<RunSummary<'_>> = runs.collect();
    let expected_requests = plan.requests()?;
    let (directory, judge) = (plan.directory.as_path(), plan.judge.oracle.name.as_str());
    if json {
        return output::json(&PlanSummary { directory, judge, expected_requests, runs });
    }
    let mut table = Table::new(&[
        ("run", Alignment::Left),
        ("state", Alignment::Left),
        ("prompts", Alignment::Right),
        ("differs in", Alignment::Left),
    ]);
    for run in runs {
        let settings = run.settings.iter().map(|(key, value)| format!("{key} = {value}"));
        table.row([
            run.name.into(),
            if run.resume { "goes on" } else { "new" }.into(),
            run.training_prompts.to_string(),
            settings.collect::<Vec<_>>().join(", "),
        ]);
    }
    let requests = expected_requests.map_or(String::new(), |requests| {
        format!("\nup to {requests} requests of oracles, what is known or shared already aside\n")
    });
    output::text(&format!(
        "{}, judged by {judge}\n\n{}{requests}",
        directory.display(),
        table.render(terminal.stdout_style())
    ))
}

/// Prints the outcome.
pub(super) fn report(report: &ComparisonReport, terminal: &Terminal) -> Result<()> {
    let style = terminal.stdout_style();
    let names: Vec<&str> = [sppo_core::comparison::START]
        .into_iter()
        .chain(report.arms.iter().map(|arm| arm.name.as_str()))
        .collect();
    let runs = report.arms.first().map_or(0, |arm| arm.runs.len());
    output::text(&format!(
        "\n{}\n{}{}\n{}\n{}{}",
        last_iterations(report).render(style),
        by_iteration(report).map_or(String::new(), |table| format!("{}\n", table.render(style))),
        work(report).render(style),
        matrix(&names, &report.tournament.pairs).render(style),
        style.dim(MATRIX_NOTE),
        style.dim(&format!(
            "judged by {}, on {} with {}; {}\n\
             win rate: against the starting model, after the last iteration; intervals are over prompts and seeds\n\
             chosen, rejected: change of the log-probability of what was trained on, in the first iteration\n",
            report.judge,
            counted(report.prompts, "held-out prompt"),
            counted(report.samples_per_prompt, "answer"),
            counted(runs, "seed"),
        )),
    ))
}

fn or_dash(value: Option<f64>, show: fn(f64) -> String) -> String {
    value.map_or("-".into(), show)
}

fn last_iterations(report: &ComparisonReport) -> Table {
    let confidence = format!("{:.0} % interval", 100.0 * report.confidence);
    let mut table = Table::new(&[
        ("arm", Alignment::Left),
        ("win rate", Alignment::Right),
        (&confidence, Alignment::Right),
        ("equal length", Alignment::Right),
        ("tokens", Alignment::Right),
        ("ended", Alignment::Right),
        ("chosen", Alignment::Right),
        ("rejected", Alignment::Right),
    ]);
    for arm in &report.arms {
        let (Some(first), Some(last)) = (arm.iterations.first(), arm.iterations.last()) else {
            continue;
        };
        table.row([
            arm.name.clone(),
            percent(last.win_rate.mean),
            interval(last.win_rate),
            or_dash(last.length_controlled_win_rate.map(|rate| rate.mean), percent),
            or_dash(last.mean_response_tokens, number),
            or_dash(last.ended_share, percent),
            or_dash(first.chosen_log_prob_change, signed),
            or_dash(first.rejected_log_prob_change, signed),
        ]);
    }
    table
}

/// The win rate after each iteration; `None` where there is only one.
fn by_iteration(report: &ComparisonReport) -> Option<Table> {
    let most = report.arms.iter().map(|arm| arm.iterations.len()).max().filter(|most| *most > 1)?;
    let headings: Vec<String> = (1..=most).map(|iteration| iteration.to_string()).collect();
    let columns = headings.iter().map(|heading| (heading.as_str(), Alignment::Right));
    let mut table = Table::new(
        &[("win rate after iteration", Alignment::Left)]
            .into_iter()
            .chain(columns)
            .collect::<Vec<_>>(),
    );
    for arm in &report.arms {
        let rates = arm.iterations.iter().map(|iteration| percent(iteration.win_rate.mean));
        table.row([arm.name.clone()].into_iter().chain(rates));
    }
    Some(table)
}

fn work(report: &ComparisonReport) -> Table {
    let mut table = Table::new(&[
        ("one run", Alignment::Left),
        ("tokens sampled", Alignment::Right),
        ("trained", Alignment::Right),
        ("steps", Alignment::Right),
        ("time training", Alignment::Right),
        ("in all", Alignment::Right),
    ]);
    let seconds = |seconds: f64| duration(Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
    for ArmReport { name, work, time, .. } in &report.arms {
        table.row([
            name.clone(),
            number(work.sampled_tokens),
            number(work.trained_tokens),
            number(work.optimizer_steps),
            seconds(time.training_seconds),
            seconds(time.seconds),
        ]);
    }
    table
}
