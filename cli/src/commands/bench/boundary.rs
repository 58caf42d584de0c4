//! Cost of the plugin boundary: time of calls into a library and back that compute nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use sppo_core::plugin::abi::{oracle_across, policy_across};
use sppo_core::plugin::{
    Codec, Comparison, GeneratedResponse, GenerationRequest, Learner, Message, Optimizer, Oracle,
    PluginError, PolicyInfo, Progress, Sampler, SequenceBatch, SilentHost, StepReport,
    StepSettings, Verdict,
};
use sppo_core::records::TrainingExample;

/// Time over which calls are repeated to take their mean.
const PATIENCE: Duration = Duration::from_millis(500);

/// Seconds of crossing the boundary.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Boundary {
    /// One optimiser step on all examples: reference, forward, backward, step.
    pub(super) seconds_per_step: f64,
    /// Judging the responses to one prompt.
    pub(super) seconds_per_comparison: f64,
}

/// Measures with these sequences and texts.
pub(super) fn measure(
    info: &PolicyInfo,
    examples: &[TrainingExample],
    comparisons: &[Comparison<'_>],
) -> Result<Boundary, PluginError> {
    let mut batch = SequenceBatch::new();
    for example in examples {
        let prompt = batch.push_prompt(&example.prompt_tokens);
        for response in &example.responses {
            batch.push_response(prompt, &response.tokens);
        }
    }
    let mut policy = policy_across(Box::new(Idle(info.clone())))?;
    let coefficients = vec![0.0; batch.response_count()];
    let settings = StepSettings { learning_rate: 0.0, max_gradient_norm: None };
    let seconds_per_step = mean_seconds(|| {
        policy.token_log_probs(&batch)?;
        policy.forward(&batch)?;
        policy.backward(&coefficients)?;
        policy.step(&settings)?;
        Ok(())
    })?;

    let mut across = oracle_across(Box::new(Undecided))?;
    let seconds_of = |oracle: &mut dyn Oracle| {
        mean_seconds(|| oracle.preferences(comparisons, &SilentHost).map(|_| ()))
    };
    let seconds_per_call = seconds_of(across.as_mut())? - seconds_of(&mut Undecided)?;
    Ok(Boundary {
        seconds_per_step,
        seconds_per_comparison: seconds_per_call.max(0.0) / comparisons.len().max(1) as f64,
    })
}

/// Mean time of a call, after one that is not counted.
fn mean_seconds(mut call: impl FnMut() -> Result<(), PluginError>) -> Result<f64, PluginError> {
    call()?;
    let started = Instant::now();
    for calls in 1_u32.. {
        call()?;
        if started.elapsed() >= PATIENCE {
            return Ok(started.elapsed().as_secs_f64() / f64::from(calls));
        }
    }
    Err(PluginError::failed("calls that take no time cannot be timed"))
}

/// Prefers nothing.
struct Undecided;

impl Oracle for Undecided {
    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        _progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, PluginError> {
        let verdict = |comparison: &Comparison<'_>| {
            Verdict::Probabilities(vec![0.5; comparison.candidates.len().pow(2)])
        };
        Ok(comparisons.iter().map(verdict).collect())
    }
}

/// Computes nothing, and returns the right shapes.
struct Idle(PolicyInfo);

impl Codec for Idle {
    fn info(&self) -> &PolicyInfo {
        &self.0
    }

    fn render(&self, _messages: &[Message], _prompt: bool) -> Result<String, PluginError> {
        Ok(String::new())
    }

    fn encode(&self, _text: &str, _special: bool) -> Result<Vec<u32>, PluginError> {
        Ok(Vec::new())
    }

    fn decode(&self, _tokens: &[u32]) -> Result<String, PluginError> {
        Ok(String::new())
    }
}

impl Sampler for Idle {
    fn generate(
        &mut self,
        _request: &GenerationRequest,
        _progress: &dyn Progress,
    ) -> Result<Vec<GeneratedResponse>, PluginError> {
        Ok(Vec::new())
    }
}

impl Learner for Idle {
    fn token_log_probs(&mut self, batch: &SequenceBatch) -> Result<Vec<Vec<f32>>, PluginError> {
        Ok(batch.responses().map(|response| vec![0.0; response.tokens.len()]).collect())
    }

    fn forward(&mut self, batch: &SequenceBatch) -> Result<Vec<f64>, PluginError> {
        Ok(vec![0.0; batch.response_count()])
    }

    fn backward(&mut self, _coefficients: &[f64]) -> Result<(), PluginError> {
        Ok(())
    }

    fn begin_training(&mut self, _optimizer: &Optimizer) -> Result<(), PluginError> {
        Ok(())
    }

    fn step(&mut self, _settings: &StepSettings) -> Result<StepReport, PluginError> {
        Ok(StepReport::new(0.0))
    }

    fn save(&self, _directory: &Path) -> Result<(), PluginError> {
        Ok(())
    }

    fn save_optimizer_state(&self, _file: &Path) -> Result<(), PluginError> {
        Ok(())
    }

    fn load_optimizer_state(&mut self, _file: &Path) -> Result<(), PluginError> {
        Ok(())
    }
}
