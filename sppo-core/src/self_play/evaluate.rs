//! Evaluation of an iteration: held-out responses against the starting model's, and the change of the
//! log-probabilities of the training responses.

use std::path::PathBuf;
use std::time::Instant;

use super::SelfPlay;
use super::artifacts::{Names, read_json, write_json};
use crate::error::Result;
use crate::evaluation::win_rates;
use crate::observer::{IterationReport, OracleUse};
use crate::oracle_quality::{ServiceCounters, VerdictCounts};
use crate::records::{DuelVerdict, HeldOutDuels, Rollout, TrainingExample};
use crate::selection::SkipCounts;
use crate::statistics::Interval;

/// Counts of an iteration's stages.
pub(super) struct Counts {
    /// Prompts without an example.
    pub(super) skipped: SkipCounts,
    /// Examples that were cut to fit.
    pub(super) cut: usize,
    /// The oracle's verdicts on the sampled responses.
    pub(super) verdicts: VerdictCounts,
}

/// The beginning of an iteration in this process.
pub(super) struct Begun {
    /// Its time.
    pub(super) at: Instant,
    /// The counters of the oracle's service at that time.
    pub(super) service: ServiceCounters,
}

impl SelfPlay<'_> {
    /// The report of an iteration that an earlier process finished.
    pub(super) fn finished_report(&mut self, iteration: u32) -> Result<Option<IterationReport>> {
        let name = Names::report(iteration);
        let has_checkpoint = iteration == 0 || self.run.has(&Names::checkpoint(iteration));
        if !self.run.has(&name) || !has_checkpoint {
            return Ok(None);
        }
        read_json(&self.run.path(&name)?).map(Some)
    }

    /// The report about the starting model, whose held-out responses all others are compared with.
    pub(super) fn starting_report(&mut self) -> Result<IterationReport> {
        if let Some(report) = self.finished_report(0)? {
            return Ok(report);
        }
        let started = Instant::now();
        let held_out = self.respond_to_held_out(0)?;
        let mut report = IterationReport::new(0, self.inputs.starting_model.clone());
        report.describe_responses(&held_out);
        report.log_prob_difference = self.log_prob_difference();
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
        counts: Counts,
        begun: &Begun,
    ) -> Result<IterationReport> {
        let Counts { skipped, cut, verdicts } = counts;
        let mut report = IterationReport::new(iteration, checkpoint);
        report.examples = examples.len();
        report.skipped_identical = skipped.identical_texts;
        report.skipped_equal = skipped.equal_scores;
        report.cut_examples = cut;

        if !examples.is_empty() {
            let session = self.session;
            let changes = session.log_prob_changes(self.policy_after(iteration)?, examples)?;
            (report.chosen_log_prob_change, report.rejected_log_prob_change) = changes.unzip();
        }
        let held_out = self.respond_to_held_out(iteration)?;
        report.describe_responses(&held_out);
        report.win_rate = self.compare_with_earlier(iteration, &held_out)?;
        report.log_prob_difference = self.log_prob_difference();
        let service = self.service.counters().since(&begun.service);
        let cost = service.cost(&self.session.config.preference.prices);
        report.oracle = Some(OracleUse { verdicts, service, cost });
        report.seconds = begun.at.elapsed().as_secs_f64();
        self.commit_report(&report)?;
        Ok(report)
    }

    /// Responses to the held-out prompts by the policy after so many iterations; none when there is
    /// nothing to compare by.
    fn respond_to_held_out(&mut self, iterations: u32) -> Result<Vec<Rollout>> {
        let session = self.session;
        if !session.config.evaluation.enabled || self.inputs.prompts.held_out.is_empty() {
            return Ok(Vec::new());
        }
        let name = Names::held_out(iterations);
        let prompts = self.inputs.prompts.held_out.clone();
        if let Some(rollouts) = self.committed(&name, &prompts)? {
            return Ok(rollouts);
        }
        let pass = session.evaluation_pass();
        let rollouts = self
            .sampled_by(iterations, |sampler| session.sample_held_out(sampler, &prompts, &pass))?;
        // Duels of other responses say nothing about these.
        self.run.remove(&Names::held_out_duels(iterations))?;
        self.commit_rows(&name, &rollouts)?;
        Ok(rollouts)
    }

    /// The win rate against the starting model, from judgments that are committed: all of them by an oracle
    /// that asks no service; of one that does, whose judgments may cost money, only those that the win rate needs.
    fn compare_with_earlier(
        &mut self,
        iteration: u32,
        held_out: &[Rollout],
    ) -> Result<Option<Interval>> {
        if held_out.is_empty() {
            return Ok(None);
        }
        let name = Names::held_out_duels(iteration);
        let judgments: Vec<HeldOutDuels> = if self.run.has(&name) {
            self.rows(&name)?
        } else {
            let is_free = self.oracle.expected_requests(1, 2).is_none();
            let opponents = if is_free { 0..iteration } else { 0..1 };
            let mut judgments = Vec::new();
            for against in opponents {
                judgments.extend(self.judge_against(against, iteration, held_out)?);
            }
            self.commit_rows(&name, &judgments)?;
            judgments
        };
        let against_start = judgments.iter().filter(|judgment| judgment.against == 0);
        let duels: Vec<Vec<DuelVerdict>> = against_start.map(HeldOutDuels::duels).collect();
        Ok(Some(self.session.win_rate_interval(&win_rates(&duels))))
    }

    /// Judgments of an iteration's held-out responses against those of an earlier model.
    fn judge_against(
        &mut self,
        against: u32,
        iteration: u32,
        held_out: &[Rollout],
    ) -> Result<Vec<HeldOutDuels>> {
        let earlier = self.respond_to_held_out(against)?;
        let session = self.session;
        let duels =
            self.judged_after(iteration, |oracle| session.duels(oracle, held_out, &earlier))?;
        let of_prompts = held_out.iter().zip(duels);
        let judgment = |(rollout, duels): (&Rollout, Vec<DuelVerdict>)| {
            HeldOutDuels::new(against, rollout.prompt.id, &duels)
        };
        Ok(of_prompts.map(judgment).collect())
    }

    fn commit_report(&mut self, report: &IterationReport) -> Result<()> {
        self.run.commit(&Names::report(report.iteration), |file| write_json(file, report))?;
        Ok(())
    }
}
