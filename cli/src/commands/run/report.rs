//! Report on a run: a short table, the path of the model, and commands to try next.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use sppo_core::config::Config;
use sppo_core::observer::IterationReport;
use sppo_core::oracle_quality::{ServiceCounters, VerdictCounts};
use sppo_report::shell_quoted;

use super::REPORT_FILE_NAME;
use super::plan::RunPlan;
use crate::failure::Result;
use crate::output;
use crate::terminal::{
    Alignment, Table, Terminal, counted, duration, interval, number, percent, signed,
};

/// The report as JSON.
#[derive(Serialize)]
struct RunReport<'a> {
    name: &'a str,
    directory: PathBuf,
    /// The model after the last iteration.
    checkpoint: Option<&'a Path>,
    /// The report to look at.
    report: PathBuf,
    /// The starting model (iteration 0), then every iteration.
    iterations: &'a [IterationReport],
}

pub(super) fn show(
    plan: &RunPlan,
    reports: Vec<IterationReport>,
    json: bool,
    terminal: &Terminal,
) -> Result<()> {
    let last = reports.iter().rfind(|report| report.iteration > 0);
    let checkpoint = last.map(|report| report.checkpoint.as_path());
    if json {
        return output::json(&RunReport {
            name: &plan.config.name,
            directory: plan.config.run_path(),
            checkpoint,
            report: plan.config.run_path().join(REPORT_FILE_NAME),
            iterations: &reports,
        });
    }
    let mut text = format!("\n{}", table(&reports, plan).render(terminal.stdout_style()));
    text.push_str(&terminal.stdout_style().dim(
        "win rate: against the starting model, on held-out prompts, as are tokens and ended\n\
         chosen, rejected: change of the log-probability of what was trained on\n",
    ));
    let habits = habits(&reports);
    if !habits.is_empty() {
        text.push_str(&format!("\noracle      {}\n", habits.join("\n            ")));
    }
    if let Some(checkpoint) = checkpoint {
        text.push_str(&format!("\ncheckpoint  {}\n", checkpoint.display()));
        let report = plan.config.run_path().join(REPORT_FILE_NAME);
        text.push_str(&format!("report      {}\n", report.display()));
    }
    output::text(&text)?;
    if let (Some(start), Some(checkpoint)) = (reports.first(), checkpoint) {
        // A name is easier to read than the file that it stands for.
        let start = match plan.config.revision {
            None => Path::new(&plan.config.model),
            Some(_) => &start.checkpoint,
        };
        terminal.note(&format!(
            "\nnext:\n  {}\n  {}\n  {}",
            chat_command(start, checkpoint),
            eval_command(checkpoint, start),
            more_iterations_command(&plan.config)
        ));
    }
    Ok(())
}

fn table(reports: &[IterationReport], plan: &RunPlan) -> Table {
    let confidence = format!("{:.0} % interval", 100.0 * plan.config.evaluation.confidence);
    let mut table = Table::new(&[
        ("iteration", Alignment::Left),
        ("win rate", Alignment::Right),
        (&confidence, Alignment::Right),
        ("tokens", Alignment::Right),
        ("ended", Alignment::Right),
        ("chosen", Alignment::Right),
        ("rejected", Alignment::Right),
        ("pairs", Alignment::Right),
        ("time", Alignment::Right),
    ]);
    let or_dash = |value: Option<f64>, show: fn(f64) -> String| value.map_or("-".into(), show);
    for report in reports {
        let is_start = report.iteration == 0;
        table.row([
            if is_start { "start".into() } else { report.iteration.to_string() },
            or_dash(report.win_rate.map(|interval| interval.mean), percent),
            report.win_rate.map_or("-".into(), interval),
            or_dash(report.mean_response_tokens, number),
            or_dash(report.stop_rate, percent),
            or_dash(report.chosen_log_prob_change, signed),
            or_dash(report.rejected_log_prob_change, signed),
            if is_start { "-".into() } else { report.examples.to_string() },
            duration(Duration::from_secs_f64(report.seconds.clamp(0.0, 1e9))),
        ]);
    }
    table
}

/// Lines on an oracle that tells both orders of presentation: how much it favours a place, goes round in circles,
/// and, of a model that is asked in process, says something else than its labels.
fn habits(reports: &[IterationReport]) -> Vec<String> {
    let uses = || reports.iter().filter_map(|report| report.oracle.as_ref());
    let verdicts = VerdictCounts::total(uses().map(|one| &one.verdicts));
    let Some(first) = verdicts.first_place_probability else { return Vec::new() };
    let share = |part: usize, whole: usize| percent(part as f64 / whole.max(1) as f64);
    let mut lines =
        vec![format!("gives what it reads first {} (50 % favours no place)", percent(first))];
    // Neither is known where each pair was asked about in one order, or not every pair was.
    if verdicts.both_orders > 0 {
        let changed = share(verdicts.order_dependent, verdicts.both_orders);
        let pairs = counted(verdicts.both_orders, "pair");
        lines.push(format!("the winner depends on the order in {changed} of {pairs}"));
    }
    if verdicts.triples > 0 {
        let circles = share(verdicts.intransitive, verdicts.triples);
        let triples = counted(verdicts.triples, "triple");
        lines.push(format!("{circles} of {triples} go round in circles"));
    }
    let mut counters = ServiceCounters::default();
    uses().for_each(|one| counters.add_gain(&ServiceCounters::default(), &one.service));
    if let Some((_, probability)) = counters.labels() {
        lines.push(format!("its labels have {} of the probability", percent(probability)));
    }
    lines
}

/// The name under which this program was called.
fn program() -> &'static str {
    // Cargo sets this for what it runs.
    if std::env::var_os("CARGO").is_some() { "cargo run --release --" } else { "sppo" }
}

/// The command that goes on with a run, to be copied as it stands.
pub(super) fn resume_command(config: &Config) -> String {
    let elsewhere = config.run_directory != Config::default().run_directory;
    let directory = if elsewhere {
        format!(" --run-directory {}", quoted(&config.run_directory))
    } else {
        String::new()
    };
    format!("{} run --resume --name {}{directory}", program(), quoted(Path::new(&config.name)))
}

/// This program's command as it was typed, to be copied as it stands.
pub(in crate::commands) fn typed_command() -> String {
    let words = std::env::args_os().skip(1).map(|word| quoted(Path::new(&word)));
    [program().to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

/// The command that talks to the model before and after.
fn chat_command(before: &Path, after: &Path) -> String {
    format!("{} chat --model {} --model {}", program(), quoted(before), quoted(after))
}

/// The command that judges the model on other prompts.
fn eval_command(model: &Path, against: &Path) -> String {
    format!(
        "{} eval --model {} --against {} --samples 4",
        program(),
        quoted(model),
        quoted(against)
    )
}

/// The command that plays on.
fn more_iterations_command(config: &Config) -> String {
    let iterations = config.iterations + 2;
    format!("{} --iterations {iterations} --allow iterations", resume_command(config))
}

/// A path as a POSIX shell takes it.
fn quoted(path: &Path) -> String {
    shell_quoted(&path.display().to_string())
}
