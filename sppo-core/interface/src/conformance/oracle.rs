//! Rules that every oracle must keep, checked by asking one.

use std::cell::Cell;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Finding, Outcome, unknown_setting};
use crate::win_rate::{self, WinRateEstimator};
use crate::{
    Candidate, Comparison, Message, Oracle, PluginErrorKind, Progress, Services, SilentHost,
};

/// Probabilities of the same question may differ by rounding.
const TOLERANCE: f64 = 1e-6;

/// Time that an oracle may take to notice that it should stop.
const PATIENCE: Duration = Duration::from_secs(2);

/// Checks an oracle: `create` makes it from settings, `settings` are the settings of the check, `services`
/// offers the models and other oracles that it may use.
pub fn check_oracle(
    create: &mut dyn FnMut(Value) -> Result<Box<dyn Oracle>, String>,
    settings: &Value,
    services: &dyn Services,
) -> Vec<Finding> {
    let mut findings = vec![unknown_setting(create)];
    let made = create(settings.clone()).and_then(|mut oracle| {
        oracle.prepare(services, &SilentHost).map_err(|error| error.to_string())?;
        Ok(oracle)
    });
    let mut oracle = match made {
        Ok(oracle) => oracle,
        Err(error) => {
            findings.push(Finding::new("the oracle can be made and gets ready", Err(error)));
            return findings;
        }
    };
    let mut asked = Asked { oracle: oracle.as_mut() };
    findings.extend([
        Finding::new("no comparisons, no verdicts", asked.nothing()),
        Finding::new(
            "verdicts have the right number and shape, lie in [0, 1], and have 1/2 on the diagonal",
            asked.shapes(),
        ),
        Finding::new("strange answers are judged, not tripped over", asked.strange_answers()),
        Finding::new("asked twice, it says the same", asked.repetition()),
        Finding::new("many comparisons at once are judged as one by one", asked.one_by_one()),
        Finding::new("the order of the candidates does not matter", asked.permutation()),
        Finding { check: "it stops when the user asks to", outcome: asked.cancellation() },
    ]);
    findings
}

struct Asked<'a> {
    oracle: &'a mut dyn Oracle,
}

impl Asked<'_> {
    fn judge(&mut self, comparisons: &[Comparison<'_>]) -> Result<Vec<Vec<f64>>, String> {
        let estimator = WinRateEstimator::default();
        let judged = win_rate::ask(self.oracle, comparisons, estimator, 1.0, &SilentHost)
            .map_err(|error| error.to_string())?;
        Ok(judged.into_iter().map(|judged| judged.matrix.values().to_vec()).collect())
    }

    fn nothing(&mut self) -> Result<(), String> {
        self.judge(&[]).map(|_| ())
    }

    fn shapes(&mut self) -> Result<(), String> {
        for size in [2, 3, 5] {
            self.judge(&[comparison(0, &ANSWERS[..size])])
                .map_err(|error| format!("of {size} candidates: {error}"))?;
        }
        Ok(())
    }

    fn strange_answers(&mut self) -> Result<(), String> {
        let long = "All work and no play makes a dull answer. ".repeat(200);
        let answers =
            ["", " \n", "\u{1F9EA} \u{200B}\u{0301}naïve 東京", "```\n{\"a\": [1,", &long];
        self.judge(&[comparison(0, &answers)]).map(|_| ())
    }

    fn repetition(&mut self) -> Result<(), String> {
        let asked = [comparison(0, &ANSWERS)];
        let (first, second) = (self.judge(&asked)?, self.judge(&asked)?);
        compare(&first[0], &second[0])
    }

    fn one_by_one(&mut self) -> Result<(), String> {
        let asked: Vec<_> = (0..QUESTIONS.len()).map(|at| comparison(at, &ANSWERS)).collect();
        let together = self.judge(&asked)?;
        for (comparison, together) in asked.iter().zip(together) {
            let alone = self.judge(std::slice::from_ref(comparison))?;
            compare(&alone[0], &together)
                .map_err(|error| format!("`{}`: {error}", comparison.prompt[0].content))?;
        }
        Ok(())
    }

    fn permutation(&mut self) -> Result<(), String> {
        let size = ANSWERS.len();
        let straight = self.judge(&[comparison(0, &ANSWERS)])?;
        let order: Vec<usize> = (0..size).map(|at| (at * 2 + 1) % size).collect();
        let answers: Vec<&str> = order.iter().map(|&at| ANSWERS[at]).collect();
        let permuted = self.judge(&[comparison(0, &answers)])?;
        let expected: Vec<f64> = (0..size * size)
            .map(|at| straight[0][order[at / size] * size + order[at % size]])
            .collect();
        compare(&expected, &permuted[0])
    }

    fn cancellation(&mut self) -> Outcome {
        let asked: Vec<_> = (0..64).map(|at| comparison(at % QUESTIONS.len(), &ANSWERS)).collect();
        let host = Stopping { was_asked: Cell::new(false) };
        let started = Instant::now();
        let result = self.oracle.preferences(&asked, &host);
        let elapsed = started.elapsed();
        match result {
            Err(error) if error.kind == PluginErrorKind::Cancelled => Outcome::Passed,
            Err(error) => Outcome::Failed(format!(
                "told to stop, it failed with `{error}`: return `PluginError::cancelled()`"
            )),
            Ok(_) if elapsed > PATIENCE => Outcome::Failed(format!(
                "told to stop, it went on for {:.1} s: poll `progress.is_cancelled()`",
                elapsed.as_secs_f64()
            )),
            Ok(_) if !host.was_asked.get() => Outcome::Remark(
                "it never asks `progress.is_cancelled()`; that is well while it is as fast as here"
                    .into(),
            ),
            Ok(_) => Outcome::Failed("it asked whether to stop, and went on to the end".into()),
        }
    }
}

const QUESTIONS: [&str; 3] = [
    "Name three primary colours.",
    "Why is the sky blue? Answer in one sentence.",
    "Schreibe einen Satz über den Herbst.",
];

const ANSWERS: [&str; 5] = [
    "Red, yellow and blue.",
    "The three primary colours are red, yellow, and blue. Painters mix all others from them.",
    "I am not sure. I am not sure. I am not sure. I am not sure.",
    "blue",
    "Sunlight scatters in the air, and blue light scatters most.",
];

fn comparison<'a>(question: usize, answers: &[&'a str]) -> Comparison<'a> {
    Comparison {
        prompt: [Message::user(QUESTIONS[question])].into(),
        rendered_prompt: None,
        candidates: answers.iter().copied().map(Candidate::from_text).collect(),
    }
}

fn compare(expected: &[f64], actual: &[f64]) -> Result<(), String> {
    let differs = |(a, b): (&f64, &f64)| (a - b).abs() > TOLERANCE;
    match expected.iter().zip(actual).position(differs) {
        None => Ok(()),
        Some(at) => Err(format!("a probability was {} and is {}", expected[at], actual[at])),
    }
}

/// A watcher whose user has asked to stop.
struct Stopping {
    was_asked: Cell<bool>,
}

impl Progress for Stopping {
    fn is_cancelled(&self) -> bool {
        self.was_asked.set(true);
        true
    }

    fn progress(&self, _completed: u64, _total: u64) {}
}
