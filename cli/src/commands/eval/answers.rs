//! The answers that models are compared by: sampled, or read where they exist.

use std::path::{Path, PathBuf};

use serde::Serialize;
use sppo_core::datasets::{AnsweredPrompt, answers_to, read_answers};
use sppo_core::engine::{EngineWork, SamplingEngine};
use sppo_core::plugin::{Candidate, FinishReason};
use sppo_core::records::Prompt;
use sppo_core::self_play::kept_answers;
use sppo_core::stages::{SamplingPass, SamplingSettings};
use sppo_core::tables::TableFormat;
use sppo_core::{Error, Result as CoreResult};

use super::super::session::{Setup, served};
use crate::args::EvalArguments;
use crate::failure::Result;
use crate::prompts;
use crate::terminal::counted;

/// A model under comparison.
pub(super) struct Contestant {
    /// Its name, as it was given.
    pub(super) name: String,
    /// Its answers, prompt by prompt.
    pub(super) answers: Vec<AnsweredPrompt>,
    /// The file that the answers were read from.
    pub(super) read_from: Option<PathBuf>,
}

/// Answers of one model, as they are described.
#[derive(Debug, Serialize)]
pub(super) struct ResponsesReport {
    pub(super) model: String,
    /// In tokens; `null` where a file does not say.
    pub(super) mean_response_tokens: Option<f64>,
    /// In characters, thoughts included.
    pub(super) mean_response_characters: f64,
    /// Share that the model ended itself; `null` where a file does not say.
    pub(super) ended_share: Option<f64>,
    /// The file that the answers were read from, if they were not sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) read_from: Option<PathBuf>,
}

impl Contestant {
    pub(super) fn describe(&self) -> ResponsesReport {
        let all = || self.answers.iter().flat_map(|prompt| &prompt.answers);
        let mean = |value: fn(&Candidate<'_>) -> Option<f64>| {
            let values: Option<Vec<f64>> = all().map(value).collect();
            values.map(|values| values.iter().sum::<f64>() / values.len().max(1) as f64)
        };
        let ended = |answer: &Candidate<'_>| {
            answer.finish_reason.map(|reason| f64::from(u8::from(reason == FinishReason::Stop)))
        };
        ResponsesReport {
            model: self.name.clone(),
            mean_response_tokens: mean(|answer| answer.token_count.map(|count| count as f64)),
            mean_response_characters: mean(|answer| Some(answer.text.chars().count() as f64))
                .unwrap_or(0.0),
            ended_share: mean(ended),
            read_from: self.read_from.clone(),
        }
    }
}

/// The prompts, and where they come from.
pub(super) struct Questions {
    pub(super) prompts: Vec<Prompt>,
    pub(super) source: String,
    file: Option<PathBuf>,
}

/// The answers of all models, by whichever way each has them.
pub(super) struct Answering<'a> {
    setup: &'a Setup,
    offline: bool,
    /// Files of ready answers, by the names of the models that stand for them.
    ready: Vec<(&'a str, Vec<AnsweredPrompt>)>,
    pub(super) questions: Questions,
    pub(super) sampling: SamplingSettings,
    /// The engine that samples in place of the models, where there is one.
    engine: Option<SamplingEngine>,
}

impl<'a> Answering<'a> {
    /// Reads all files of ready answers, and decides on the prompts and the number of answers to each.
    pub(super) fn new(
        arguments: &EvalArguments,
        models: &'a [String],
        setup: &'a Setup,
    ) -> Result<Self> {
        let columns = &setup.config.prompts.columns;
        let files = models.iter().filter(|model| is_file_of_answers(Path::new(model)));
        let ready: Vec<(&str, Vec<AnsweredPrompt>)> = files
            .map(|file| Ok((file.as_str(), read_answers(Path::new(file), columns)?)))
            .collect::<CoreResult<_>>()?;
        let questions = Questions::new(setup, ready.first())?;
        let mut sampling = arguments.sampling.over(SamplingSettings {
            samples_per_prompt: setup.config.evaluation.samples_per_prompt,
            ..setup.config.sampling.clone()
        })?;
        if !arguments.sampling.iter().any(|(flag, ..)| *flag == "--samples") {
            let counts = ready.iter().flat_map(|(_, answers)| answers);
            let fewest = counts.map(|prompt| prompt.answers.len()).min().unwrap_or(usize::MAX);
            sampling.samples_per_prompt = sampling.samples_per_prompt.min(fewest);
        }
        let engine = setup.session().sampling_engine()?;
        Ok(Self { setup, offline: arguments.offline, ready, questions, sampling, engine })
    }

    /// The answers of a model.
    pub(super) fn of(&mut self, model: &str) -> Result<Contestant> {
        let name = model.to_owned();
        if let Some((file, answered)) = self.ready.iter().find(|(file, _)| *file == model) {
            let (answers, read_from) = (self.ready_answers(file, answered)?, Some(file.into()));
            return Ok(Contestant { name, answers, read_from });
        }
        let pass = self.pass();
        let Questions { prompts, file, .. } = &self.questions;
        let local = self.setup.find(model, self.offline)?;
        if let Some((file, kept)) = kept_answers(&local.path, &self.setup.config, prompts, &pass)? {
            let answers = kept.into_iter().map(AnsweredPrompt::from).collect();
            return Ok(Contestant { name, answers, read_from: Some(file) });
        }
        local.check_prompts(prompts, file.as_deref(), None)?;
        let (session, weights) = (self.setup.session(), served(local.path.clone()));
        let mut policy = self.setup.load(local)?;
        let work = EngineWork { prompts: &[prompts], pass: &pass, weights_change: false };
        let engine = self.engine.as_mut();
        let sampled = session.sampled_by(engine, policy.as_mut(), &weights, work, |sampler| {
            session.sample_held_out(sampler, prompts, &pass)
        })?;
        let answers = sampled.into_iter().map(AnsweredPrompt::from).collect();
        Ok(Contestant { name, answers, read_from: None })
    }

    fn pass(&self) -> SamplingPass {
        SamplingPass {
            samples_per_prompt: self.sampling.samples_per_prompt,
            parameters: self.sampling.parameters(),
            ..self.setup.session().evaluation_pass()
        }
    }

    fn ready_answers(
        &self,
        file: &str,
        answered: &[AnsweredPrompt],
    ) -> CoreResult<Vec<AnsweredPrompt>> {
        let Questions { prompts, source, .. } = &self.questions;
        let samples = self.sampling.samples_per_prompt;
        let ours = answers_to(prompts, answered, samples).map_err(|(position, count)| {
            let place = match &self.questions.file {
                Some(file) => prompts::place_of(file, position as u64),
                None => format!("prompt {}", position + 1),
            };
            let message = match count {
                0 => format!("does not answer {place} of {source}"),
                _ => format!(
                    "has {} to {place} of {source}, and {samples} are compared",
                    counted(count, "answer")
                ),
            };
            Error::input(file, message).with_hint(match count {
                0 => "add the answer, or leave the prompt out of --prompts".to_owned(),
                _ => format!("add answers, or compare fewer: --samples {count}"),
            })
        })?;
        if answered.len() > ours.len() {
            let others = counted(answered.len() - ours.len(), "prompt");
            tracing::warn!("{file}: its answers to {others} that are not asked are left out");
        }
        Ok(ours)
    }
}

impl Questions {
    /// Those of the settings, or else those that the first file of ready answers answers, or the bundled ones.
    fn new(setup: &Setup, ready: Option<&(&str, Vec<AnsweredPrompt>)>) -> CoreResult<Self> {
        let table = &setup.config.prompts;
        match (&table.held_out, ready) {
            (None, Some((file, answered))) => {
                let numbered = (0..).zip(answered);
                let prompt = |(id, answered): (u64, &AnsweredPrompt)| Prompt {
                    id,
                    messages: answered.messages.clone(),
                };
                let prompts = numbered.map(prompt).collect();
                Ok(Self { prompts, source: (*file).into(), file: None })
            }
            (file, _) => Ok(Self {
                prompts: prompts::held_out(file.as_deref(), &table.columns)?,
                source: prompts::source(file.as_deref()),
                file: file.clone(),
            }),
        }
    }
}

/// Whether a model's name is that of a file of rows.
fn is_file_of_answers(path: &Path) -> bool {
    path.is_file() && TableFormat::of(path).is_ok()
}
