//! The time that a run took, stage by stage.

use serde::Serialize;
use serde_json::Value;
use sppo_core::metrics::MetricsEntry;

/// Time of the stages of one kind in one iteration, over all processes that worked on it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct StageSeconds {
    /// The iteration; 0 is the starting model.
    pub(crate) iteration: u32,
    /// Name of the stage.
    pub(crate) stage: String,
    /// Its seconds.
    pub(crate) seconds: f64,
}

/// Tokens and the seconds that they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Throughput {
    /// Tokens that were sampled.
    pub(crate) sampled_tokens: f64,
    /// Seconds of sampling.
    pub(crate) sampling_seconds: f64,
    /// Tokens that went through the policy in training.
    pub(crate) trained_tokens: f64,
    /// Seconds of training.
    pub(crate) training_seconds: f64,
}

impl Throughput {
    /// Sampled tokens per second.
    pub(crate) fn sampling(&self) -> Option<f64> {
        (self.sampling_seconds > 0.0).then(|| self.sampled_tokens / self.sampling_seconds)
    }

    /// Trained tokens per second.
    pub(crate) fn training(&self) -> Option<f64> {
        (self.training_seconds > 0.0).then(|| self.trained_tokens / self.training_seconds)
    }

    /// The throughput that the entries tell of.
    pub(super) fn of(metrics: &[MetricsEntry]) -> Self {
        let mut total = Self::default();
        for entry in metrics {
            let seconds = number(entry, "seconds").unwrap_or(0.0);
            match (entry.kind.as_str(), number(entry, "sampled_tokens")) {
                ("stage", Some(tokens)) => {
                    total.sampled_tokens += tokens;
                    total.sampling_seconds += seconds;
                }
                ("training_step", _) => {
                    total.trained_tokens += number(entry, "tokens").unwrap_or(0.0);
                    total.training_seconds += seconds;
                }
                _ => {}
            }
        }
        total
    }
}

/// The stages that the entries tell of, summed up by iteration and name, in the order of their first entry.
pub(super) fn stages(metrics: &[MetricsEntry]) -> Vec<StageSeconds> {
    let mut stages: Vec<StageSeconds> = Vec::new();
    for entry in metrics.iter().filter(|entry| entry.kind == "stage") {
        let (Some(iteration), Some(seconds), Some(stage)) = (
            iteration_of(entry),
            number(entry, "seconds"),
            entry.values.get("stage").and_then(Value::as_str),
        ) else {
            continue;
        };
        let known =
            stages.iter_mut().find(|known| known.iteration == iteration && known.stage == stage);
        match known {
            Some(known) => known.seconds += seconds,
            None => stages.push(StageSeconds { iteration, stage: stage.into(), seconds }),
        }
    }
    stages
}

/// A number of an entry.
pub(super) fn number(entry: &MetricsEntry, name: &str) -> Option<f64> {
    entry.values.get(name).and_then(Value::as_f64)
}

/// The iteration that an entry is about.
pub(super) fn iteration_of(entry: &MetricsEntry) -> Option<u32> {
    entry.values.get("iteration").and_then(Value::as_u64)?.try_into().ok()
}
