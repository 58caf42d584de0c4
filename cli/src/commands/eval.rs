//! `sppo eval`: the win rate of one model against another.

use serde::Serialize;
use sppo_core::engine::EngineWork;
use sppo_core::records::{ResponseStatistics, Rollout};
use sppo_core::stages::{SamplingPass, SamplingSettings};
use sppo_core::statistics::Interval;

use super::session::{Setup, served};
use crate::args::EvalArguments;
use crate::failure::Result;
use crate::output;
use crate::prompts;
use crate::settings::{Flags, SettingFlags};
use crate::terminal::{Alignment, Table, Terminal, counted, number, percent};

impl SettingFlags for EvalArguments {
    fn add_to(&self, flags: &mut Flags) -> sppo_core::Result<()> {
        flags.set_path("--prompts", "prompts.held_out", self.prompts.as_deref())?;
        flags.set("--against", "model", self.against.as_deref())?;
        self.seed.add_to(flags)
    }
}

/// Outcome of a comparison.
#[derive(Debug, Serialize)]
struct EvalReport {
    model: ResponsesReport,
    against: ResponsesReport,
    /// Source of the prompts.
    prompts: String,
    prompt_count: usize,
    samples_per_prompt: usize,
    oracle: String,
    /// The mean probability that the model's response is preferred.
    win_rate: Interval,
    /// The interval's confidence.
    confidence: f64,
}

/// Responses of one model.
#[derive(Debug, Serialize)]
struct ResponsesReport {
    model: String,
    mean_response_tokens: f64,
    #[serde(rename = "ended_share")]
    stop_rate: f64,
}

pub(super) fn eval(arguments: &EvalArguments, terminal: &Terminal) -> Result<()> {
    let EvalArguments { settings, backend, oracle, sampler, .. } = arguments;
    let flags = Flags::of(&[settings, backend, oracle, sampler, arguments])?;
    let setup = Setup::new(arguments.settings.resolve(flags)?.config, terminal)?;
    let (session, config) = (setup.session(), &setup.config);
    let mut oracle = session.oracle()?;
    let file = config.prompts.held_out.as_deref();
    let prompts = prompts::held_out(file, &config.prompts.columns)?;
    let sampling = arguments.sampling.over(SamplingSettings {
        samples_per_prompt: config.evaluation.samples_per_prompt,
        ..config.sampling.clone()
    })?;
    let pass = SamplingPass {
        samples_per_prompt: sampling.samples_per_prompt,
        parameters: sampling.parameters(),
        ..session.evaluation_pass()
    };
    let mut engine = session.sampling_engine()?;
    let mut respond = |model: &str| -> Result<Vec<Rollout>> {
        let model = setup.find(model, arguments.offline)?;
        model.check_prompts(&prompts, file, None)?;
        let weights = served(model.path.clone());
        let mut policy = setup.load(model)?;
        let work = EngineWork { prompts: &[&prompts], pass: &pass, weights_change: false };
        session.sampled_by(engine.as_mut(), policy.as_mut(), &weights, work, |sampler| {
            Ok(session.sample_held_out(sampler, &prompts, &pass)?)
        })
    };

    session.try_oracle(oracle.as_mut())?;
    let challenger = respond(&arguments.model)?;
    let baseline = respond(&config.model)?;
    let report = EvalReport {
        model: describe(&arguments.model, &challenger),
        against: describe(&config.model, &baseline),
        prompts: prompts::source(file),
        prompt_count: prompts.len(),
        samples_per_prompt: sampling.samples_per_prompt,
        oracle: setup.describe_oracle(oracle.as_ref()),
        win_rate: session.win_rate(oracle.as_mut(), &challenger, &baseline)?,
        confidence: config.evaluation.confidence,
    };
    if arguments.report.json { output::json(&report) } else { print(&report, terminal) }
}

fn describe(model: &str, rollouts: &[Rollout]) -> ResponsesReport {
    let ResponseStatistics { mean_tokens, stop_rate, .. } = ResponseStatistics::of(rollouts);
    ResponsesReport { model: model.into(), mean_response_tokens: mean_tokens, stop_rate }
}

fn print(report: &EvalReport, terminal: &Terminal) -> Result<()> {
    let mut table = Table::new(&[
        ("model", Alignment::Left),
        ("win rate", Alignment::Right),
        ("tokens", Alignment::Right),
        ("ended", Alignment::Right),
    ]);
    for (responses, win_rate) in
        [(&report.model, report.win_rate.mean), (&report.against, 1.0 - report.win_rate.mean)]
    {
        table.row([
            responses.model.clone(),
            percent(win_rate),
            number(responses.mean_response_tokens),
            percent(responses.stop_rate),
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
