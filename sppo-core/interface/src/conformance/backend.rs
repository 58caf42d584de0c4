//! Rules that every backend must keep, checked on a model; a small one is enough, and quick.

use std::path::Path;

use serde_json::Value;

use super::{Finding, unknown_setting};
use crate::{
    Backend, Codec, GenerationPrompt, GenerationRequest, Optimizer, PluginError, Policy,
    PolicySpec, SamplingParameters, SequenceBatch, SilentHost, StepSettings,
};

/// Log-probabilities of the same tokens, computed in another arrangement, may differ by rounding.
const SAME_LOG_PROB: f64 = 2e-4;

type Check = Result<(), String>;

/// Checks a backend: `create` makes it from settings, `settings` are the settings of the check, `model` is
/// a model in a number format without rounding (f32), and `scratch` an empty directory for checkpoints.
pub fn check_backend(
    create: &mut dyn FnMut(Value) -> Result<Box<dyn Backend>, String>,
    settings: &Value,
    model: &Path,
    scratch: &Path,
) -> Vec<Finding> {
    let mut findings = vec![unknown_setting(create)];
    let backend = match create(settings.clone()) {
        Ok(backend) => backend,
        Err(error) => {
            findings.push(Finding::new("the backend can be made", Err(error)));
            return findings;
        }
    };
    let trial = Trial { backend: backend.as_ref(), model, scratch };
    type TrialCheck<'a> = fn(&Trial<'a>) -> Check;
    let checks: [(&'static str, TrialCheck<'_>); 7] = [
        ("a model that is not there is refused", Trial::missing_model),
        ("log-probabilities are finite, not above 0, and add up", Trial::log_probs),
        ("packing and order do not matter", Trial::packing),
        ("sampling is repeatable and independent of the batch", Trial::sampling),
        ("misuse is an error, not an abort", Trial::misuse),
        ("a step changes the model, and twice the same is the same", Trial::steps),
        ("what was saved loads back bit for bit, optimiser state included", Trial::saving),
    ];
    findings.extend(checks.map(|(name, check)| Finding::new(name, check(&trial))));
    findings
}

struct Trial<'a> {
    backend: &'a dyn Backend,
    model: &'a Path,
    scratch: &'a Path,
}

fn said(error: PluginError) -> String {
    error.to_string()
}

impl Trial<'_> {
    fn load(&self, path: &Path) -> Result<Box<dyn Policy>, String> {
        self.backend.load_policy(&PolicySpec::new(path)).map_err(said)
    }

    fn policy(&self) -> Result<Box<dyn Policy>, String> {
        self.load(self.model)
    }

    fn missing_model(&self) -> Check {
        let path = self.scratch.join("nowhere");
        must_fail("loading it", self.load(&path).map(|_| ()))
    }

    fn log_probs(&self) -> Check {
        let mut policy = self.policy()?;
        let batch = example_batch(policy.as_ref(), &[0, 1, 2, 3]);
        let per_token = policy.token_log_probs(&batch).map_err(said)?;
        let sums = policy.forward(&batch).map_err(said)?;
        for ((segment, per_token), sum) in batch.responses().zip(&per_token).zip(&sums) {
            if per_token.len() != segment.tokens.len() {
                return Err(format!(
                    "{} log-probabilities for {} tokens",
                    per_token.len(),
                    segment.tokens.len()
                ));
            }
            if let Some(wrong) =
                per_token.iter().find(|value| !(value.is_finite() && **value <= 0.0))
            {
                return Err(format!("a log-probability is {wrong}"));
            }
            let added: f64 = per_token.iter().map(|&value| f64::from(value)).sum();
            same("`forward` and the sum of `token_log_probs`", added, *sum)?;
        }
        Ok(())
    }

    fn packing(&self) -> Check {
        let mut policy = self.policy()?;
        let mut sums = |responses: &[usize]| {
            let batch = example_batch(policy.as_ref(), responses);
            policy.forward(&batch).map_err(said)
        };
        let together = sums(&[0, 1, 2, 3])?;
        let reversed = sums(&[3, 2, 1, 0])?;
        for (response, &expected) in together.iter().enumerate() {
            same("a response alone and among others", sums(&[response])?[0], expected)?;
            same("a response in another order", reversed[together.len() - 1 - response], expected)?;
        }
        Ok(())
    }

    fn sampling(&self) -> Check {
        let mut policy = self.policy()?;
        let prompts = prompts(policy.as_ref());
        let mut draw = |prompts: &[GenerationPrompt]| {
            let request = GenerationRequest {
                prompts: prompts.to_vec(),
                samples_per_prompt: 2,
                sampling: SamplingParameters { max_new_tokens: 8, ..SamplingParameters::default() },
                seed: 7,
                stream: 1,
            };
            let drawn = policy.generate(&request, &SilentHost).map_err(said)?;
            if drawn.len() != 2 * prompts.len() {
                return Err(format!("{} responses, not {}", drawn.len(), 2 * prompts.len()));
            }
            Ok(drawn.into_iter().map(|response| response.tokens).collect::<Vec<_>>())
        };
        let together = draw(&prompts)?;
        if draw(&prompts)? != together {
            return Err("the same seed drew other tokens the second time".into());
        }
        for (prompt, expected) in prompts.iter().zip(together.chunks(2)) {
            if draw(std::slice::from_ref(prompt))? != expected {
                return Err("a prompt alone drew other tokens than among others".into());
            }
        }
        Ok(())
    }

    fn misuse(&self) -> Check {
        let mut policy = self.policy()?;
        must_fail("`backward` without `forward`", policy.backward(&[1.0]))?;
        let settings = StepSettings { learning_rate: 0.1, max_gradient_norm: None };
        must_fail("`step` before `begin_training`", policy.step(&settings).map(|_| ()))?;
        let fine = example_batch(policy.as_ref(), &[0]);
        policy.forward(&fine).map_err(said)?;
        must_fail("two coefficients for one response", policy.backward(&[1.0, 1.0]))?;
        let vocabulary = u32::try_from(policy.info().vocabulary_size).unwrap_or(u32::MAX);
        let mut outside = SequenceBatch::new();
        let prompt = outside.push_prompt(&[1]);
        outside.push_response(prompt, &[vocabulary]);
        must_fail("a token outside the vocabulary", policy.forward(&outside).map(|_| ()))?;
        let mut endless = SequenceBatch::new();
        let prompt = endless.push_prompt(&[1]);
        endless.push_response(prompt, &vec![2; policy.info().context_length + 1]);
        must_fail("a response longer than the context", policy.forward(&endless).map(|_| ()))?;
        policy.forward(&fine).map(|_| ()).map_err(|error| format!("after all this, {error}"))
    }

    /// Trains two steps and returns the log-probabilities afterwards.
    fn trained(&self) -> Result<(Box<dyn Policy>, Vec<f64>), String> {
        let mut policy = self.policy()?;
        policy.begin_training(&Optimizer::default()).map_err(said)?;
        for _ in 0..2 {
            train_once(policy.as_mut())?;
        }
        let batch = example_batch(policy.as_ref(), &[0, 1, 2, 3]);
        let sums = policy.forward(&batch).map_err(said)?;
        Ok((policy, sums))
    }

    fn steps(&self) -> Check {
        let mut fresh = self.policy()?;
        let batch = example_batch(fresh.as_ref(), &[0, 1, 2, 3]);
        let untrained = fresh.forward(&batch).map_err(said)?;
        let (_, once) = self.trained()?;
        let (_, again) = self.trained()?;
        if once == untrained {
            return Err("two steps changed nothing".into());
        }
        if once != again {
            return Err("the same two steps led to other log-probabilities".into());
        }
        Ok(())
    }

    fn saving(&self) -> Check {
        let (mut policy, _) = self.trained()?;
        let saved = self.scratch.join("trained");
        let state = self.scratch.join("optimizer.safetensors");
        policy.save(&saved).map_err(said)?;
        policy.save_optimizer_state(&state).map_err(said)?;
        let mut restored = self.load(&saved)?;
        restored.begin_training(&Optimizer::default()).map_err(said)?;
        restored.load_optimizer_state(&state).map_err(said)?;
        let batch = example_batch(policy.as_ref(), &[0, 1, 2, 3]);
        for moment in ["at once", "after another step"] {
            let expected = policy.forward(&batch).map_err(said)?;
            if restored.forward(&batch).map_err(said)? != expected {
                return Err(format!("{moment}, the log-probabilities differ"));
            }
            train_once(policy.as_mut())?;
            train_once(restored.as_mut())?;
        }
        Ok(())
    }
}

fn train_once(policy: &mut dyn Policy) -> Check {
    let batch = example_batch(policy, &[0, 1, 2, 3]);
    policy.forward(&batch).map_err(said)?;
    policy.backward(&[1.0, -1.0, 0.5, -0.5]).map_err(said)?;
    let settings = StepSettings { learning_rate: 1e-3, max_gradient_norm: Some(1.0) };
    policy.step(&settings).map(|_| ()).map_err(said)
}

fn same(what: &str, actual: f64, expected: f64) -> Check {
    if (actual - expected).abs() <= SAME_LOG_PROB * expected.abs().max(1.0) {
        return Ok(());
    }
    Err(format!("{what} differ: {actual} and {expected}"))
}

fn must_fail(what: &str, result: Result<(), impl std::fmt::Display>) -> Check {
    match result {
        Err(_) => Ok(()),
        Ok(()) => Err(format!("{what} was accepted")),
    }
}

/// Some of four responses, two to each of two prompts; their tokens are drawn by a fixed rule from the whole
/// vocabulary.
#[must_use]
pub fn example_batch(codec: &dyn Codec, responses: &[usize]) -> SequenceBatch {
    let vocabulary = codec.info().vocabulary_size;
    let tokens = |key: usize, count: usize| -> Vec<u32> {
        (0..count).map(|at| ((key * 7919 + at * 104_729 + 13) % vocabulary) as u32).collect()
    };
    let mut batch = SequenceBatch::new();
    let mut segments = [None, None];
    for &response in responses {
        let prompt = response / 2;
        let segment = *segments[prompt]
            .get_or_insert_with(|| batch.push_prompt(&tokens(100 + prompt, 5 + 3 * prompt)));
        batch.push_response(segment, &tokens(response, 4 + response));
    }
    batch
}

fn prompts(policy: &dyn Policy) -> Vec<GenerationPrompt> {
    let vocabulary = policy.info().vocabulary_size;
    let tokens =
        |id: usize| (0..3 + id).map(move |at| ((id * 31 + at * 17 + 5) % vocabulary) as u32);
    (0..3).map(|id| GenerationPrompt { id: id as u64, tokens: tokens(id).collect() }).collect()
}
