//! How long a run will take, from what it has done so far.

use std::collections::BTreeMap;
use std::time::Duration;

use sppo_core::observer::Stage;

/// Shorter stages were read from disk rather than done, and say nothing about the rest.
const DONE_FOR_REAL: Duration = Duration::from_millis(200);

/// The long stages of a run, in the work that each is expected to be.
///
/// Work is counted in sampled tokens: before a kind of stage has been timed, it is taken to go as
/// fast as those that have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forecast {
    pending: Vec<(Stage, f64)>,
    seconds_per_work: BTreeMap<u8, f64>,
}

impl Forecast {
    /// A forecast for these stages, in order, each with its expected work.
    pub(crate) fn new(stages: Vec<(Stage, f64)>) -> Self {
        Self { pending: stages, ..Self::default() }
    }

    /// Takes note of a finished stage.
    pub(crate) fn finished(&mut self, stage: Stage, elapsed: Duration) {
        let Some(at) = self.pending.iter().position(|(pending, _)| *pending == stage) else {
            return;
        };
        let (_, work) = self.pending.remove(at);
        if elapsed >= DONE_FOR_REAL && work > 0.0 {
            self.seconds_per_work.insert(stage as u8, elapsed.as_secs_f64() / work);
        }
    }

    /// How much longer the run will take when the stage under way, if any, is done to `share` after
    /// `elapsed`; `None` while there is nothing to go by.
    pub(crate) fn remaining(&self, current: Option<(Stage, f64, Duration)>) -> Option<Duration> {
        let mut rates = self.seconds_per_work.clone();
        let mut underway = self.pending.len();
        if let Some((stage, share, elapsed)) = current {
            let at = self.pending.iter().position(|(pending, _)| *pending == stage);
            underway = at.unwrap_or(underway);
            if let Some((_, work)) = at.and_then(|at| self.pending.get(at))
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
            .map(|(at, (stage, work))| {
                let left = match current {
                    Some((_, share, _)) if at == underway => 1.0 - share.min(1.0),
                    _ => 1.0,
                };
                rates.get(&(*stage as u8)).unwrap_or(&usual) * work * left
            })
            .sum();
        Some(Duration::from_secs_f64(seconds.clamp(0.0, 1e9)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_left_follows_from_the_rates_so_far() {
        let mut forecast = Forecast::new(vec![
            (Stage::Evaluate, 10.0),
            (Stage::Sample, 100.0),
            (Stage::Train, 50.0),
            (Stage::Evaluate, 10.0),
        ]);
        assert_eq!(forecast.remaining(None), None);
        assert_eq!(forecast.remaining(Some((Stage::Evaluate, 0.0, SECOND))), None);
        // Half of the first stage took a second: 5 work per second, 165 left.
        assert_eq!(forecast.remaining(Some((Stage::Evaluate, 0.5, SECOND))), Some(33 * SECOND));
        forecast.finished(Stage::Evaluate, 2 * SECOND);
        assert_eq!(forecast.remaining(None), Some(32 * SECOND));
        // Sampling turns out ten times as fast as evaluating.
        forecast.finished(Stage::Sample, 2 * SECOND);
        forecast.finished(Stage::Train, 10 * SECOND);
        assert_eq!(forecast.remaining(None), Some(2 * SECOND));
    }

    #[test]
    fn stages_read_from_disk_are_done_but_set_no_rate() {
        let mut forecast = Forecast::new(vec![(Stage::Sample, 100.0), (Stage::Train, 10.0)]);
        forecast.finished(Stage::Sample, Duration::from_millis(3));
        assert_eq!(forecast.remaining(None), None);
        assert_eq!(forecast.remaining(Some((Stage::Train, 0.5, SECOND))), Some(SECOND));
    }
}
