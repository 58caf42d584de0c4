//! `sppo bench`: how fast this machine samples and trains.

mod boundary;
mod measure;

use serde::Serialize;
use sppo_core::Result as CoreResult;
use sppo_core::datasets::{
    Pair, PairContent, RequiredColumns, parse_pairs, parse_prompts, read_pairs,
};
use sppo_core::plugin::Policy;
use sppo_core::records::{TrainingExample, TrainingResponse};
use sppo_core::stages::{self, TokenizationSettings, TokenizedAnswer};

use self::boundary::Boundary;
use self::measure::{Measurements, Rate, Workload, measure};
use super::session::Session;
use crate::args::BenchArguments;
use crate::failure::Result;
use crate::output;
use crate::settings::Flags;
use crate::terminal::{Alignment, Table, Terminal};

const PROMPTS: &str = include_str!("../../../data/bench-prompts.jsonl");
const PAIRS: &str = include_str!("../../../data/bench-pairs.jsonl");

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
    boundary: Boundary,
}

pub(super) fn bench(arguments: &BenchArguments, terminal: &Terminal) -> Result<()> {
    let flags = Flags::of(&[&arguments.settings, &arguments.model, &arguments.backend])?;
    let session = Session::open(arguments.settings.resolve(flags)?.config, terminal)?;
    let mut oracle = session.oracle()?;
    let model = session.find_model(arguments.model.offline)?;
    let mut policy = session.load_for_training(model)?;
    let workload = workload(arguments, &session, policy.as_ref())?;
    terminal.note("measuring; keep the machine otherwise idle");
    let measurements = measure(session.backend.as_ref(), policy.as_mut(), &workload)
        .map_err(|error| session.blame_backend(error))?;
    let info = policy.info();
    let host = session.unwatched_host();
    let boundary =
        boundary::measure(info, &workload.examples, oracle.as_mut(), &host).map_err(|error| {
            let oracle = format_args!("oracle `{}`", session.config.oracle.name);
            sppo_core::Error::from(error).from_plugin(oracle)
        })?;
    let report = BenchReport {
        model: &session.config.model,
        backend: &session.config.backend.name,
        oracle: &session.config.oracle.name,
        device: info.device.clone(),
        data_type: info.data_type.clone(),
        parameters: info.parameter_count,
        prompts: workload.prompts.len(),
        samples_per_prompt: workload.samples_per_prompt,
        new_tokens: workload.new_tokens,
        pairs: workload.examples.len(),
        global_batch_size: workload.global_batch_size,
        measurements,
        boundary,
    };
    if arguments.report.json {
        return output::json(&report);
    }
    output::text(&describe(&report, terminal))
}

fn workload(
    arguments: &BenchArguments,
    session: &Session,
    policy: &dyn Policy,
) -> Result<Workload> {
    let required = RequiredColumns::default();
    let pairs = match &arguments.pairs {
        Some(file) => read_pairs(file, required)?,
        None => parse_pairs("bundled pairs", PAIRS, required)?,
    };
    let training = &session.config.training;
    let settings = training.tokenization_settings(policy.info().context_length);
    let examples = pairs
        .into_iter()
        .enumerate()
        .map(|(index, pair)| example(policy, index, pair, settings))
        .collect::<CoreResult<Vec<_>>>()?;
    Ok(Workload {
        prompts: parse_prompts("bundled prompts", PROMPTS)?,
        samples_per_prompt: arguments.samples.into(),
        new_tokens: arguments.new_tokens.into(),
        examples,
        global_batch_size: arguments.global_batch_size.into(),
        micro_batch_tokens: training.micro_batch_tokens,
        repetitions: arguments.repetitions.into(),
    })
}

/// Win rates do not change the amount of work.
fn example(
    policy: &dyn Policy,
    index: usize,
    pair: Pair,
    settings: TokenizationSettings,
) -> CoreResult<TrainingExample> {
    let (messages, answers) = match pair.content {
        PairContent::Text { messages, chosen, rejected } => {
            let answers =
                stages::tokenize_answers(policy, &messages, &[&chosen, &rejected], settings)?;
            (messages, answers)
        }
        PairContent::Tokens { prompt, chosen, rejected, .. } => {
            let answer = |answer| TokenizedAnswer { prompt: prompt.clone(), answer };
            (Vec::new(), vec![answer(chosen), answer(rejected)])
        }
    };
    let response = TrainingResponse {
        text: String::new(),
        tokens: Vec::new(),
        own_prompt_tokens: None,
        win_rate: 0.5,
        reference_log_prob: None,
    };
    let mut example = TrainingExample {
        prompt_id: index as u64,
        messages,
        prompt_tokens: Vec::new(),
        responses: vec![response; answers.len()],
        chosen_probability: Some(0.5),
    };
    stages::set_tokens(&mut example, answers);
    Ok(example)
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
    let share = |gflops: f64| match matrix_product_gflops {
        Some(rate) => format!("{:.0} %", 100.0 * gflops / rate),
        None => "not known".into(),
    };
    let speed = |rate: &Rate| {
        let spread = rate.repetitions.iter().copied();
        let (low, high) = spread
            .fold((f64::INFINITY, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
        let digits = if rate.per_second < 10.0 { 3 } else { 0 };
        format!("{:.digits$} {}/s ({low:.digits$} to {high:.digits$})", rate.per_second, rate.unit)
    };
    for (name, rate) in [
        (
            format!(
                "sampling, {} x {} x {} tokens",
                report.prompts, report.samples_per_prompt, report.new_tokens
            ),
            generation,
        ),
        (
            format!("training on {} pairs, {} per step", report.pairs, report.global_batch_size),
            training,
        ),
    ] {
        table.row([name, speed(rate), format!("{:.0}", rate.gflops), share(rate.gflops)]);
    }
    if let Some(rate) = matrix_product_gflops {
        table.row(["matrix products alone".into(), String::new(), format!("{rate:.0}")]);
    }
    let memory =
        peak_memory_gibibytes.map_or("not known".into(), |gibibytes| format!("{gibibytes:.2} GiB"));
    let boundary = describe_boundary(report);
    format!(
        "{} ({} parameters), backend {} on {} in {}\n\n{}\npeak memory {memory}\n{boundary}\n\
         GFLOP/s count the products with weights; training includes the reference log-probabilities\n",
        report.model,
        report.parameters,
        report.backend,
        report.device,
        report.data_type,
        table.render(terminal.stdout_style()),
    )
}

/// The way to a library and back, beside the work that it is for.
fn describe_boundary(report: &BenchReport) -> String {
    let Boundary { seconds_per_step, seconds_per_comparison, judging_seconds_per_comparison } =
        report.boundary;
    let training_seconds = report.pairs as f64 / report.measurements.training.per_second;
    let share = |part: f64, whole: f64| format!("{:.4} %", 100.0 * part / whole);
    let of_judging = match judging_seconds_per_comparison {
        Some(seconds) => {
            let share = share(seconds_per_comparison, seconds);
            format!("{share} of what the oracle {} takes", report.oracle)
        }
        None => format!("the oracle {} waits for its service", report.oracle),
    };
    format!(
        "plugins in libraries would add {:.0} us to training on these pairs ({}), and {:.1} us to \
         judging 5 answers ({of_judging})",
        1e6 * seconds_per_step,
        share(seconds_per_step, training_seconds),
        1e6 * seconds_per_comparison
    )
}
