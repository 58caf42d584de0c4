//! `sppo eval`: the win rate of one model against another.

use std::path::Path;

use serde::Serialize;
use sppo_core::config::Config;
use sppo_core::evaluation;
use sppo_core::observer::Stage;
use sppo_core::records::{Prompt, Rollout};
use sppo_core::stages::{self, SamplingPass, SamplingSettings};
use sppo_core::statistics::{Interval, bootstrap_mean_interval};

use super::session::Session;
use crate::args::EvalArguments;
use crate::failure::Result;
use crate::models;
use crate::output;
use crate::prompts;
use crate::settings::{Flags, SettingFlags};
use crate::terminal::{Alignment, Table, Terminal, counted, number, percent};

/// Both models draw from the same stream, so that equal models give equal answers.
const STREAM: u64 = u64::MAX;

impl SettingFlags for EvalArguments {
    fn add_to(&self, flags: &mut Flags) -> sppo_core::Result<()> {
        flags.set_path("--prompts", "prompts.held_out", self.prompts.as_deref())?;
        flags.set("--against", "model", self.against.as_deref())?;
        self.seed.add_to(flags)
    }
}

/// What came of a comparison.
#[derive(Debug, Serialize)]
struct EvalReport {
    model: AnswersReport,
    against: AnswersReport,
    /// Where the prompts came from.
    prompts: String,
    prompt_count: usize,
    samples_per_prompt: usize,
    oracle: String,
    /// The mean probability that the model's answer is preferred.
    win_rate: Interval,
    /// The interval's confidence.
    confidence: f64,
}

/// What one model answered.
#[derive(Debug, Serialize)]
struct AnswersReport {
    model: String,
    mean_response_tokens: f64,
    ended_share: f64,
}

pub(super) fn eval(arguments: &EvalArguments, terminal: &Terminal) -> Result<()> {
    let flags =
        Flags::of(&[&arguments.settings, &arguments.backend, &arguments.oracle, arguments])?;
    let session = Session::open(arguments.settings.resolve(flags)?.config, terminal)?;
    let mut oracle = session.oracle()?;
    let file = session.config.prompts.held_out.clone();
    let prompts = prompts::held_out(file.as_deref())?;

    let sampling = sampling(arguments, &session)?;
    let challenger =
        answers(arguments, &session, &arguments.model, &prompts, file.as_deref(), terminal)?;
    let against = session.config.model.clone();
    let baseline = answers(arguments, &session, &against, &prompts, file.as_deref(), terminal)?;

    let meter = session.stage(Stage::Judge, prompts.len(), "prompts");
    let settings = session.config.preference;
    let win_rates =
        evaluation::win_rates(oracle.as_mut(), &challenger, &baseline, &settings, &meter.host())
            .map_err(|error| {
                error.from_plugin(format!("oracle `{}`", session.config.oracle.name))
            })?;
    meter.finish(String::new());

    let evaluation = &session.config.evaluation;
    let report = EvalReport {
        model: describe(&arguments.model, &challenger),
        against: describe(&against, &baseline),
        prompts: prompts::source(file.as_deref()),
        prompt_count: prompts.len(),
        samples_per_prompt: sampling.samples_per_prompt,
        oracle: session.describe_oracle(oracle.as_ref()),
        win_rate: bootstrap_mean_interval(
            &win_rates,
            evaluation.bootstrap_resamples,
            evaluation.confidence,
            session.config.seed,
        ),
        confidence: evaluation.confidence,
    };
    if arguments.report.json { output::json(&report) } else { print(&report, terminal) }
}

/// Sampling settings, with as many answers as evaluations have.
fn sampling(arguments: &EvalArguments, session: &Session) -> sppo_core::Result<SamplingSettings> {
    let Config { sampling, evaluation, .. } = &session.config;
    let samples_per_prompt = evaluation.samples_per_prompt;
    arguments.sampling.over(SamplingSettings { samples_per_prompt, ..sampling.clone() })
}

fn answers(
    arguments: &EvalArguments,
    session: &Session,
    model: &str,
    prompts: &[Prompt],
    file: Option<&Path>,
    terminal: &Terminal,
) -> Result<Vec<Rollout>> {
    let sampling = sampling(arguments, session)?;
    let (samples, parameters) = (sampling.samples_per_prompt, sampling.parameters());
    let path = models::find(model, &session.config, arguments.offline, terminal)?.path;
    models::check_prompts(&models::open(&path)?, prompts, file, None)?;
    let mut policy = session.load(path)?;
    let pass = SamplingPass {
        samples_per_prompt: samples,
        parameters: &parameters,
        rule: session.config.training.tokenization,
        seed: session.config.seed,
        stream: STREAM,
    };
    let tokens = prompts.len() * samples * parameters.max_new_tokens;
    let meter = session.stage(Stage::Sample, tokens, "tokens");
    let rollouts = stages::sample(policy.as_mut(), prompts, &pass, &meter.host())
        .map_err(|error| session.blame_backend(error))?;
    meter.finish(counted(prompts.len() * samples, "answer"));
    Ok(rollouts)
}

fn describe(model: &str, rollouts: &[Rollout]) -> AnswersReport {
    let (mean_response_tokens, ended_share) = stages::length_statistics(rollouts);
    AnswersReport { model: model.into(), mean_response_tokens, ended_share }
}

fn print(report: &EvalReport, terminal: &Terminal) -> Result<()> {
    let mut table = Table::new(&[
        ("model", Alignment::Left),
        ("win rate", Alignment::Right),
        ("tokens", Alignment::Right),
        ("ended", Alignment::Right),
    ]);
    for (answers, win_rate) in
        [(&report.model, report.win_rate.mean), (&report.against, 1.0 - report.win_rate.mean)]
    {
        table.row([
            answers.model.clone(),
            percent(win_rate),
            number(answers.mean_response_tokens),
            percent(answers.ended_share),
        ]);
    }
    let Interval { mean, low, high } = report.win_rate;
    output::text(&format!(
        "{}\n{} wins {}, with {:.0} % confidence {} to {} ({}, {} each, oracle {})\n",
        table.render(terminal.stdout_style()),
        report.model.model,
        percent(mean),
        100.0 * report.confidence,
        percent(low),
        percent(high),
        counted(report.prompt_count, "prompt"),
        counted(report.samples_per_prompt, "answer"),
        report.oracle
    ))
}
