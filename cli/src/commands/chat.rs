//! `sppo chat`: talk to one model, or to several to compare them.

use std::cell::RefCell;
use std::io::{BufRead, IsTerminal};

use serde::Serialize;
use sppo_core::engine::{EngineWork, SamplingEngine};
use sppo_core::plugin::{Conversation, FinishReason, Message, Oracle, Policy, ServedWeights};
use sppo_core::records::{Prompt, Response, Rollout};
use sppo_core::session::Session;
use sppo_core::stages::{self, SamplingPass, SamplingSettings};

use super::session::{Setup, served};
use crate::args::ChatArguments;
use crate::failure::{Failure, Result};
use crate::output;
use crate::settings::{Flags, SettingFlags};
use crate::terminal::{Style, Terminal};

/// Longest response unless something else is typed, in tokens.
const DEFAULT_MAX_NEW_TOKENS: usize = 256;

impl SettingFlags for ChatArguments {
    fn add_to(&self, flags: &mut Flags) -> sppo_core::Result<()> {
        self.seed.add_to(flags)
    }
}

/// A model and the conversation with it so far.
struct ChatModel {
    name: String,
    policy: Box<dyn Policy>,
    weights: ServedWeights,
    conversation: Conversation,
}

/// One response, as JSON.
#[derive(Serialize)]
struct ResponseLine<'a> {
    model: &'a str,
    prompt: &'a str,
    text: &'a str,
    tokens: usize,
    finish_reason: FinishReason,
    /// Summed log-probability under the model itself, untempered and untruncated.
    log_prob: f64,
}

/// A conversation with some models: how they respond, and how that is shown.
struct Chat<'a> {
    arguments: &'a ChatArguments,
    session: Session<'a>,
    pass: SamplingPass,
    /// Picks the best of all sampled responses, as the paper's re-ranking at test time does.
    reranker: Option<RefCell<Box<dyn Oracle>>>,
    /// The engine that responds in place of the models, where there is one.
    engine: RefCell<Option<SamplingEngine>>,
    style: Style,
}

pub(super) fn chat(arguments: &ChatArguments, terminal: &Terminal) -> Result<()> {
    let ChatArguments { settings, backend, oracle, sampler, .. } = arguments;
    let flags = Flags::of(&[settings, backend, oracle, sampler, arguments])?;
    let setup = Setup::new(arguments.settings.resolve(flags)?.config, terminal)?;
    let session = setup.silent_session();
    let sampling = arguments.sampling.over(SamplingSettings {
        samples_per_prompt: arguments.best_of.map_or(1, |number| number as usize),
        max_new_tokens: DEFAULT_MAX_NEW_TOKENS,
        ..setup.config.sampling.clone()
    })?;
    let reranker = match arguments.best_of {
        Some(_) => {
            let mut oracle = session.oracle()?;
            session.try_oracle(oracle.as_mut())?;
            Some(RefCell::new(oracle))
        }
        None => None,
    };
    let chat = Chat {
        arguments,
        session,
        pass: SamplingPass {
            samples_per_prompt: sampling.samples_per_prompt,
            parameters: sampling.parameters(),
            ..session.sampling_pass(0)
        },
        reranker,
        engine: RefCell::new(session.sampling_engine()?),
        style: terminal.stdout_style(),
    };

    let default = [setup.config.model.clone()];
    let names = if arguments.model.is_empty() { &default[..] } else { &arguments.model[..] };
    let mut models = Vec::with_capacity(names.len());
    for name in names {
        let path = setup.find(name, arguments.offline)?.path;
        let policy = session.load(&path)?;
        let (name, weights) = (name.clone(), served(path));
        models.push(ChatModel { name, policy, weights, conversation: Vec::new() });
    }
    match &arguments.prompt {
        Some(prompt) => chat.turn(&mut models, prompt),
        None => chat.converse(&mut models, terminal),
    }
}

impl Chat<'_> {
    /// Responds to line after line until standard input ends.
    fn converse(&self, models: &mut [ChatModel], terminal: &Terminal) -> Result<()> {
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
                "" => models.iter_mut().for_each(|model| model.conversation.clear()),
                prompt => self.turn(models, prompt)?,
            }
        }
    }

    /// One prompt, answered by everybody. The conversation goes on with each model's first response.
    fn turn(&self, models: &mut [ChatModel], prompt: &str) -> Result<()> {
        let several = models.len() > 1;
        for model in models {
            if let (true, Some(system)) = (model.conversation.is_empty(), &self.arguments.system) {
                let message = Message { role: "system".into(), content: system.clone().into() };
                model.conversation.push(message);
            }
            model.conversation.push(Message::user(prompt.to_owned()));
            let responses = self.respond(model)?;
            if several && !self.arguments.report.json {
                output::line(&self.style.bold(&format!("--- {}", model.name)))?;
            }
            for response in &responses {
                self.show(&model.name, prompt, response)?;
            }
            if let Some(first) = responses.into_iter().next() {
                model.conversation.push(Message::assistant(first.text));
            }
        }
        Ok(())
    }

    fn respond(&self, model: &mut ChatModel) -> Result<Vec<Response>> {
        let stream = model.conversation.len() as u64;
        let pass = SamplingPass { stream, ..self.pass.clone() };
        let prompt = Prompt { id: 0, messages: model.conversation.clone() };
        let prompts = [prompt];
        let work = EngineWork { prompts: &[&prompts], pass: &pass, weights_change: false };
        let mut engine = self.engine.borrow_mut();
        let policy = model.policy.as_mut();
        let mut rollouts =
            self.session.sampled_by(engine.as_mut(), policy, &model.weights, work, |sampler| {
                self.session.sample(sampler, &prompts, &pass)
            })?;
        if let Some(oracle) = &self.reranker {
            let mut oracle = oracle.borrow_mut();
            for rollout in &mut rollouts {
                self.keep_best(rollout, oracle.as_mut())?;
            }
        }
        Ok(rollouts.into_iter().flat_map(|rollout| rollout.responses).collect())
    }

    /// Leaves the response with the best score; the first of several.
    fn keep_best(&self, rollout: &mut Rollout, oracle: &mut dyn Oracle) -> Result<()> {
        let judged = self.session.judge(oracle, &[stages::comparison(rollout)])?;
        let scores = judged.first().map(|found| found.preferences.scores.iter().enumerate().rev());
        if let Some((best, _)) = scores.and_then(|all| all.max_by(|(_, a), (_, b)| a.total_cmp(b)))
        {
            rollout.responses = vec![rollout.responses.swap_remove(best)];
        }
        Ok(())
    }

    fn show(&self, model: &str, prompt: &str, response: &Response) -> Result<()> {
        if self.arguments.report.json {
            return output::json_line(&ResponseLine {
                model,
                prompt,
                text: &response.text,
                tokens: response.tokens.len(),
                finish_reason: response.finish_reason,
                log_prob: response.log_probs.iter().map(|value| f64::from(*value)).sum(),
            });
        }
        let ending = match response.finish_reason {
            FinishReason::Stop => "",
            FinishReason::Length => " [...]",
        };
        output::line(&format!("{}{}\n", response.text.trim_end(), self.style.dim(ending)))
    }
}
