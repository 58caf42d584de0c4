//! What came of an iteration: held-out answers against the starting model's, and how far the
//! log-probabilities of the training answers moved.

use std::path::PathBuf;
use std::time::Instant;

use super::SelfPlay;
use super::artifacts::{Names, StageMeter, read_json, write_json};
use crate::datasets::Stored;
use crate::error::Result;
use crate::evaluation;
use crate::observer::{IterationReport, Stage};
use crate::records::{Rollout, TrainingExample};
use crate::selection::SkipCounts;
use crate::stages::{self, SamplingPass};
use crate::statistics::{Interval, bootstrap_mean_interval};

/// How many training examples the log-probability changes are measured on.
const MEASURED_EXAMPLES: usize = 16;

/// Iteration `t` samples on stream `t`; every held-out pass uses this one, so that two equal models
/// give equal answers.
const HELD_OUT_STREAM: u64 = u64::MAX;

impl SelfPlay<'_, '_> {
    /// The report of an iteration that an earlier process finished.
    pub(super) fn finished_report(&mut self, iteration: u32) -> Result<Option<IterationReport>> {
        let name = Names::report(iteration);
        let has_checkpoint = iteration == 0 || self.run.has(&Names::checkpoint(iteration));
        if !self.run.has(&name) || !has_checkpoint {
            return Ok(None);
        }
        read_json(&self.run.path(&name)?).map(Some)
    }

    /// The report about the starting model, whose held-out answers all others are compared with.
    pub(super) fn starting_report(&mut self) -> Result<IterationReport> {
        if let Some(report) = self.finished_report(0)? {
            return Ok(report);
        }
        let started = Instant::now();
        let held_out = self.answer_held_out(0)?;
        let mut report = IterationReport::new(0, self.game.starting_model.clone());
        report.describe_answers(&held_out);
        report.seconds = started.elapsed().as_secs_f64();
        self.commit_report(&report)?;
        Ok(report)
    }

    /// Measures an iteration and commits the report, which is what marks the iteration as finished.
    pub(super) fn evaluate(
        &mut self,
        iteration: u32,
        checkpoint: PathBuf,
        examples: &[TrainingExample],
        skipped: SkipCounts,
        started: Instant,
    ) -> Result<IterationReport> {
        let mut report = IterationReport::new(iteration, checkpoint);
        report.examples = examples.len();
        report.skipped_identical = skipped.identical_texts;
        report.skipped_equal = skipped.equal_scores;

        let measured = &examples[..examples.len().min(MEASURED_EXAMPLES)];
        if !measured.is_empty() {
            let budget = self.game.config.training.micro_batch_tokens;
            let policy = self.policy_after(iteration)?;
            let (chosen, rejected) = stages::mean_log_prob_changes(policy, measured, budget)?;
            report.chosen_log_prob_change = Some(chosen);
            report.rejected_log_prob_change = Some(rejected);
        }
        let held_out = self.answer_held_out(iteration)?;
        report.describe_answers(&held_out);
        report.win_rate = self.compare_with_start(&held_out)?;
        report.seconds = started.elapsed().as_secs_f64();
        self.commit_report(&report)?;
        Ok(report)
    }

    fn answer_held_out(&mut self, iteration: u32) -> Result<Vec<Rollout>> {
        let config = self.game.config;
        if !config.evaluation.enabled || self.game.prompts.held_out.is_empty() {
            return Ok(Vec::new());
        }
        let name = Names::held_out(iteration);
        let prompts = self.game.prompts.held_out.clone();
        if self.run.has(&name) {
            let rollouts = Rollout::read(&self.run.path(&name)?)?;
            self.require_prompts(&name, &rollouts, &prompts)?;
            return Ok(rollouts);
        }
        let parameters = config.sampling.parameters();
        let pass = SamplingPass {
            samples_per_prompt: config.evaluation.samples_per_prompt,
            parameters: &parameters,
            rule: config.training.tokenization,
            seed: config.seed,
            stream: HELD_OUT_STREAM,
        };
        let tokens = prompts.len() * pass.samples_per_prompt * parameters.max_new_tokens;
        let meter = StageMeter::start(self.game.observer, Stage::Evaluate, tokens as u64, "tokens");
        let rollouts = self.table(&name, |play| {
            let host = meter.host(play.game.services());
            stages::sample(play.policy_after(iteration)?, &prompts, &pass, &host)
        })?;
        meter.finish(format!("{} held-out prompts", rollouts.len()));
        Ok(rollouts)
    }

    fn compare_with_start(&mut self, held_out: &[Rollout]) -> Result<Option<Interval>> {
        if held_out.is_empty() {
            return Ok(None);
        }
        let config = self.game.config;
        let start = self.answer_held_out(0)?;
        let meter =
            StageMeter::start(self.game.observer, Stage::Judge, held_out.len() as u64, "prompts");
        let host = meter.host(self.game.services());
        let settings = config.preference;
        let win_rates = evaluation::win_rates(self.game.oracle, held_out, &start, &settings, &host)
            .map_err(|error| error.from_plugin(format!("oracle `{}`", config.oracle.name)))?;
        let interval = bootstrap_mean_interval(
            &win_rates,
            config.evaluation.bootstrap_resamples,
            config.evaluation.confidence,
            config.seed,
        );
        meter.finish(format!("{:.1} % against the start", 100.0 * interval.mean));
        Ok(Some(interval))
    }

    fn commit_report(&mut self, report: &IterationReport) -> Result<()> {
        self.run.commit(&Names::report(report.iteration), |file| write_json(file, report))?;
        Ok(())
    }
}
