//! `sppo train`: preference pairs in, a checkpoint out.

mod pairs;

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sppo_core::datasets::read_pairs;
use sppo_core::observer::{Event, Observer, Stage, TrainingStep};
use sppo_core::plugin::Policy;
use sppo_core::records::TrainingExample;
use sppo_core::stages::{self, ReferenceLogProbs, TrainingPass, TrainingProgress};
use sppo_core::{Error, Result as CoreResult};

use super::session::Session;
use crate::args::TrainArguments;
use crate::failure::Result;
use crate::output;
use crate::settings::{Flags, SettingFlags};
use crate::terminal::{Alignment, Table, Terminal, signed};
use crate::watchers::{MetricsWatcher, Watchers};

/// The change of log-probabilities is measured on this many pairs.
const MEASURED_PAIRS: usize = 16;

impl SettingFlags for TrainArguments {
    fn add_to(&self, flags: &mut Flags) -> CoreResult<()> {
        self.seed.add_to(flags)
    }
}

/// What training achieved.
#[derive(Debug, Serialize)]
struct TrainReport {
    /// Where the model lies.
    checkpoint: PathBuf,
    /// The log of all steps.
    metrics: PathBuf,
    /// Pairs trained on.
    pairs: usize,
    /// Optimiser steps taken.
    steps: usize,
    /// Mean loss of the first step, before its update.
    first_loss: Option<f64>,
    /// Mean loss of the last step, before its update.
    last_loss: Option<f64>,
    /// Mean change of the chosen answers' log-probability, on some of the pairs.
    chosen_log_prob_change: f64,
    /// Mean change of the rejected answers' log-probability.
    rejected_log_prob_change: f64,
}

pub(super) fn train(arguments: &TrainArguments, terminal: &Terminal) -> Result<()> {
    let flags = Flags::of(&[
        &arguments.settings,
        &arguments.model,
        &arguments.backend,
        &arguments.training,
        arguments,
    ])?;
    let session = Session::open(arguments.settings.resolve(flags)?.config, terminal)?;
    let objective = session.config.training.objective;
    let pairs = read_pairs(&arguments.pairs, objective)?;
    prepare_output(&arguments.output)?;

    let model = session.find_whole_model(arguments.model.offline)?;
    let mut policy = session.load_for_training(model)?;
    let mut examples = pairs::examples(policy.as_ref(), pairs, &arguments.pairs, &session)?;
    add_reference(&session, policy.as_mut(), &mut examples)?;
    let steps = regress(&session, policy.as_mut(), &examples, &arguments.output)?;

    let measured = &examples[..examples.len().min(MEASURED_PAIRS)];
    let budget = session.config.training.micro_batch_tokens;
    let (chosen, rejected) = stages::mean_log_prob_changes(policy.as_mut(), measured, budget)
        .map_err(|error| session.blame_backend(error))?;
    let saving = session.stage(Stage::Save, 1, "checkpoint");
    policy.save(&arguments.output).map_err(|error| session.blame_backend(error.into()))?;
    saving.finish(arguments.output.display().to_string());

    let report = TrainReport {
        checkpoint: arguments.output.clone(),
        metrics: arguments.output.join("metrics.jsonl"),
        pairs: examples.len(),
        steps: steps.len(),
        first_loss: steps.first().map(|step| step.loss),
        last_loss: steps.last().map(|step| step.loss),
        chosen_log_prob_change: chosen,
        rejected_log_prob_change: rejected,
    };
    if arguments.report.json { output::json(&report) } else { print(&report, terminal) }
}

/// Makes the directory, and refuses one that holds a model already.
fn prepare_output(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).map_err(|error| {
        Error::run_directory(directory, format!("cannot create this directory: {error}"))
            .with_hint("choose a directory that this user may write with --output")
    })?;
    for name in [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "adapter_config.json",
        "adapter_model.safetensors",
    ] {
        if directory.join(name).exists() {
            return Err(Error::run_directory(directory, format!("already holds {name}"))
                .with_hint("choose another directory with --output, or remove the model in it")
                .into());
        }
    }
    Ok(())
}

/// Reference log-probabilities, unless every pair came with them.
fn add_reference(
    session: &Session,
    policy: &mut dyn Policy,
    examples: &mut [TrainingExample],
) -> Result<()> {
    let training = &session.config.training;
    let known = examples
        .iter()
        .flat_map(|example| &example.responses)
        .all(|response| response.reference_log_prob.is_some());
    if known && training.reference_log_probs == ReferenceLogProbs::Recorded {
        return Ok(());
    }
    let meter = session.stage(Stage::Reference, examples.len(), "pairs");
    let reach = |done| meter.reach(done);
    stages::reference_log_probs(policy, examples, training.micro_batch_tokens, reach)
        .map_err(|error| session.blame_backend(error))?;
    meter.finish(String::new());
    Ok(())
}

/// All optimiser steps, each logged.
fn regress(
    session: &Session,
    policy: &mut dyn Policy,
    examples: &[TrainingExample],
    directory: &Path,
) -> Result<Vec<TrainingStep>> {
    let training = &session.config.training;
    policy
        .begin_training(&training.optimizer)
        .map_err(|error| session.blame_backend(error.into()))?;
    let (metrics, steps) = (MetricsWatcher::new(directory), StepsWatcher::default());
    let meter = session.stage(Stage::Train, training.steps(examples.len()) as usize, "steps");
    let outcome = stages::train(
        policy,
        examples,
        &TrainingPass { settings: training, seed: session.config.seed },
        0,
        &mut TrainingProgress::default(),
        &Watchers(&[&session.display, &metrics, &steps]),
        |_, progress| meter.reach(progress.step as usize),
    )
    .map_err(|error| session.blame_backend(error));
    metrics.outcome(outcome)?;
    meter.finish(String::new());
    Ok(steps.0.into_inner())
}

/// Keeps every step.
#[derive(Default)]
struct StepsWatcher(RefCell<Vec<TrainingStep>>);

impl Observer for StepsWatcher {
    fn event(&self, event: Event<'_>) {
        if let Event::TrainingStep(step) = event {
            self.0.borrow_mut().push(step.clone());
        }
    }
}

fn print(report: &TrainReport, terminal: &Terminal) -> Result<()> {
    let mut table = Table::new(&[
        ("pairs", Alignment::Right),
        ("steps", Alignment::Right),
        ("first loss", Alignment::Right),
        ("last loss", Alignment::Right),
        ("chosen", Alignment::Right),
        ("rejected", Alignment::Right),
    ]);
    let loss = |loss: Option<f64>| loss.map_or_else(|| "-".into(), |loss| format!("{loss:.4}"));
    table.row([
        report.pairs.to_string(),
        report.steps.to_string(),
        loss(report.first_loss),
        loss(report.last_loss),
        signed(report.chosen_log_prob_change),
        signed(report.rejected_log_prob_change),
    ]);
    let style = terminal.stdout_style();
    output::text(&format!(
        "{}{}\ncheckpoint  {}\nmetrics     {}\n",
        table.render(style),
        style.dim("chosen, rejected: change of their log-probability\n"),
        report.checkpoint.display(),
        report.metrics.display()
    ))
}
