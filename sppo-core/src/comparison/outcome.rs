//! From finished runs to the outcome of their comparison.

use std::path::{Path, PathBuf};

use super::cells::Cell;
use super::report::{ArmIteration, ArmPair, ArmReport, ComparisonReport, RunSummary, Time, Work};
use super::verdicts::VerdictStore;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::evaluation::{JudgedPair, Tournament};
use crate::metrics::MetricsEntry;
use crate::observer::IterationReport;
use crate::plugin::Oracle;
use crate::records::{Prompt, Rollout};
use crate::run_directory::RunDirectory;
use crate::self_play::{Names, RunRecord};
use crate::session::Session;
use crate::stages;
use crate::statistics::{Duel, Duels};

/// Name of the starting model among the arms.
pub const START: &str = "start";

/// A run of a comparison that has come to its end.
#[derive(Clone, Debug)]
pub struct PlayedCell {
    /// The cell.
    pub cell: Cell,
    /// Its settings.
    pub config: Config,
}

/// Judges finished runs against their starts and against each other, and sums up.
pub struct Referee<'a> {
    session: Session<'a>,
    oracle: &'a mut dyn Oracle,
    judge: String,
    verdicts: VerdictStore,
}

/// The runs of an arm, one per seed, each with its record.
struct Arm<'a> {
    name: &'a str,
    runs: Vec<Run<'a>>,
}

struct Run<'a> {
    played: &'a PlayedCell,
    record: RunRecord,
}

impl<'a> Referee<'a> {
    /// A referee with the oracle of a session, whose judgments are kept in `directory`. `judge` describes the
    /// oracle.
    ///
    /// # Errors
    /// When the directory cannot be read or written.
    pub fn new(
        session: Session<'a>,
        oracle: &'a mut dyn Oracle,
        judge: String,
        directory: &Path,
    ) -> Result<Self> {
        let Config { oracle: settings, preference, .. } = session.config;
        let identity = serde_json::json!([judge, settings, preference]).to_string();
        let verdicts = VerdictStore::open(directory, identity)?;
        Ok(Self { session, oracle, judge, verdicts })
    }

    /// The outcome of the comparison of these runs, the arms in their order.
    ///
    /// # Errors
    /// When runs answered other held-out prompts than others, a record cannot be read, the judge fails, or the
    /// observer cancels.
    pub fn compare(&mut self, played: &[PlayedCell]) -> Result<ComparisonReport> {
        let arms = arms(played)?;
        require_same_prompts(&arms)?;
        let against_start: Vec<Vec<Duels>> =
            arms.iter().map(|arm| self.against_start(arm)).collect::<Result<_>>()?;
        let mut between = Vec::new();
        for (index, first) in arms.iter().enumerate() {
            for second in &arms[index + 1..] {
                between.push(self.between(first, second)?);
            }
        }
        self.sum_up(&arms, &against_start, between)
    }

    /// The duels of an arm with the start, after each iteration.
    fn against_start(&mut self, arm: &Arm<'_>) -> Result<Vec<Duels>> {
        let iterations = 1..=arm.iterations();
        let of_iteration = |iteration| {
            let of_run = |run: &Run<'_>| {
                let name = format!("{}/iteration-{iteration}.json", run.name());
                let subject = format!("{} after iteration {iteration}", run.name());
                self.judged(&name, &subject, (run, iteration), (run, 0))
            };
            all_seeds(arm.runs.iter().map(of_run).collect::<Result<_>>()?)
        };
        iterations.map(of_iteration).collect()
    }

    /// The duels of two arms after their last iterations, between runs of the same seed.
    fn between(&mut self, first: &Arm<'_>, second: &Arm<'_>) -> Result<Duels> {
        let pairs = first.runs.iter().zip(&second.runs);
        let of_pair = |(ours, theirs): (&Run<'_>, &Run<'_>)| {
            let name = format!("{}/against-{}.json", ours.name(), theirs.name());
            let subject = format!("{} against {}", ours.name(), theirs.name());
            self.judged(&name, &subject, (ours, first.iterations()), (theirs, second.iterations()))
        };
        all_seeds(pairs.map(of_pair).collect::<Result<_>>()?)
    }

    /// The duels of two runs' answers after some of their iterations.
    fn judged(
        &mut self,
        name: &str,
        subject: &str,
        (ours, after): (&Run<'_>, u32),
        (theirs, theirs_after): (&Run<'_>, u32),
    ) -> Result<Vec<Vec<Duel>>> {
        let files = [ours.held_out_file(after)?, theirs.held_out_file(theirs_after)?];
        let Self { session, oracle, verdicts, .. } = self;
        verdicts.duels(name, [&files[0], &files[1]], || {
            let rollouts = [ours.held_out(after)?, theirs.held_out(theirs_after)?];
            let [ours, theirs]: [Vec<_>; 2] = rollouts
                .each_ref()
                .map(|rollouts| rollouts.iter().map(stages::comparison).collect());
            let judged = session.judge_pairs(*oracle, &ours, &theirs, subject)?;
            Ok(judged.iter().map(|pairs| pairs.iter().map(JudgedPair::duel).collect()).collect())
        })
    }
}

impl Referee<'_> {
    fn sum_up(
        &self,
        arms: &[Arm<'_>],
        against_start: &[Vec<Duels>],
        between: Vec<Duels>,
    ) -> Result<ComparisonReport> {
        let bootstrap = self.session.bootstrap();
        let last: Vec<&Duels> = against_start.iter().filter_map(|duels| duels.last()).collect();
        let mut pairs = Vec::new();
        let all = (0..arms.len()).flat_map(|i| (i + 1..arms.len()).map(move |j| (i, j)));
        for ((i, j), duels) in all.zip(&between) {
            let difference = last[i].win_rate_difference(last[j], &bootstrap);
            pairs.push(ArmPair {
                first: arms[i].name.into(),
                second: arms[j].name.into(),
                win_rate: duels.win_rate(&bootstrap),
                length_controlled_win_rate: duels.length_controlled_win_rate(&bootstrap),
                difference_against_start: difference.ok_or_else(other_prompts)?,
            });
        }
        let names = [START].into_iter().chain(arms.iter().map(|arm| arm.name)).map(String::from);
        let duels = last.iter().map(|duels| duels.reversed()).chain(between).collect();
        let tournament = Tournament::new(names.collect(), duels).ok_or_else(other_prompts)?;
        let reports = arms.iter().zip(against_start);
        Ok(ComparisonReport {
            judge: self.judge.clone(),
            prompts: last.first().map_or(0, |duels| duels.counts()[1]),
            samples_per_prompt: self.session.config.evaluation.samples_per_prompt,
            confidence: bootstrap.confidence,
            arms: reports.map(|(arm, duels)| arm.report(duels, self)).collect::<Result<_>>()?,
            pairs,
            tournament: tournament.report(&bootstrap),
        })
    }
}

impl Arm<'_> {
    fn iterations(&self) -> u32 {
        self.runs.first().map_or(0, |run| run.played.config.iterations)
    }

    fn report(&self, against_start: &[Duels], referee: &Referee<'_>) -> Result<ArmReport> {
        let bootstrap = referee.session.bootstrap();
        let mut iterations = Vec::new();
        for (iteration, duels) in (1..).zip(against_start) {
            let reports: Vec<IterationReport> =
                self.runs.iter().map(|run| run.report(iteration)).collect::<Result<_>>()?;
            let mean = |value: fn(&IterationReport) -> Option<f64>| mean(reports.iter().map(value));
            iterations.push(ArmIteration {
                iteration,
                win_rate: duels.win_rate(&bootstrap),
                length_controlled_win_rate: duels.length_controlled_win_rate(&bootstrap),
                mean_response_tokens: mean(|report| report.mean_response_tokens),
                ended_share: mean(|report| report.stop_rate),
                chosen_log_prob_change: mean(|report| report.chosen_log_prob_change),
                rejected_log_prob_change: mean(|report| report.rejected_log_prob_change),
                examples: mean(|report| Some(report.examples as f64)).unwrap_or(0.0),
            });
        }
        let (work, time) = self.spent()?;
        let last = against_start.last().map(Duels::by_seed).unwrap_or_default();
        let summary = |(run, duels): (&Run<'_>, Duels)| RunSummary {
            name: run.name().into(),
            seed: run.played.config.seed,
            directory: run.record.root().into(),
            win_rate: duels.win_rate(&bootstrap),
        };
        let runs = self.runs.iter().zip(last).map(summary).collect();
        let settings = self.runs.first().map(|run| run.played.cell.arm_settings());
        Ok(ArmReport {
            name: self.name.into(),
            settings: settings.unwrap_or_default(),
            runs,
            iterations,
            work,
            time,
        })
    }

    /// Work and time of one run, on average.
    fn spent(&self) -> Result<(Work, Time)> {
        let (mut work, mut time) = (Work::default(), Time::default());
        let share = 1.0 / self.runs.len().max(1) as f64;
        for run in &self.runs {
            work.sampled_tokens += share * run.sampled_tokens()? as f64;
            for step in run.record.metrics()?.iter().filter(|entry| entry.kind == "training_step") {
                work.optimizer_steps += share;
                work.trained_tokens += share * number(step, "tokens");
                time.training_seconds += share * number(step, "seconds");
            }
            for iteration in 0..=run.played.config.iterations {
                time.seconds += share * run.report(iteration)?.seconds;
            }
        }
        Ok((work, time))
    }
}

impl Run<'_> {
    fn name(&self) -> &str {
        &self.played.cell.name
    }

    fn report(&self, iteration: u32) -> Result<IterationReport> {
        self.record.report(iteration)?.ok_or_else(|| self.incomplete(iteration))
    }

    fn held_out(&self, iteration: u32) -> Result<Vec<Rollout>> {
        self.record.held_out(iteration)?.ok_or_else(|| self.incomplete(iteration))
    }

    fn held_out_file(&self, iteration: u32) -> Result<PathBuf> {
        let file = RunDirectory::committed_path(self.record.root(), &Names::held_out(iteration));
        file.ok_or_else(|| self.incomplete(iteration))
    }

    fn sampled_tokens(&self) -> Result<usize> {
        let mut tokens = 0;
        for iteration in 1..=self.played.config.iterations {
            let rollouts = self.record.rollouts(iteration)?;
            let responses = rollouts.iter().flat_map(|rollout| &rollout.responses);
            tokens += responses.map(|response| response.tokens.len()).sum::<usize>();
        }
        Ok(tokens)
    }

    fn incomplete(&self, iteration: u32) -> Error {
        let message =
            format!("iteration {iteration} of this run has no held-out answers or no report");
        Error::run_directory(self.record.root(), message)
            .with_hint("run the comparison again: it makes what is missing")
    }
}

/// The arms, in the order in which they come.
fn arms(played: &[PlayedCell]) -> Result<Vec<Arm<'_>>> {
    let mut arms: Vec<Arm<'_>> = Vec::new();
    for played in played {
        let run = Run { played, record: RunRecord::open(played.config.run_path())? };
        let name = played.cell.arm.as_str();
        match arms.iter_mut().find(|arm| arm.name == name) {
            Some(arm) => arm.runs.push(run),
            None => arms.push(Arm { name, runs: vec![run] }),
        }
    }
    Ok(arms)
}

/// Refuses runs that answered other prompts, or another number of times.
fn require_same_prompts(arms: &[Arm<'_>]) -> Result<()> {
    let answered = |run: &Run<'_>| -> Result<Vec<(Prompt, usize)>> {
        let rollouts = run.held_out(0)?.into_iter();
        Ok(rollouts.map(|rollout| (rollout.prompt, rollout.responses.len())).collect())
    };
    let mut runs = arms.iter().flat_map(|arm| &arm.runs);
    let Some(first) = runs.next() else { return Ok(()) };
    let expected = answered(first)?;
    for run in runs {
        if answered(run)? != expected {
            return Err(other_prompts());
        }
    }
    Ok(())
}

fn other_prompts() -> Error {
    let message = "the runs answered different prompts, or a different number of times, and cannot be \
                   compared pair by pair";
    Error::configuration("prompts.held_out", message)
        .with_hint("give all runs the same prompts.held_out and evaluation.samples_per_prompt")
}

fn all_seeds(seeds: Vec<Vec<Vec<Duel>>>) -> Result<Duels> {
    Duels::new(seeds).ok_or_else(other_prompts)
}

/// Mean of the values that there are; `None` when there are none.
fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let known: Vec<f64> = values.flatten().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

fn number(entry: &MetricsEntry, name: &str) -> f64 {
    entry.values.get(name).and_then(serde_json::Value::as_f64).unwrap_or(0.0)
}
