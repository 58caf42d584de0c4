//! `sppo eval`: models compared by their answers to the same prompts.

mod answers;
mod show;

use serde::Serialize;
use sppo_core::datasets::AnsweredPrompt;
use sppo_core::evaluation::{JudgedPair, Tournament, TournamentReport};
use sppo_core::plugin::{Comparison, Oracle};
use sppo_core::session::Session;
use sppo_core::statistics::{Duels, Interval};
use sppo_core::{Error, Result as CoreResult};

use super::session::Setup;
use crate::args::EvalArguments;
use crate::failure::Result;
use crate::output;
use crate::settings::{Flags, SettingFlags};
use crate::terminal::Terminal;
use answers::{Answering, Contestant, ResponsesReport};

impl SettingFlags for EvalArguments {
    fn add_to(&self, flags: &mut Flags) -> CoreResult<()> {
        flags.set_path("--prompts", "prompts.held_out", self.prompts.as_deref())?;
        flags.set("--against", "model", self.against.as_deref())?;
        self.seed.add_to(flags)
    }
}

/// Outcome of a comparison.
#[derive(Debug, Serialize)]
struct EvalReport {
    /// The two models, where there are no more, and the win rate of the first.
    #[serde(flatten)]
    duel: Option<DuelReport>,
    /// Source of the prompts.
    prompts: String,
    prompt_count: usize,
    samples_per_prompt: usize,
    oracle: String,
    /// The confidence of all intervals.
    confidence: f64,
    /// All models, in the order in which they were given.
    models: Vec<ResponsesReport>,
    #[serde(flatten)]
    tournament: TournamentReport,
}

/// One model against another.
#[derive(Debug, Serialize)]
struct DuelReport {
    model: ResponsesReport,
    against: ResponsesReport,
    /// The mean probability that the model's response is preferred.
    win_rate: Interval,
    /// The same at equal length; `null` when length cannot be told from quality.
    length_controlled_win_rate: Option<Interval>,
}

pub(super) fn eval(arguments: &EvalArguments, terminal: &Terminal) -> Result<()> {
    let EvalArguments { settings, backend, oracle, sampler, .. } = arguments;
    let flags = Flags::of(&[settings, backend, oracle, sampler, arguments])?;
    let setup = Setup::new(arguments.settings.resolve(flags)?.config, terminal)?;
    let models = models(arguments, &setup)?;
    let session = setup.session();
    let mut oracle = session.oracle()?;
    let mut answering = Answering::new(arguments, &models, &setup)?;
    session.try_oracle(oracle.as_mut())?;
    let contestants: Vec<Contestant> =
        models.iter().map(|model| answering.of(model)).collect::<Result<_>>()?;
    for contestant in &contestants {
        if let Some(file) = &contestant.read_from {
            terminal.note(&format!("{}: answers read from {}", contestant.name, file.display()));
        }
    }
    let tournament = tournament(&session, oracle.as_mut(), &contestants)?;
    let report = EvalReport {
        duel: DuelReport::new(&contestants, &tournament),
        prompts: answering.questions.source.clone(),
        prompt_count: answering.questions.prompts.len(),
        samples_per_prompt: answering.sampling.samples_per_prompt,
        oracle: setup.describe_oracle(oracle.as_ref()),
        confidence: setup.config.evaluation.confidence,
        models: contestants.iter().map(Contestant::describe).collect(),
        tournament,
    };
    if arguments.report.json { output::json(&report) } else { show::print(&report, terminal) }
}

/// The models to compare, at least two: one alone is compared with that of the settings.
fn models(arguments: &EvalArguments, setup: &Setup) -> CoreResult<Vec<String>> {
    let mut models = arguments.model.clone();
    if models.len() < 2 || arguments.against.is_some() {
        models.push(setup.config.model.clone());
    }
    for (index, model) in models.iter().enumerate() {
        // A model against itself is a test of the judge; among several, names must tell who is who.
        if models.len() > 2 && models[..index].contains(model) {
            let message = format!("{model} is given twice");
            return Err(Error::configuration("--model", message)
                .with_hint("name every model once, as --model or --against"));
        }
    }
    Ok(models)
}

/// Judges every two contestants.
fn tournament(
    session: &Session<'_>,
    oracle: &mut dyn Oracle,
    contestants: &[Contestant],
) -> CoreResult<TournamentReport> {
    let seen: Vec<Vec<Comparison<'_>>> = contestants
        .iter()
        .map(|contestant| contestant.answers.iter().map(AnsweredPrompt::comparison).collect())
        .collect();
    let mut duels = Vec::new();
    for (index, first) in seen.iter().enumerate() {
        for (second, other) in seen.iter().zip(contestants).skip(index + 1) {
            let subject = format!("{} against {}", contestants[index].name, other.name);
            let judged = session.judge_pairs(oracle, first, second, &subject)?;
            let of_prompt = |pairs: &Vec<JudgedPair>| pairs.iter().map(JudgedPair::duel).collect();
            duels.push(Duels::new(vec![judged.iter().map(of_prompt).collect()]));
        }
    }
    let names = contestants.iter().map(|contestant| contestant.name.clone()).collect();
    let duels: Option<Vec<Duels>> = duels.into_iter().collect();
    let tournament = duels.and_then(|duels| Tournament::new(names, duels)).ok_or_else(|| {
        Error::configuration("prompts.held_out", "there is no prompt to compare models by")
            .with_hint("give a file with prompts")
    })?;
    Ok(tournament.report(&session.bootstrap()))
}

impl DuelReport {
    /// `None` unless there are two.
    fn new(contestants: &[Contestant], tournament: &TournamentReport) -> Option<Self> {
        let ([model, against], [pair]) = (contestants, tournament.pairs.as_slice()) else {
            return None;
        };
        Some(Self {
            model: model.describe(),
            against: against.describe(),
            win_rate: pair.win_rate,
            length_controlled_win_rate: pair.length_controlled_win_rate,
        })
    }
}
