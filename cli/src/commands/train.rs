//! `sppo train`: preference pairs in, a checkpoint out.

use std::path::{Path, PathBuf};

use serde::Serialize;
use sppo_core::config::Config;
use sppo_core::datasets::{Pair, read_pairs, to_example};
use sppo_core::metrics::MetricsObserver;
use sppo_core::observer::Observers;
use sppo_core::plugin::{Codec, Policy};
use sppo_core::records::TrainingExample;
use sppo_core::session::{Session, TrainingSummary};
use sppo_core::stages::{ReferenceLogProbs, TrainingProgress};
use sppo_core::{Error, Result as CoreResult};

use super::session::Setup;
use crate::args::TrainArguments;
use crate::failure::Result;
use crate::output;
use crate::prompts;
use crate::settings::{Flags, SettingFlags};
use crate::terminal::{Alignment, Table, Terminal, signed};

impl SettingFlags for TrainArguments {
    fn add_to(&self, flags: &mut Flags) -> CoreResult<()> {
        self.seed.add_to(flags)
    }
}

/// Results of training.
#[derive(Debug, Serialize)]
struct TrainReport {
    /// Path of the model.
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
    /// Mean change of the chosen responses' log-probability, on some of the pairs.
    chosen_log_prob_change: f64,
    /// Mean change of the rejected responses' log-probability.
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
    let setup = Setup::new(arguments.settings.resolve(flags)?.config, terminal)?;
    let objective = setup.config.training.objective;
    let pairs = read_pairs(&arguments.pairs, objective)?;
    prepare_output(&arguments.output)?;

    let model = setup.find_model(arguments.model.offline)?.path;
    let mut policy = setup.load_for_training(&model)?;
    let mut examples = examples_of(policy.as_ref(), pairs, &arguments.pairs, &setup.config)?;
    let session = setup.session();
    add_reference(session, policy.as_mut(), &mut examples)?;
    let trained = train_policy(session, policy.as_mut(), &examples, &arguments.output)?;
    let changes = session.log_prob_changes(policy.as_mut(), &examples)?;
    let (chosen_log_prob_change, rejected_log_prob_change) = changes.unwrap_or_default();
    session.save(policy.as_ref(), &arguments.output)?;

    let report = TrainReport {
        checkpoint: arguments.output.clone(),
        metrics: arguments.output.join("metrics.jsonl"),
        pairs: examples.len(),
        steps: trained.steps,
        first_loss: trained.first_loss,
        last_loss: trained.last_loss,
        chosen_log_prob_change,
        rejected_log_prob_change,
    };
    if arguments.report.json { output::json(&report) } else { print(&report, terminal) }
}

/// Pairs as training examples, text made into tokens by the rule of the settings.
///
/// # Errors
/// When a pair cannot be tokenised, does not fit, or holds tokens that the model does not have; the
/// error names the line.
fn examples_of(
    codec: &dyn Codec,
    pairs: Vec<Pair>,
    file: &Path,
    config: &Config,
) -> Result<Vec<TrainingExample>> {
    let settings = config.training.tokenization_settings(codec.info().context_length);
    (0..)
        .zip(pairs)
        .map(|(row, pair)| {
            let example = to_example(codec, row, pair, settings);
            Ok(example.map_err(|error| prompts::locate(file, row, error))?)
        })
        .collect()
}

/// Makes the directory, and refuses one that holds a model already.
fn prepare_output(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).map_err(|error| {
        Error::run_directory(directory, format!("cannot create this directory: {error}"))
            .with_hint("choose a directory that this user may write with --output")
    })?;
    // Before hours of training, not after them.
    tempfile::tempfile_in(directory).map_err(|error| {
        Error::run_directory(directory, format!("cannot write into this directory: {error}"))
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
    session: Session<'_>,
    policy: &mut dyn Policy,
    examples: &mut [TrainingExample],
) -> Result<()> {
    let known = examples
        .iter()
        .flat_map(|example| &example.responses)
        .all(|response| response.reference_log_prob.is_some());
    if known && session.config.training.reference_log_probs == ReferenceLogProbs::Recorded {
        return Ok(());
    }
    Ok(session.reference_log_probs(policy, examples)?)
}

/// All optimiser steps, each logged beside the checkpoint to come.
fn train_policy(
    session: Session<'_>,
    policy: &mut dyn Policy,
    examples: &[TrainingExample],
    directory: &Path,
) -> Result<TrainingSummary> {
    let metrics = MetricsObserver::new(directory);
    let observer = &Observers(&[session.observer, &metrics]);
    let session = Session { observer, ..session };
    let pass = session.training_pass(0);
    session.begin_training(policy)?;
    let mut progress = TrainingProgress::default();
    let outcome = session.train(policy, examples, &pass, &mut progress, &mut |_, _| Ok(()));
    Ok(metrics.outcome(outcome)?)
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
