//! Answers of a model to the questions of a benchmark, turn after turn.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use sppo_core::Error;
use sppo_core::engine::{EngineWork, SamplingEngine};
use sppo_core::plugin::thought::without_thought_after;
use sppo_core::plugin::{FinishReason, Message, Policy, ServedWeights};
use sppo_core::records::{Prompt, Response, Rollout};
use sppo_core::session::Session;
use sppo_core::stages::{SamplingPass, SamplingSettings};

use super::super::session::{Setup, served};
use super::benchmark::{Answer, Benchmark, Question};
use super::names::name_of_model;
use crate::args::BenchmarkArguments;
use crate::failure::Result;
use crate::output;
use crate::settings::{Flags, SettingFlags};
use crate::terminal::{Terminal, counted};

impl SettingFlags for BenchmarkArguments {
    fn add_to(&self, flags: &mut Flags) -> sppo_core::Result<()> {
        flags.set("CHECKPOINT", "model", Some(self.checkpoint.as_str()))?;
        self.seed.add_to(flags)
    }
}

/// Lets the model answer all questions, and writes its answers as the benchmark reads them.
pub(super) fn export_answers(
    benchmark: Benchmark,
    arguments: &BenchmarkArguments,
    terminal: &Terminal,
) -> Result<()> {
    let BenchmarkArguments { settings, backend, sampler, .. } = arguments;
    let questions = benchmark.read(&arguments.questions)?;
    let flags = Flags::of(&[settings, backend, sampler, arguments])?;
    let setup = Setup::new(arguments.settings.resolve(flags)?.config, terminal)?;
    let pass = pass(arguments, &setup)?;
    let name = arguments.name.clone().unwrap_or_else(|| name_of_model(&arguments.checkpoint));
    let default = || PathBuf::from(format!("{name}.{}", benchmark.extension()));
    let path = arguments.output.clone().unwrap_or_else(default);
    output::require_distinct(
        &[("--output", Some(&path))],
        &[("--questions", Some(&arguments.questions))],
    )?;
    let session = setup.session();
    let mut engine = session.sampling_engine()?;
    let model = setup.find_model(arguments.offline)?;
    model.require_template()?;
    let weights = served(model.path.clone());
    let mut policy = setup.load(model)?;
    let mut answerer = Answerer {
        session,
        engine: engine.as_mut(),
        policy: policy.as_mut(),
        weights: &weights,
        pass,
        temperature_given: is_temperature_given(arguments),
        cut_off: 0,
    };
    let answers = answerer.answers(&questions)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    output::file(&path, benchmark.file(&name, &questions, &answers, now).as_bytes())?;
    if answerer.cut_off > 0 {
        let cut_off = counted(answerer.cut_off, "answer");
        let limit = answerer.pass.parameters.max_new_tokens;
        terminal.note(&format!(
            "{cut_off} did not end within {limit} tokens; --max-new-tokens allows more"
        ));
    }
    output::line(&path.display().to_string())
}

fn pass(arguments: &BenchmarkArguments, setup: &Setup) -> Result<SamplingPass> {
    let base = SamplingSettings { samples_per_prompt: 1, ..setup.config.sampling.clone() };
    let sampling = arguments.sampling.over(base)?;
    if sampling.samples_per_prompt != 1 {
        return Err(Error::configuration("--samples", "benchmarks take one answer to a question")
            .with_hint("leave it out")
            .into());
    }
    Ok(SamplingPass {
        samples_per_prompt: 1,
        parameters: sampling.parameters(),
        ..setup.session().evaluation_pass()
    })
}

fn is_temperature_given(arguments: &BenchmarkArguments) -> bool {
    arguments.sampling.iter().any(|(flag, ..)| *flag == "--temperature")
}

/// A model that answers, and how it does.
struct Answerer<'a> {
    session: Session<'a>,
    engine: Option<&'a mut SamplingEngine>,
    policy: &'a mut dyn Policy,
    weights: &'a ServedWeights,
    pass: SamplingPass,
    /// Whether the user's temperature counts in place of the benchmark's.
    temperature_given: bool,
    /// Answers so far that reached the largest number of tokens.
    cut_off: usize,
}

impl Answerer<'_> {
    /// The answers to all turns of all questions.
    fn answers(&mut self, questions: &[Question]) -> Result<Vec<Vec<Answer>>> {
        let mut answers: Vec<Vec<Answer>> = vec![Vec::new(); questions.len()];
        let turns = questions.iter().map(|question| question.turns.len()).max().unwrap_or(0);
        for turn in 0..turns {
            for (temperature, numbers) in self.groups(questions, turn) {
                let conversation = |number: usize| Prompt {
                    id: number as u64,
                    messages: conversation(&questions[number], &answers[number]),
                };
                let prompts: Vec<Prompt> =
                    numbers.iter().map(|&number| conversation(number)).collect();
                let rollouts = self.sample(&prompts, turn, f64::from_bits(temperature))?;
                for (number, rollout) in numbers.into_iter().zip(&rollouts) {
                    answers[number].extend(rollout.responses.first().map(|response| {
                        self.cut_off += usize::from(response.finish_reason == FinishReason::Length);
                        answer(&rollout.rendered_prompt, response)
                    }));
                }
            }
        }
        Ok(answers)
    }

    /// The numbers of the questions that have this turn, by the bits of their temperature.
    fn groups(&self, questions: &[Question], turn: usize) -> BTreeMap<u64, Vec<usize>> {
        let mut groups: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (number, question) in questions.iter().enumerate() {
            let fixed = question.temperature.filter(|_| !self.temperature_given);
            let temperature = fixed.unwrap_or(self.pass.parameters.temperature);
            if question.turns.len() > turn {
                groups.entry(temperature.to_bits()).or_default().push(number);
            }
        }
        groups
    }

    /// One response to each conversation; every turn draws other numbers.
    fn sample(
        &mut self,
        prompts: &[Prompt],
        turn: usize,
        temperature: f64,
    ) -> Result<Vec<Rollout>> {
        let mut pass = self.pass.clone();
        pass.parameters.temperature = temperature;
        // streams of iterations count up from the other end
        pass.stream -= turn as u64;
        let work = EngineWork { prompts: &[prompts], pass: &pass, weights_change: false };
        let (session, engine) = (&self.session, self.engine.as_deref_mut());
        Ok(session.sampled_by(engine, self.policy, self.weights, work, |sampler| {
            session.sample_held_out(sampler, prompts, &pass)
        })?)
    }
}

/// The answer in a response: what follows its thought, and nothing of a thought that never ends.
fn answer(prompt: &str, response: &Response) -> Answer {
    let thought = without_thought_after(prompt, &response.text);
    let text = thought.answer().unwrap_or_default().trim().to_owned();
    Answer { text, tokens: response.tokens.len() }
}

/// The turns so far, and the user's next.
fn conversation(question: &Question, answers: &[Answer]) -> Vec<Message<'static>> {
    let mut messages = Vec::new();
    for (index, turn) in question.turns.iter().take(answers.len() + 1).enumerate() {
        messages.push(Message::user(turn.clone()));
        if let Some(answer) = answers.get(index) {
            messages.push(Message::assistant(answer.text.clone()));
        }
    }
    messages
}
