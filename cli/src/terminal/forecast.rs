//! Forecast of a run's remaining time, from the time of its finished stages.

use std::collections::BTreeMap;
use std::time::Duration;

use sppo_core::observer::Stage;

/// Shorter stages were read from disk and say nothing about the speed of the rest.
const DONE_FOR_REAL: Duration = Duration::from_millis(200);

/// A pending stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpectedStage {
    /// The iteration, from 1; 0 is the starting model.
    pub(crate) iteration: u32,
    /// Kind of stage.
    pub(crate) stage: Stage,
    /// Expected work, in sampled tokens.
    pub(crate) work: f64,
}

/// The long stages of a run with their expected work.
///
/// Work is counted in sampled tokens. A kind of stage that has not been timed yet is assumed to be as
/// fast as the timed ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forecast {
    pending: Vec<ExpectedStage>,
    /// The current iteration.
    iteration: u32,
    seconds_per_work: BTreeMap<u8, f64>,
}

impl Forecast {
    /// A forecast for these stages, in order, each with its expected work.
    pub(crate) fn new(stages: Vec<ExpectedStage>) -> Self {
        Self { pending: stages, ..Self::default() }
    }

    /// Records the start of an iteration: an earlier process has done all stages before it.
    pub(crate) fn begin_iteration(&mut self, iteration: u32) {
        self.iteration = iteration;
        self.pending.retain(|expected| expected.iteration >= iteration);
    }

    /// The pending stage of this iteration; `None` for a finished stage that is only read again.
    fn next(&self, stage: Stage) -> Option<usize> {
        let is_meant = |expected: &ExpectedStage| {
            expected.stage == stage && expected.iteration == self.iteration
        };
        self.pending.iter().position(is_meant)
    }

    /// Records a finished stage.
    pub(crate) fn finished(&mut self, stage: Stage, elapsed: Duration) {
        let Some(at) = self.next(stage) else { return };
        let work = self.pending.remove(at).work;
        if elapsed >= DONE_FOR_REAL && work > 0.0 {
            self.seconds_per_work.insert(stage as u8, elapsed.as_secs_f64() / work);
        }
    }

    /// Remaining time of the run when the current stage, if any, is done to `share` after `elapsed`;
    /// `None` before any stage has been timed.
    pub(crate) fn remaining(&self, current: Option<(Stage, f64, Duration)>) -> Option<Duration> {
        let mut rates = self.seconds_per_work.clone();
        let mut underway = self.pending.len();
        if let Some((stage, share, elapsed)) = current {
            let at = self.next(stage);
            underway = at.unwrap_or(underway);
            if let Some(work) = at.and_then(|at| self.pending.get(at)).map(|next| next.work)
                && share > 0.02
                && elapsed >= DONE_FOR_REAL
            {
                rates.insert(stage as u8, elapsed.as_secs_f64() / (share * work));
            }
        }
        if rates.is_empty() {
            return None;
        }
        let usual = rates.values().sum::<f64>() / rates.len() as f64;
        let seconds: f64 = self
            .pending
            .iter()
            .enumerate()
            .map(|(at, expected)| {
                let left = match current {
                    Some((_, share, _)) if at == underway => 1.0 - share.min(1.0),
                    _ => 1.0,
                };
                rates.get(&(expected.stage as u8)).unwrap_or(&usual) * expected.work * left
            })
            .sum();
        Some(Duration::from_secs_f64(seconds.clamp(0.0, 1e9)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn forecast(stages: &[(u32, Stage, f64)]) -> Forecast {
        let expected = |&(iteration, stage, work): &_| ExpectedStage { iteration, stage, work };
        Forecast::new(stages.iter().map(expected).collect())
    }

    #[test]
    fn what_is_left_follows_from_the_rates_so_far() {
        let mut forecast = forecast(&[
            (0, Stage::Evaluate, 10.0),
            (1, Stage::Sample, 100.0),
            (1, Stage::Train, 50.0),
            (1, Stage::Evaluate, 10.0),
        ]);
        assert_eq!(forecast.remaining(None), None);
        assert_eq!(forecast.remaining(Some((Stage::Evaluate, 0.0, SECOND))), None);
        // Half of the first stage took a second: 5 work per second, 165 left.
        assert_eq!(forecast.remaining(Some((Stage::Evaluate, 0.5, SECOND))), Some(33 * SECOND));
        forecast.finished(Stage::Evaluate, 2 * SECOND);
        assert_eq!(forecast.remaining(None), Some(32 * SECOND));
        forecast.begin_iteration(1);
        // Sampling turns out ten times as fast as evaluating.
        forecast.finished(Stage::Sample, 2 * SECOND);
        forecast.finished(Stage::Train, 10 * SECOND);
        assert_eq!(forecast.remaining(None), Some(2 * SECOND));
    }

    #[test]
    fn what_an_earlier_process_did_is_not_to_come() {
        let mut forecast = forecast(&[
            (1, Stage::Sample, 100.0),
            (1, Stage::Train, 10.0),
            (2, Stage::Sample, 100.0),
            (2, Stage::Train, 10.0),
        ]);
        forecast.begin_iteration(2);
        // Read from disk: done, but no sign of how fast sampling is.
        forecast.finished(Stage::Sample, Duration::from_millis(3));
        assert_eq!(forecast.remaining(None), None);
        assert_eq!(forecast.remaining(Some((Stage::Train, 0.5, SECOND))), Some(SECOND));
    }
}
