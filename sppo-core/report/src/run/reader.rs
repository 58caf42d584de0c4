//! Reading a run directory into a report.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sppo_core::Result;
use sppo_core::config::Config;
use sppo_core::metrics::MetricsEntry;
use sppo_core::objective::Objective;
use sppo_core::observer::IterationReport;
use sppo_core::oracle_quality::{Prices, VerdictCounts};
use sppo_core::records::{Judgment, TrainingExample};
use sppo_core::self_play::RunRecord;
use sppo_core::stages::TrainingSettings;
use sppo_core::statistics::Interval;

use super::held_out::{self, HeldOutPart};
use super::oracle::{OrderReport, service_counters};
use super::time::{self, iteration_of, number};
use super::{
    IterationSummary, OracleReport, Origin, RunReport, RunState, SkippedPrompt, StepSummary,
    Throughput,
};

/// Reads the report of a run, again and again while it is played: finished iterations are read once.
#[derive(Clone, Debug)]
pub struct RunReader {
    directory: PathBuf,
    finished: BTreeMap<u32, FinishedIteration>,
}

/// Everything that the files of a finished iteration tell.
#[derive(Clone, Debug)]
struct FinishedIteration {
    report: IterationReport,
    held_out: HeldOutPart,
    length_controlled: Option<Interval>,
    pairs: VerdictCounts,
    prompts: usize,
    targets: Option<(f64, f64)>,
    skipped: Vec<SkippedPrompt>,
}

impl RunReader {
    /// A reader of the run in this directory.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), finished: BTreeMap::new() }
    }

    /// The directory of the run.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The report as of now.
    ///
    /// # Errors
    /// When there is no run, or a file of it cannot be read.
    pub fn read(&mut self) -> Result<RunReport> {
        let record = RunRecord::open(&self.directory)?;
        let planned = record.identity().config.iterations;
        for iteration in 0..=planned {
            if self.finished.contains_key(&iteration) {
                continue;
            }
            let start = self.finished.get(&0).map(|start| &start.held_out);
            match FinishedIteration::read(&record, iteration, start)? {
                Some(finished) => self.finished.insert(iteration, finished),
                None => break,
            };
        }
        let finished: Vec<&FinishedIteration> =
            self.finished.range(..=planned).map(|(_, iteration)| iteration).collect();
        report(&record, &finished)
    }
}

impl FinishedIteration {
    /// `None` where the iteration is not finished. `start` has the answers of the starting model.
    fn read(
        record: &RunRecord,
        iteration: u32,
        start: Option<&HeldOutPart>,
    ) -> Result<Option<Self>> {
        let Some(report) = record.report(iteration)? else { return Ok(None) };
        let held_out = HeldOutPart {
            rollouts: record.held_out(iteration)?.unwrap_or_default(),
            judgments: record.held_out_duels(iteration)?.unwrap_or_default(),
        };
        let judgments = record.judgments(iteration)?;
        let examples = record.training_set(iteration)?.unwrap_or_default();
        let Config { training, evaluation, seed, .. } = &record.identity().config;
        let duels = start.and_then(|start| held_out.with_lengths(start));
        let bootstrap = evaluation.bootstrap(*seed);
        Ok(Some(Self {
            report,
            length_controlled: duels.and_then(|duels| duels.length_controlled_win_rate(&bootstrap)),
            held_out,
            pairs: VerdictCounts::of(&judgments),
            prompts: judgments.len(),
            targets: mean_targets(training, &examples),
            skipped: skipped(record, iteration, &judgments, &examples)?,
        }))
    }
}

/// The prompts that were judged and not trained on. Their texts are only read when there are any.
fn skipped(
    record: &RunRecord,
    iteration: u32,
    judgments: &[Judgment],
    examples: &[TrainingExample],
) -> Result<Vec<SkippedPrompt>> {
    let used: BTreeSet<u64> = examples.iter().map(|example| example.prompt_id).collect();
    let unused = judgments.iter().filter(|judgment| !used.contains(&judgment.prompt_id));
    let reasons: BTreeMap<u64, &str> =
        unused.map(|judgment| (judgment.prompt_id, reason(judgment))).collect();
    if reasons.is_empty() {
        return Ok(Vec::new());
    }
    let prompts = record.prompts(iteration)?;
    let skipped = prompts.iter().filter_map(|prompt| {
        let text = prompt.messages.last().map(|message| message.content.to_string());
        let (id, reason) = (prompt.id, *reasons.get(&prompt.id)?);
        Some(SkippedPrompt { iteration, id, text: text.unwrap_or_default(), reason })
    });
    Ok(skipped.collect())
}

fn reason(judgment: &Judgment) -> &'static str {
    let first = judgment.scores.first();
    match judgment.scores.iter().all(|score| Some(score) == first) {
        true => "all answers are judged equal",
        false => "best and worst answer read the same",
    }
}

/// Means of the targets of the log-ratios of the chosen and the rejected responses, where the objective
/// regresses each of them onto one.
fn mean_targets(training: &TrainingSettings, examples: &[TrainingExample]) -> Option<(f64, f64)> {
    let eta = training.eta;
    let targets = |example: &TrainingExample| match training.objective {
        Objective::Sppo | Objective::SppoAll => {
            let advantages = training.targets().advantages(example).ok()?;
            Some((eta * advantages.first()?, eta * advantages.last()?))
        }
        Objective::SppoSingle => {
            let target = eta * (example.chosen_probability? - 0.5);
            Some((target, -target))
        }
        Objective::SppoHard => Some((0.5 * eta, -0.5 * eta)),
        Objective::Dpo
        | Objective::Ipo
        | Objective::Hinge
        | Objective::KtoPair
        | Objective::Inpo
        | Objective::Mnpo => None,
    };
    let all: Vec<(f64, f64)> = examples.iter().map(targets).collect::<Option<_>>()?;
    let count = all.len() as f64;
    let sum = |of: fn(&(f64, f64)) -> f64| all.iter().map(of).sum::<f64>() / count;
    (!all.is_empty()).then(|| (sum(|(chosen, _)| *chosen), sum(|(_, rejected)| *rejected)))
}

fn report(record: &RunRecord, finished: &[&FinishedIteration]) -> Result<RunReport> {
    let identity = record.identity();
    let config = &identity.config;
    let metrics = record.metrics()?;
    let parts: Vec<HeldOutPart> = finished.iter().map(|part| part.held_out.clone()).collect();
    Ok(RunReport {
        name: record
            .root()
            .file_name()
            .map_or(config.name.clone(), |name| name.to_string_lossy().into_owned()),
        directory: record.root().to_path_buf(),
        state: state(record, finished.len(), config.iterations),
        planned_iterations: config.iterations,
        model: identity.model.name.clone(),
        oracle_name: config.oracle.name.clone(),
        objective: config.training.objective.to_string(),
        eta: config.training.eta,
        samples_per_prompt: config.sampling.samples_per_prompt,
        confidence: config.evaluation.confidence,
        iterations: finished.iter().map(|part| summary(part, record)).collect(),
        steps: steps(&metrics, config.training.eta),
        win_rate_matrix: held_out::matrix(&parts),
        oracle: oracle(finished, &metrics, &config.preference.prices),
        held_out: held_out::prompts(&parts),
        skipped: finished.iter().flat_map(|part| part.skipped.clone()).collect(),
        stages: time::stages(&metrics),
        throughput: Throughput::of(&metrics),
        processes: record.processes()?,
        notices: notices(&metrics),
        origin: Origin::of(identity),
        plugins: identity.plugins.clone(),
    })
}

fn state(record: &RunRecord, reports: usize, planned: u32) -> RunState {
    match reports > planned as usize {
        true => RunState::Finished,
        false if record.is_in_use() => RunState::Running,
        false => RunState::Stopped,
    }
}

fn summary(part: &FinishedIteration, record: &RunRecord) -> IterationSummary {
    let config = &record.identity().config;
    let iteration = part.report.iteration;
    let previous = iteration.checked_sub(1);
    let win_rates = previous.and_then(|previous| part.held_out.win_rates_against(previous));
    let bootstrap = config.evaluation.bootstrap(config.seed);
    let interval = |win_rates: Vec<f64>| bootstrap.mean(&win_rates);
    IterationSummary {
        report: part.report.clone(),
        against_previous: win_rates.map(interval),
        length_controlled: part.length_controlled,
        chosen_target: part.targets.map(|(chosen, _)| chosen),
        rejected_target: part.targets.map(|(_, rejected)| rejected),
        prompts: part.prompts,
    }
}

fn steps(metrics: &[MetricsEntry], eta: f64) -> Vec<StepSummary> {
    let steps = metrics.iter().filter(|entry| entry.kind == "training_step");
    let summary = |(index, entry): (usize, &MetricsEntry)| StepSummary {
        iteration: iteration_of(entry).unwrap_or(0),
        number: index as u64 + 1,
        loss: number(entry, "loss"),
        gradient_norm: number(entry, "gradient_norm"),
        learning_rate: number(entry, "learning_rate"),
        // What is logged as a reward is the log-ratio times beta.
        chosen_log_ratio: number(entry, "reward_chosen").map(|reward| reward * eta),
        rejected_log_ratio: number(entry, "reward_rejected").map(|reward| reward * eta),
    };
    steps.enumerate().map(summary).collect()
}

fn oracle(
    finished: &[&FinishedIteration],
    metrics: &[MetricsEntry],
    prices: &Prices,
) -> OracleReport {
    let service = service_counters(metrics);
    let duels: Vec<_> =
        finished.iter().flat_map(|part| part.held_out.duels_with(0).concat()).collect();
    OracleReport {
        iterations: finished.iter().skip(1).map(|part| part.pairs).collect(),
        held_out_orders: OrderReport::of(&duels),
        cost: service.cost(prices),
        service,
    }
}

/// The notices, each once: work that is done again says the same again.
fn notices(metrics: &[MetricsEntry]) -> Vec<String> {
    let mut notices: Vec<String> = Vec::new();
    for entry in metrics.iter().filter(|entry| entry.kind == "notice") {
        let text = entry.values.get("text").and_then(|text| text.as_str()).unwrap_or_default();
        if !notices.iter().any(|known| known == text) {
            notices.push(text.into());
        }
    }
    notices
}
