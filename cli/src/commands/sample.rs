//! `sppo sample`: talk to one model, or to several to compare them.

use std::cell::RefCell;
use std::io::{BufRead, IsTerminal};

use serde::Serialize;
use sppo_core::observer::{PluginServices, SilentObserver, StageHost};
use sppo_core::plugin::{
    Conversation, FinishReason, Message, Oracle, Policy, PolicySpec, SamplingParameters, SilentHost,
};
use sppo_core::records::{Prompt, Response, Rollout};
use sppo_core::stages::{self, PreferenceSettings, SamplingPass, SamplingSettings};

use crate::args::SampleArguments;
use crate::failure::{Failure, Result};
use crate::models;
use crate::output;
use crate::settings::{Flags, SettingFlags};
use crate::terminal::{Style, Terminal};

/// Longest answer unless something else is typed, in tokens.
const DEFAULT_MAX_NEW_TOKENS: usize = 256;

impl SettingFlags for SampleArguments {
    fn add_to(&self, flags: &mut Flags) -> sppo_core::Result<()> {
        self.seed.add_to(flags)
    }
}

/// A model and the conversation with it so far.
struct Speaker {
    name: String,
    policy: Box<dyn Policy>,
    conversation: Conversation,
}

/// One answer, as JSON.
#[derive(Serialize)]
struct Answer<'a> {
    model: &'a str,
    prompt: &'a str,
    text: &'a str,
    tokens: usize,
    finish_reason: FinishReason,
    /// Summed log-probability under the model itself, untempered and untruncated.
    log_prob: f64,
}

/// How answers are drawn and shown.
struct Manner<'a> {
    arguments: &'a SampleArguments,
    parameters: SamplingParameters,
    samples: usize,
    best: Option<RefCell<Reranker<'a>>>,
    rule: stages::TokenizationRule,
    seed: u64,
    backend: String,
    style: Style,
}

/// Picks answers by an oracle's word, as the paper's re-ranking at test time does.
struct Reranker<'a> {
    oracle: Box<dyn Oracle>,
    services: PluginServices<'a>,
    name: String,
    settings: PreferenceSettings,
}

impl<'a> Reranker<'a> {
    fn new(services: PluginServices<'a>) -> Result<Self> {
        let config = services.config;
        Ok(Self {
            oracle: models::ready_oracle(services)?,
            services,
            name: format!("oracle `{}`", config.oracle.name),
            settings: config.preference,
        })
    }

    /// Leaves the answer with the best score; the first of several.
    fn keep_best(&mut self, rollout: &mut Rollout) -> Result<()> {
        let comparison = stages::comparison(rollout);
        let host = StageHost::new(&SilentObserver, self.services, 0, 1);
        let judged = stages::judge(self.oracle.as_mut(), &[comparison], &self.settings, &host)
            .map_err(|error| error.from_plugin(&self.name))?;
        let scores = judged.first().map(|judged| judged.scores.iter().enumerate().rev());
        if let Some((best, _)) = scores.and_then(|all| all.max_by(|(_, a), (_, b)| a.total_cmp(b)))
        {
            rollout.responses = vec![rollout.responses.swap_remove(best)];
        }
        Ok(())
    }
}

pub(super) fn sample(arguments: &SampleArguments, terminal: &Terminal) -> Result<()> {
    let flags =
        Flags::of(&[&arguments.settings, &arguments.backend, &arguments.oracle, arguments])?;
    let config = arguments.settings.resolve(flags)?.config;
    let plugins = models::plugins(&config)?;
    let backend = models::backend(&plugins, &config)?;
    let services =
        PluginServices { backend: Some(backend.as_ref()), plugins: &plugins, config: &config };
    let sampling = arguments.sampling.over(SamplingSettings {
        samples_per_prompt: arguments.best_of.map_or(1, |number| number as usize),
        max_new_tokens: DEFAULT_MAX_NEW_TOKENS,
        ..config.sampling.clone()
    })?;
    let manner = Manner {
        arguments,
        parameters: sampling.parameters(),
        samples: sampling.samples_per_prompt,
        best: match arguments.best_of {
            Some(_) => Some(RefCell::new(Reranker::new(services)?)),
            None => None,
        },
        rule: config.training.tokenization,
        seed: config.seed,
        backend: format!("backend `{}`", config.backend.name),
        style: terminal.stdout_style(),
    };

    let default = [config.model.clone()];
    let names = if arguments.model.is_empty() { &default[..] } else { &arguments.model[..] };
    let mut speakers = Vec::with_capacity(names.len());
    for name in names {
        let path = models::find(name, &config, arguments.offline, terminal)?.path;
        models::open(&path)?;
        let policy =
            models::load_policy(backend.as_ref(), &PolicySpec::new(path), &SilentObserver)?;
        speakers.push(Speaker { name: name.clone(), policy, conversation: Vec::new() });
    }
    match &arguments.prompt {
        Some(prompt) => manner.turn(&mut speakers, prompt),
        None => manner.converse(&mut speakers, terminal),
    }
}

impl Manner<'_> {
    /// Answers line after line until standard input ends.
    fn converse(&self, speakers: &mut [Speaker], terminal: &Terminal) -> Result<()> {
        let stdin = std::io::stdin();
        let watched = stdin.is_terminal() && !self.arguments.report.json;
        if watched {
            terminal.note("say something; an empty line starts a new conversation, Ctrl-D ends");
        }
        let mut line = String::new();
        loop {
            if watched {
                output::text(&self.style.bold("> "))?;
            }
            line.clear();
            let read = stdin.lock().read_line(&mut line).map_err(|error| {
                Failure::from(
                    sppo_core::Error::input("standard input", error.to_string())
                        .with_hint("give text in UTF-8"),
                )
            })?;
            match line.trim() {
                _ if read == 0 => return Ok(()),
                "" => speakers.iter_mut().for_each(|speaker| speaker.conversation.clear()),
                prompt => self.turn(speakers, prompt)?,
            }
        }
    }

    /// One prompt, answered by everybody. The conversation goes on with each model's first answer.
    fn turn(&self, speakers: &mut [Speaker], prompt: &str) -> Result<()> {
        let several = speakers.len() > 1;
        for speaker in speakers {
            if let (true, Some(system)) = (speaker.conversation.is_empty(), &self.arguments.system)
            {
                let message = Message { role: "system".into(), content: system.clone().into() };
                speaker.conversation.push(message);
            }
            speaker.conversation.push(Message::user(prompt.to_owned()));
            let answers = self.answers(speaker)?;
            if several && !self.arguments.report.json {
                output::line(&self.style.bold(&format!("--- {}", speaker.name)))?;
            }
            for answer in &answers {
                self.show(&speaker.name, prompt, answer)?;
            }
            if let Some(first) = answers.into_iter().next() {
                speaker.conversation.push(Message::assistant(first.text));
            }
        }
        Ok(())
    }

    fn answers(&self, speaker: &mut Speaker) -> Result<Vec<Response>> {
        let pass = SamplingPass {
            samples_per_prompt: self.samples,
            parameters: &self.parameters,
            rule: self.rule,
            seed: self.seed,
            stream: speaker.conversation.len() as u64,
        };
        let prompt = Prompt { id: 0, messages: speaker.conversation.clone() };
        let mut rollouts = stages::sample(speaker.policy.as_mut(), &[prompt], &pass, &SilentHost)
            .map_err(|error| error.from_plugin(&self.backend))?;
        if let Some(reranker) = &self.best {
            let mut reranker = reranker.borrow_mut();
            rollouts.iter_mut().try_for_each(|rollout| reranker.keep_best(rollout))?;
        }
        Ok(rollouts.into_iter().flat_map(|rollout| rollout.responses).collect())
    }

    fn show(&self, model: &str, prompt: &str, answer: &Response) -> Result<()> {
        if self.arguments.report.json {
            return output::json_line(&Answer {
                model,
                prompt,
                text: &answer.text,
                tokens: answer.tokens.len(),
                finish_reason: answer.finish_reason,
                log_prob: answer.log_probs.iter().map(|value| f64::from(*value)).sum(),
            });
        }
        let ending = match answer.finish_reason {
            FinishReason::Stop => "",
            FinishReason::Length => " [...]",
        };
        output::line(&format!("{}{}\n", answer.text.trim_end(), self.style.dim(ending)))
    }
}
