//! `sppo train`: preference pairs in, a checkpoint out.

use std::path::{Path, PathBuf};

use serde::Serialize;
use sppo_core::config::Config;
use sppo_core::datasets::{Contradictions, Pair, PairContent, read_pairs_named, to_example};
use sppo_core::metrics::MetricsObserver;
use sppo_core::observer::Observers;
use sppo_core::plugin::{Codec, Policy};
use sppo_core::records::TrainingExample;
use sppo_core::session::{Session, TrainingSummary};
use sppo_core::stages::{self, ReferenceLogProbs, TrainingProgress};
use sppo_core::{Error, Result as CoreResult};

use super::session::Setup;
use crate::args::TrainArguments;
use crate::failure::Result;
use crate::output;
use crate::prompts;
use crate::settings::{Flags, SettingFlags};
use crate::terminal::{Alignment, Table, Terminal, counted, signed};

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
    /// Pairs left out because both answers read the same.
    skipped_identical: usize,
    /// Pairs of which an answer was cut, because it did not fit into `training.max_length`.
    cut_pairs: usize,
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
    let mut setup = Setup::new(arguments.settings.resolve(flags)?.config, terminal)?;
    let objective = setup.config.training.objective;
    let pairs = read_pairs_named(&arguments.pairs, objective, &setup.config.prompts.columns)?;
    let pairs_read = pairs.len();
    let pairs = without_contradictions(pairs, &arguments.pairs, &setup.config, terminal)?;
    let metrics = arguments.output.join("metrics.jsonl");
    output::require_distinct(
        &[("--output", Some(&metrics))],
        &[("PAIRS", Some(&arguments.pairs))],
    )?;
    prepare_output(&arguments.output)?;

    let is_text = |pair: &Pair| matches!(pair.content, PairContent::Text { .. });
    let model = {
        let model = setup.find_model(arguments.model.offline)?;
        if pairs.iter().any(|(_, pair)| is_text(pair)) {
            model.require_template()?;
        }
        model.path
    };
    let mut policy = setup.load_for_training(&model)?;
    let (mut examples, cut_pairs) =
        examples_of(policy.as_ref(), pairs, &arguments.pairs, &setup.config)?;
    if cut_pairs > 0 {
        terminal.note(&stages::cut_notice(cut_pairs, examples.len()));
    }
    let session = setup.session();
    add_reference(session, policy.as_mut(), &mut examples)?;
    let trained = train_policy(session, policy.as_mut(), &examples, &arguments.output)?;
    let changes = session.log_prob_changes(policy.as_mut(), &examples)?;
    let (chosen_log_prob_change, rejected_log_prob_change) = changes.unwrap_or_default();
    session.save(policy.as_ref(), &arguments.output)?;

    let report = TrainReport {
        checkpoint: arguments.output.clone(),
        metrics,
        pairs: examples.len(),
        skipped_identical: pairs_read - examples.len(),
        cut_pairs,
        steps: trained.steps,
        first_loss: trained.first_loss,
        last_loss: trained.last_loss,
        chosen_log_prob_change,
        rejected_log_prob_change,
    };
    if arguments.report.json { output::json(&report) } else { print(&report, terminal) }
}

/// The pairs with their rows, but for those whose answers are the same; speaks of these, and of pairs that
/// contradict each other.
///
/// # Errors
/// When no pair is left.
fn without_contradictions(
    pairs: Vec<Pair>,
    file: &Path,
    config: &Config,
    terminal: &Terminal,
) -> Result<Vec<(u64, Pair)>> {
    let found = Contradictions::among(&pairs);
    let note = |rows: &[u64], what: &str| {
        if let Some(first) = rows.first() {
            let (count, place) = (counted(rows.len(), "pair"), prompts::place_of(file, *first));
            terminal.note(&format!("{}: {count} {what} ({place} first)", file.display()));
        }
    };
    note(&found.reversed, "stand there the other way round too: they pull in both directions");
    note(&found.worse_chosen, "whose rejected answer has the higher probability to win");
    let numbered = (0..).zip(pairs);
    if config.selection.keep_degenerate {
        return Ok(numbered.collect());
    }
    note(&found.identical, "whose answers are the same, left out");
    let left: Vec<(u64, Pair)> =
        numbered.filter(|(row, _)| found.identical.binary_search(row).is_err()).collect();
    if left.is_empty() {
        return Err(Error::input(file, "both answers of every pair are the same")
            .with_hint("nothing can be learned from them: check the columns of the answers")
            .into());
    }
    Ok(left)
}

/// Pairs as training examples, text made into tokens by the rule of the settings, and the number of pairs
/// that were cut to fit.
///
/// # Errors
/// When a pair cannot be tokenised, does not fit, or holds tokens that the model does not have; the
/// error names the line.
fn examples_of(
    codec: &dyn Codec,
    pairs: Vec<(u64, Pair)>,
    file: &Path,
    config: &Config,
) -> Result<(Vec<TrainingExample>, usize)> {
    let settings = config.training.tokenization_settings(codec.info().context_length);
    let (mut examples, mut cut) = (Vec::with_capacity(pairs.len()), 0);
    for (row, pair) in pairs {
        let (example, is_cut) = to_example(codec, row, pair, settings)
            .map_err(|error| prompts::locate(file, row, error))?;
        cut += usize::from(is_cut);
        examples.push(example);
    }
    Ok((examples, cut))
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
