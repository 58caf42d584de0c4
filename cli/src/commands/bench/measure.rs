//! Measurements of `sppo bench`: sampling, training, and the machine's own rate of matrix products.

use std::time::Instant;

use serde::Serialize;
use sppo_core::Result;
use sppo_core::objective::Objective;
use sppo_core::plugin::{
    Backend, GeneratedResponse, GenerationPrompt, GenerationRequest, Optimizer, Policy, PolicyInfo,
    Progress, SamplingParameters,
};
use sppo_core::records::{Prompt, TrainingExample};
use sppo_core::schedule::ScheduleShape;
use sppo_core::session::Session;
use sppo_core::stages::{TrainingPass, TrainingProgress, TrainingSettings};

use crate::memory;

/// Rows, inner dimension and columns of the default model's feed-forward product on a micro-batch of two
/// pairs.
const CPU_MATRICES: [usize; 3] = [912, 576, 1536];
/// A product that keeps a whole GPU busy.
const GPU_MATRICES: [usize; 3] = [8192; 3];

/// The loss that is trained: it needs no probabilities.
pub(crate) const OBJECTIVE: Objective = Objective::SppoHard;

/// The work to measure.
pub(crate) struct Workload {
    /// Answered `samples_per_prompt` times each.
    pub(crate) prompts: Vec<Prompt>,
    /// The same as tokens.
    pub(crate) prompt_tokens: Vec<Vec<u32>>,
    /// Answers per prompt.
    pub(crate) samples_per_prompt: usize,
    /// Tokens per answer; end tokens are forbidden so that every answer has this many.
    pub(crate) new_tokens: usize,
    /// Trained on.
    pub(crate) examples: Vec<TrainingExample>,
    /// Examples per optimiser step.
    pub(crate) global_batch_size: usize,
    /// Most tokens that go through the policy at once.
    pub(crate) micro_batch_tokens: usize,
    /// Timed repetitions, after one that is not.
    pub(crate) repetitions: usize,
}

/// Results of the measurements.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measurements {
    /// Matrix products alone, in the backend's number format, GFLOP/s: the median of what was measured.
    pub(crate) matrix_product_gflops: Option<f64>,
    /// Sampling.
    pub(crate) generation: Rate,
    /// Reference log-probabilities, forward, backward and optimiser step.
    pub(crate) training: Rate,
    /// Highest resident memory of this process so far, GiB.
    pub(crate) peak_memory_gibibytes: Option<f64>,
}

/// A speed, over the timed repetitions.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Rate {
    /// Unit of the count.
    pub(crate) unit: &'static str,
    /// Units per second, the median repetition.
    pub(crate) per_second: f64,
    /// Units per second of every repetition.
    pub(crate) repetitions: Vec<f64>,
    /// Products with weights only, GFLOP/s at the median; `None` where that is not what the time goes
    /// to.
    pub(crate) gflops: Option<f64>,
    /// Matrix products alone around each repetition, GFLOP/s; empty where they were not measured.
    pub(crate) matrix_product_gflops: Vec<f64>,
    /// Part of them that products with weights reached, the median repetition.
    pub(crate) matrix_product_share: Option<f64>,
}

/// Runs the workload; returns the last answers too.
///
/// # Errors
/// When the policy fails, or the user asks to stop.
pub(crate) fn measure(
    session: Session<'_>,
    policy: &mut dyn Policy,
    workload: &Workload,
) -> Result<(Measurements, Vec<GeneratedResponse>)> {
    let machine = Machine::of(session.backend, policy.info());
    let (generation, responses) = measure_generation(policy, workload, &machine, &session.host())?;
    let training = measure_training(session, policy, workload, &machine)?;
    let measured = [&generation, &training].map(|rate| &*rate.matrix_product_gflops).concat();
    let measurements = Measurements {
        matrix_product_gflops: median(&measured).or_else(|| machine.matrix_product_gflops()),
        generation,
        training,
        peak_memory_gibibytes: memory::peak().map(memory::in_gib),
    };
    Ok((measurements, responses))
}

/// The machine's own rate of matrix products.
pub(super) struct Machine<'a> {
    backend: &'a dyn Backend,
    shape: [usize; 3],
    changes: bool,
}

impl<'a> Machine<'a> {
    /// The one that a policy is on.
    pub(super) fn of(backend: &'a dyn Backend, policy: &PolicyInfo) -> Self {
        let is_cpu = policy.device.starts_with("cpu");
        let shape = if is_cpu { CPU_MATRICES } else { GPU_MATRICES };
        Self { backend, shape, changes: is_cpu }
    }

    fn matrix_product_gflops(&self) -> Option<f64> {
        let [rows, inner, columns] = self.shape;
        self.backend.matrix_product_rate(rows, inner, columns).ok()
    }

    /// The rate, where it may change within a measurement: others use the same processor. A GPU has one rate, and
    /// no memory to spare for large matrices beside a model.
    fn changing(&self) -> Option<f64> {
        self.changes.then(|| self.matrix_product_gflops())?
    }
}

fn measure_generation(
    policy: &mut dyn Policy,
    workload: &Workload,
    machine: &Machine<'_>,
    progress: &dyn Progress,
) -> Result<(Rate, Vec<GeneratedResponse>)> {
    let prompts = workload.prompts.iter().zip(&workload.prompt_tokens);
    let prompts: Vec<GenerationPrompt> = prompts
        .map(|(prompt, tokens)| GenerationPrompt { id: prompt.id, tokens: tokens.clone() })
        .collect();
    let prompt_tokens: usize = workload.prompt_tokens.iter().map(Vec::len).sum();
    let mut responses = Vec::new();
    let part = prompts.len().div_ceil(policy.info().replicas.max(1)).max(1);
    let request = |prompts: &[GenerationPrompt], seed: u64| GenerationRequest {
        prompts: prompts.to_vec(),
        samples_per_prompt: workload.samples_per_prompt,
        sampling: SamplingParameters {
            max_new_tokens: workload.new_tokens,
            min_new_tokens: workload.new_tokens,
            ..SamplingParameters::default()
        },
        seed,
        stream: 0,
    };
    let tokens = workload.prompts.len() * workload.samples_per_prompt * workload.new_tokens;
    let repetitions = repeat(workload.repetitions, Some(machine), |repetition| {
        let parts = prompts.chunks(part).map(|part| request(part, repetition as u64));
        responses = policy.generate_each(&parts.collect::<Vec<_>>(), progress)?.concat();
        Ok(())
    })?;
    let work = forward_flops(policy.info(), prompt_tokens + tokens, tokens);
    Ok((rate("tokens", tokens as f64, Some(work), &repetitions), responses))
}

fn measure_training(
    session: Session<'_>,
    policy: &mut dyn Policy,
    workload: &Workload,
    machine: &Machine<'_>,
) -> Result<Rate> {
    let settings = TrainingSettings {
        objective: OBJECTIVE,
        global_batch_size: workload.global_batch_size,
        micro_batch_tokens: workload.micro_batch_tokens,
        schedule: ScheduleShape::Constant,
        warmup_ratio: 0.0,
        ..TrainingSettings::default()
    };
    let pass = TrainingPass { settings: &settings, seed: 0 };
    policy.begin_training(&Optimizer::default())?;
    let mut examples = workload.examples.clone();
    let repetitions = repeat(workload.repetitions, Some(machine), |_| {
        session.reference_log_probs(policy, &mut examples)?;
        let mut progress = TrainingProgress::default();
        session.train(policy, &examples, &pass, &mut progress, &mut |_, _| Ok(()))?;
        Ok(())
    })?;
    let (tokens, predicted) = examples.iter().fold((0, 0), |(tokens, predicted), example| {
        let answers: usize = example.responses.iter().map(|answer| answer.tokens.len()).sum();
        (tokens + example.prompt_tokens.len() + answers, predicted + answers)
    });
    // Reference forward, forward, and two products per weight backwards.
    let work = 4.0 * forward_flops(policy.info(), tokens, predicted);
    Ok(rate("pairs", examples.len() as f64, Some(work), &repetitions))
}

/// Floating-point operations of the products with weights, one multiplication and one addition each.
pub(super) fn forward_flops(info: &PolicyInfo, tokens: usize, predicted: usize) -> f64 {
    2.0 * (info.layer_matrix_parameters as f64 * tokens as f64
        + info.head_parameters as f64 * predicted as f64)
}

/// One repetition.
pub(super) struct Repetition {
    seconds: f64,
    /// Matrix products alone, GFLOP/s: the mean of just before and just after.
    matrix_product_gflops: Option<f64>,
}

/// Each repetition but the first; between them the rate of the machine is measured, where one is given.
pub(super) fn repeat(
    repetitions: usize,
    machine: Option<&Machine<'_>>,
    mut work: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<Repetition>> {
    work(0)?;
    let gflops = || machine.and_then(Machine::changing);
    let mut before = gflops();
    let repetition = |repetition| {
        let started = Instant::now();
        work(repetition)?;
        let seconds = started.elapsed().as_secs_f64();
        let after = gflops();
        let around = before.zip(after).map(|(before, after)| f64::midpoint(before, after));
        before = after;
        Ok(Repetition { seconds, matrix_product_gflops: around })
    };
    (1..=repetitions).map(repetition).collect()
}

pub(super) fn rate(
    unit: &'static str,
    units: f64,
    flops: Option<f64>,
    repetitions: &[Repetition],
) -> Rate {
    let seconds: Vec<f64> = repetitions.iter().map(|repetition| repetition.seconds).collect();
    let typical = median(&seconds).unwrap_or(f64::NAN);
    let share = |repetition: &Repetition| {
        Some(flops? / repetition.seconds / 1e9 / repetition.matrix_product_gflops?)
    };
    Rate {
        unit,
        per_second: units / typical,
        repetitions: seconds.iter().map(|seconds| units / seconds).collect(),
        gflops: flops.map(|flops| flops / typical / 1e9),
        matrix_product_gflops: (repetitions.iter())
            .filter_map(|repetition| repetition.matrix_product_gflops)
            .collect(),
        matrix_product_share: median(&repetitions.iter().filter_map(share).collect::<Vec<_>>()),
    }
}

/// The upper one of two; none of no numbers.
fn median(numbers: &[f64]) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}
