//! `sppo bench`: how fast this machine samples and trains.

mod boundary;
mod judging;
mod measure;
mod ranking;
mod scaling;

use std::path::Path;

use serde::Serialize;
use serde_json::json;
use sppo_core::datasets::{parse_pairs, parse_prompts, read_pairs, to_example};
use sppo_core::plugin::{
    GeneratedResponse, MemoryEstimate, MemoryUse, Optimizer, PlannedSampling, PlannedTraining,
    PlannedWork, PluginError, Policy,
};
use sppo_core::session::{LentPolicy, Session};
use sppo_core::stages::{self, TokenizationRule};
use sppo_core::{Error, Result as CoreResult};
use sppo_model::synthetic::{Shape, write_synthetic_model};
use tempfile::TempDir;

use self::boundary::Boundary;
use self::judging::{Judging, comparisons, measure_judging};
use self::measure::{Measurements, OBJECTIVE, Rate, Workload, measure};
use self::ranking::measure_ranking;
use self::scaling::{OneRank, Scaling, Speeds, StepTimes};
use super::session::Setup;
use crate::args::{BenchArguments, ShapeChoice};
use crate::failure::{Failure, Result};
use crate::memory::{self, MemoryPlan, gibibytes};
use crate::output;
use crate::settings::Flags;
use crate::terminal::{Alignment, Table, Terminal};

const PROMPTS: &str = include_str!("../../../data/bench-prompts.jsonl");
const PAIRS: &str = include_str!("../../../data/bench-pairs.jsonl");

// Lengths of made-up prompts and answers.
const PROMPT_WORDS: u64 = 64;
const ANSWER_WORDS: u64 = 192;

/// A measurement with its conditions.
#[derive(Serialize)]
struct BenchReport<'a> {
    model: &'a str,
    backend: &'a str,
    oracle: &'a str,
    device: String,
    data_type: String,
    parameters: u64,
    prompts: usize,
    samples_per_prompt: usize,
    new_tokens: usize,
    pairs: usize,
    global_batch_size: usize,
    measurements: Measurements,
    /// The oracle.
    judging: Judging,
    /// A ranker of PairRM's size, in pairs of answers; `null` where it was not asked for.
    ranking: Option<Rate>,
    /// Several ranks beside one; `null` in one process.
    scaling: Option<Scaling>,
    /// In bytes, by stage; `null` where the backend does not know.
    predicted_memory: Option<MemoryEstimate>,
    boundary: Boundary,
}

pub(super) fn bench(arguments: &BenchArguments, terminal: &Terminal) -> Result<()> {
    let flags = Flags::of(&[
        &arguments.settings,
        &arguments.model,
        &arguments.oracle,
        &arguments.backend,
        &arguments.lora,
    ])?;
    let mut setup = Setup::new(arguments.settings.resolve(flags)?.config, terminal)?;
    let ranks = setup.backend.place().size;
    let alone = measure_alone(&setup, terminal)?;
    let made = arguments.shape.map(|shape| synthetic_model(shape, terminal)).transpose()?;
    let path = match &made {
        Some(directory) => directory.path().to_path_buf(),
        None => setup.find_model(arguments.model.offline)?.path,
    };
    let mut policy = setup.load_for_training(&path)?;
    let times = StepTimes::default();
    let find_model = || Ok::<_, PluginError>(path.clone());
    let lent = LentPolicy::new(&find_model, ranks);
    let session = Session { lent_policy: Some(&lent), ..setup.observed_by(&times) };
    let mut oracle = session.oracle()?;
    let workload = workload(arguments, &setup, policy.as_ref())?;
    let predicted_memory = predict_memory(&setup, &path, &workload);
    drop(made);
    terminal.note("measuring; keep the machine otherwise idle");
    let (measurements, responses) = measure(session, policy.as_mut(), &workload)?;
    let texts = texts(policy.as_ref(), &responses)?;
    let comparisons = comparisons(&workload, &texts);
    let info = policy.info().clone();
    let oracle = oracle.as_mut();
    let judging =
        measure_judging(session, oracle, &lent, policy, &comparisons, workload.repetitions)?;
    let rank = || measure_ranking(session.backend, workload.repetitions, terminal);
    let ranking = arguments.ranker.then(rank).transpose()?;
    let speeds = Speeds {
        sampling: measurements.generation.per_second,
        judging: judging.prompts.per_second,
        training: measurements.training.per_second,
        ranking: ranking.as_ref().map(|ranking| ranking.per_second),
    };
    let boundary =
        boundary::measure(&info, &workload.examples, &comparisons).map_err(Error::from)?;
    let shape = arguments.shape.map(ShapeChoice::description);
    let report = BenchReport {
        model: shape.as_deref().unwrap_or(&setup.config.model),
        backend: &setup.config.backend.name,
        oracle: &setup.config.oracle.name,
        device: info.device.clone(),
        data_type: info.dtype.clone(),
        parameters: info.parameter_count,
        prompts: workload.prompts.len(),
        samples_per_prompt: workload.samples_per_prompt,
        new_tokens: workload.new_tokens,
        pairs: workload.examples.len(),
        global_batch_size: workload.global_batch_size,
        measurements,
        judging,
        ranking,
        scaling: alone.map(|alone| alone.compare(ranks, speeds, &times)),
        predicted_memory,
        boundary,
    };
    if arguments.report.json {
        return output::json(&report);
    }
    output::text(&describe(&report, terminal))
}

fn texts(policy: &dyn Policy, responses: &[GeneratedResponse]) -> CoreResult<Vec<String>> {
    responses.iter().map(|response| Ok(policy.decode(&response.tokens)?)).collect()
}

/// One rank, measured before several, to compare them with.
fn measure_alone(setup: &Setup, terminal: &Terminal) -> Result<Option<OneRank>> {
    if setup.backend.place().size == 1 {
        return Ok(None);
    }
    terminal.note("measuring one rank, to compare with");
    Ok(Some(OneRank::measure(&setup.config)?))
}

impl ShapeChoice {
    fn shape(self) -> Shape {
        match self {
            Self::SmolLm135M => Shape::SmolLm135M,
            Self::Llama1B => Shape::Llama1B,
            Self::Llama8B => Shape::Llama8B,
            Self::SmolLm3B => Shape::SmolLm3B,
            Self::Gemma270M => Shape::Gemma270M,
            Self::Gemma1B => Shape::Gemma1B,
            Self::Olmo1B => Shape::Olmo1B,
            Self::Olmo7B => Shape::Olmo7B,
            Self::Phi4Mini => Shape::Phi4Mini,
            Self::Qwen30B => Shape::Qwen30B,
        }
    }

    fn description(self) -> String {
        format!("random weights in the shape of {}", self.shape().model())
    }
}

/// A model of this shape, as long as the directory is kept.
fn synthetic_model(shape: ShapeChoice, terminal: &Terminal) -> Result<TempDir> {
    let directory = temporary_directory()?;
    let place = directory.path().display();
    let size = gibibytes(shape.shape().file_bytes()?);
    terminal.note(&format!("writing {}, {size}, to {place}", shape.description()));
    write_synthetic_model(directory.path(), shape.shape(), 0)?;
    Ok(directory)
}

fn temporary_directory() -> Result<TempDir> {
    tempfile::tempdir().map_err(|error| {
        let place = std::env::temp_dir();
        Failure::from(Error::input(place, format!("holds no temporary directory: {error}")))
    })
}

/// Memory of the workload as the backend predicts it, without checkpoints.
fn predict_memory(setup: &Setup, model: &Path, workload: &Workload) -> Option<MemoryEstimate> {
    let (mut longest, mut step, mut tokens, mut predicted) = (0, Vec::new(), 0, 0);
    for example in &workload.examples {
        let answers: usize = example.responses.iter().map(|answer| answer.tokens.len()).sum();
        let own = example.prompt_tokens.len() + answers;
        longest = longest.max(own);
        step.push(own);
        tokens += own;
        predicted += answers;
    }
    step.sort_unstable_by(|a, b| b.cmp(a));
    let step = step.iter().take(workload.global_batch_size).sum();
    let batch = memory::batch_tokens(&setup.config, step, longest);
    let work = PlannedWork {
        sampling: vec![PlannedSampling {
            prompts: workload.prompts.len(),
            longest_prompt: workload.prompt_tokens.iter().map(Vec::len).max().unwrap_or(0),
            samples_per_prompt: workload.samples_per_prompt,
            max_new_tokens: workload.new_tokens,
        }],
        training: Some(PlannedTraining {
            optimizer: Optimizer::default(),
            tokens: batch,
            predicted_tokens: batch * predicted / tokens.max(1),
        }),
    };
    let spec = setup.config.policy_spec(model.to_path_buf());
    let plan = MemoryPlan::new(setup.backend.as_ref(), &spec, &work)?;
    Some(MemoryEstimate { saving: MemoryUse::default(), ..plan.estimate })
}

fn workload(arguments: &BenchArguments, setup: &Setup, policy: &dyn Policy) -> Result<Workload> {
    let vocabulary = policy.info().vocabulary_size;
    let pairs = match (&arguments.pairs, arguments.shape) {
        (Some(file), _) => read_pairs(file, OBJECTIVE)?,
        (None, None) => parse_pairs("bundled pairs", PAIRS, OBJECTIVE)?,
        (None, Some(_)) => parse_pairs("made-up pairs", &word_pairs(vocabulary), OBJECTIVE)?,
    };
    let prompts = match arguments.shape {
        None => parse_prompts("bundled prompts", PROMPTS)?,
        Some(_) => parse_prompts("made-up prompts", &word_prompts(vocabulary))?,
    };
    let tokenized = prompts.iter().map(|prompt| {
        let rule = TokenizationRule::Clean;
        Ok(stages::tokenize_prompt(policy, &prompt.messages, rule)?.1)
    });
    let prompt_tokens = tokenized.collect::<CoreResult<Vec<_>>>()?;
    let training = &setup.config.training;
    let settings = training.tokenization_settings(policy.info().context_length);
    let examples = pairs
        .into_iter()
        .enumerate()
        .map(|(index, pair)| Ok(to_example(policy, index as u64, pair, settings)?.0))
        .collect::<CoreResult<Vec<_>>>()?;
    Ok(Workload {
        prompts,
        prompt_tokens,
        samples_per_prompt: arguments.samples.into(),
        new_tokens: arguments.new_tokens.into(),
        examples,
        global_batch_size: arguments.global_batch_size.into(),
        micro_batch_tokens: training.micro_batch_tokens,
        repetitions: arguments.repetitions.into(),
    })
}

/// Eight prompts of one length, as JSON lines, for a model whose tokens are the words `w0`, `w1`, and so on.
fn word_prompts(vocabulary: usize) -> String {
    let line =
        |index: u64| json!({"prompt": words(vocabulary, PROMPT_WORDS, index)}).to_string() + "\n";
    (0..8).map(line).collect()
}

/// Sixteen pairs of one length for such a model, as JSON lines.
fn word_pairs(vocabulary: usize) -> String {
    let line = |index: u64| {
        let pair = json!({
            "prompt": words(vocabulary, PROMPT_WORDS, 3 * index),
            "chosen": words(vocabulary, ANSWER_WORDS, 3 * index + 1),
            "rejected": words(vocabulary, ANSWER_WORDS, 3 * index + 2),
        });
        pair.to_string() + "\n"
    };
    (0..16).map(line).collect()
}

/// Words that look drawn at random; `w0` ends answers, so it is not among them.
fn words(vocabulary: usize, count: u64, seed: u64) -> String {
    let others = vocabulary.saturating_sub(1).max(1) as u64;
    let word = |place: u64| {
        let draw = (seed * 1009 + place).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        format!("w{}", 1 + draw % others)
    };
    (0..count).map(word).collect::<Vec<_>>().join(" ")
}

fn describe(report: &BenchReport, terminal: &Terminal) -> String {
    let mut table = Table::new(&[
        ("work", Alignment::Left),
        ("speed", Alignment::Right),
        ("GFLOP/s", Alignment::Right),
        ("of the machine's rate", Alignment::Right),
    ]);
    let Measurements { matrix_product_gflops, generation, training, peak_memory_gibibytes } =
        &report.measurements;
    let share = |rate: &Rate, gflops: f64| {
        let share = rate.matrix_product_share.or(matrix_product_gflops.map(|all| gflops / all));
        share.map_or("not known".into(), |share| format!("{:.0} %", 100.0 * share))
    };
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, 0.0f64), |(low, high), value| (low.min(value), high.max(value)))
    };
    let speed = |rate: &Rate| {
        let (low, high) = range(&mut rate.repetitions.iter().copied());
        let digits = if rate.per_second < 10.0 { 3 } else { 0 };
        format!("{:.digits$} {}/s ({low:.digits$} to {high:.digits$})", rate.per_second, rate.unit)
    };
    let mut rows = vec![
        (
            format!(
                "sampling, {} x {} x {} tokens",
                report.prompts, report.samples_per_prompt, report.new_tokens
            ),
            generation,
        ),
        (format!("judging the answers to {} prompts", report.prompts), &report.judging.prompts),
        (
            format!("training on {} pairs, {} per step", report.pairs, report.global_batch_size),
            training,
        ),
    ];
    let ranker = "ranking pairs, random weights in the shape of PairRM";
    let model = report.judging.model.iter().flatten();
    rows.splice(2..2, model.map(|rate| (format!("  its {}", rate.unit), rate)));
    rows.extend(report.ranking.as_ref().map(|rate| (ranker.to_string(), rate)));
    for (name, rate) in rows {
        let gflops = rate.gflops.map_or(String::new(), |gflops| format!("{gflops:.0}"));
        let share = rate.gflops.map_or(String::new(), |gflops| share(rate, gflops));
        table.row([name, speed(rate), gflops, share]);
    }
    if let Some(rate) = matrix_product_gflops {
        let measured = [generation, training].map(|rate| rate.matrix_product_gflops.iter());
        let (low, high) = range(&mut measured.into_iter().flatten().copied());
        let spread = if low < high { format!("{low:.0} to {high:.0}") } else { String::new() };
        table.row(["matrix products alone".into(), spread, format!("{rate:.0}")]);
    }
    let memory =
        peak_memory_gibibytes.map_or("not known".into(), |gibibytes| format!("{gibibytes:.2} GiB"));
    let predicted = report.predicted_memory.map_or(String::new(), |estimate| {
        let stages = estimate.stages().into_iter().filter(|(_, stage)| stage.total() > 0);
        let stages: Vec<String> =
            stages.map(|(name, stage)| format!("{name} {}", gibibytes(stage.total()))).collect();
        format!(", predicted {} ({})", gibibytes(estimate.peak()), stages.join(", "))
    });
    // What a GPU holds is its own.
    let place = if report.device.starts_with("cpu") { "" } else { " of the host" };
    let boundary = describe_boundary(report);
    let scaling = report.scaling.map_or(String::new(), describe_scaling);
    format!(
        "{} ({} parameters), backend {} on {} in {}\n\n{}\n{scaling}peak memory{place} {memory}{predicted}\n{boundary}\n\
         GFLOP/s count the products with weights; training includes the reference log-probabilities\n",
        report.model,
        report.parameters,
        report.backend,
        report.device,
        report.data_type,
        table.render(terminal.stdout_style()),
    )
}

/// Several ranks beside one, in a line.
fn describe_scaling(scaling: Scaling) -> String {
    let Scaling { ranks, threads, factors, waiting, .. } = scaling;
    let Speeds { sampling, judging, training, ranking } = factors;
    let threads = threads.map_or(String::new(), |threads| {
        format!(" with {}", crate::terminal::counted(threads as usize, "thread"))
    });
    let ranking = ranking.map_or(String::new(), |factor| format!(", ranking {factor:.2} x"));
    format!(
        "{ranks} ranks against one rank{threads}: sampling {sampling:.2} x, judging {judging:.2} x, training \
         {training:.2} x{ranking}; in training, rank 0 waited for others {:.0} % of the time\n",
        100.0 * waiting
    )
}

/// The way to a library and back, beside the work that it is for.
fn describe_boundary(report: &BenchReport) -> String {
    let Boundary { seconds_per_step, seconds_per_comparison } = report.boundary;
    let share = |part: f64, whole: f64| format!("{:.4} %", 100.0 * part / whole);
    let training_seconds = report.pairs as f64 / report.measurements.training.per_second;
    format!(
        "plugins in libraries would add {:.0} us to training on these pairs ({}), and {:.2} us to \
         judging the answers to a prompt ({} of what the oracle {} takes)",
        1e6 * seconds_per_step,
        share(seconds_per_step, training_seconds),
        1e6 * seconds_per_comparison,
        share(seconds_per_comparison, 1.0 / report.judging.prompts.per_second),
        report.oracle,
    )
}
