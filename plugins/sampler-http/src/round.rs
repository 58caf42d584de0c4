//! One call for responses: asks for those that are not on disk, and waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sppo_http_transport::{Dispatcher, Exchange, Malformed, Reply, Request, Snapshot};
use sppo_plugin::{GeneratedResponse, GenerationRequest, PluginError, Progress};

use crate::answers::{AnswerLine, Answers, Key, key};
use crate::protocol::{Ask, Limits, Protocol, Served, seed};

/// Interval at which progress is reported and the caller asked whether to stop.
const TICK: Duration = Duration::from_millis(50);
/// Time that requests under way get, when a run stops, to come back and be kept.
const GRACE: Duration = Duration::from_secs(5);

/// Facts about the work that do not change.
pub(crate) struct Facts {
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) vocabulary_size: usize,
    /// Longest sequence that the policy and all servers hold.
    pub(crate) context: usize,
}

/// Totals over all calls.
#[derive(Default)]
pub(crate) struct Totals {
    tokens: u64,
    /// Answers that an earlier process had got.
    kept_answers: u64,
}

/// A response that is awaited.
pub(crate) struct Job {
    /// Its place among the responses of the call.
    index: usize,
    key: Key,
    max_tokens: usize,
}

/// Reads answers, and has each on disk before it is used.
pub(crate) struct AnswerExchange {
    protocol: Arc<dyn Protocol>,
    facts: Facts,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    served: Arc<Served>,
    answers: Option<Answers>,
}

impl AnswerExchange {
    pub(crate) fn new(protocol: Arc<dyn Protocol>, facts: Facts) -> Self {
        Self { protocol, facts, state: Mutex::default() }
    }

    /// Draws from these weights from now on.
    pub(crate) fn draw_from(&self, served: Served, answers: Answers) {
        *self.state() = State { served: Arc::new(served), answers: Some(answers) };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Exchange for AnswerExchange {
    type Job = Job;
    type Content = GeneratedResponse;

    fn read(
        &self,
        job: &Job,
        body: &[u8],
        _clean: &dyn Fn(&str) -> String,
    ) -> Result<GeneratedResponse, Malformed> {
        let served = Arc::clone(&self.state().served);
        let limits = Limits {
            max_tokens: job.max_tokens,
            stop_tokens: &self.facts.stop_tokens,
            vocabulary_size: self.facts.vocabulary_size,
            version: served.says_version.then_some(served.version.as_str()),
        };
        // Without the lock, which the thread that makes requests takes for each of them.
        let response = self.protocol.response(body, &limits)?;
        let line = AnswerLine::new(&job.key, &response);
        let line = line.map_err(|error| Malformed(error.message))?;
        if let Some(answers) = &mut self.state().answers {
            answers.stage(&line);
        }
        Ok(response)
    }

    fn commit(&self) -> Result<(), PluginError> {
        self.state().answers.as_mut().map_or(Ok(()), Answers::write_staged)
    }

    fn refusal_hint(&self, status: u16, _message: &str) -> Option<String> {
        match status {
            400 | 422 => {
                Some("the server does not take a setting that it is sent: see its version".into())
            }
            404 => Some("see that the server still serves the model, or check `endpoints`".into()),
            _ => None,
        }
    }

    fn unreadable_hint(&self, _message: &str) -> Option<String> {
        Some(
            "see that it is a server of this kind, and its version: docs/rollout-servers.md".into(),
        )
    }

    fn resume_hint(&self) -> String {
        "see to the servers, then give the same command again, `sppo run` with --resume: answers that are here \
         are not asked for again"
            .into()
    }
}

/// A call for responses.
pub(crate) struct Round<'a> {
    protocol: &'a dyn Protocol,
    exchange: &'a AnswerExchange,
    dispatcher: &'a Dispatcher<AnswerExchange>,
    totals: &'a mut Totals,
    progress: &'a dyn Progress,
    /// Tokens of this call so far.
    tokens: u64,
}

impl<'a> Round<'a> {
    pub(crate) fn new(
        protocol: &'a dyn Protocol,
        exchange: &'a AnswerExchange,
        dispatcher: &'a Dispatcher<AnswerExchange>,
        totals: &'a mut Totals,
        progress: &'a dyn Progress,
    ) -> Self {
        Self { protocol, exchange, dispatcher, totals, progress, tokens: 0 }
    }

    /// All responses: those of prompt 0, then of prompt 1, ...
    pub(crate) fn responses(
        &mut self,
        request: &GenerationRequest,
    ) -> Result<Vec<GeneratedResponse>, PluginError> {
        let mut responses = vec![None; request.prompts.len() * request.samples_per_prompt];
        self.dispatcher.begin();
        let asked = self.ask(request, &mut responses);
        let outcome = asked.and_then(|()| self.collect(&mut responses));
        if outcome.is_err() {
            self.dispatcher.abandon(GRACE);
        }
        outcome?;
        let all: Option<Vec<GeneratedResponse>> = responses.into_iter().collect();
        all.ok_or_else(|| PluginError::failed("a response is missing, which is a bug"))
    }

    /// Takes what is on disk, and puts a request for every other response into the queue.
    fn ask(
        &mut self,
        request: &GenerationRequest,
        responses: &mut [Option<GeneratedResponse>],
    ) -> Result<(), PluginError> {
        let Facts { stop_tokens, context, .. } = &self.exchange.facts;
        let served = Arc::clone(&self.exchange.state().served);
        for (number, prompt) in request.prompts.iter().enumerate() {
            let room = context.saturating_sub(prompt.tokens.len());
            if room == 0 {
                let message = format!(
                    "a prompt has {} tokens, and the servers hold {context}",
                    prompt.tokens.len()
                );
                return Err(PluginError::input(message)
                    .with_hint("shorten it, or start the servers with a longer context"));
            }
            let max_tokens = request.sampling.max_new_tokens.min(room);
            for sample in 0..request.samples_per_prompt {
                let ask = Ask {
                    served: &served,
                    prompt: &prompt.tokens,
                    sampling: &request.sampling,
                    max_tokens,
                    seed: seed(request, prompt.id, sample),
                    stop_tokens,
                };
                let body = self.protocol.request(&ask).to_string().into_bytes();
                let key = key(&served.version, &body);
                let index = number * request.samples_per_prompt + sample;
                let known =
                    self.exchange.state().answers.as_ref().and_then(|kept| kept.get(&key).cloned());
                match known {
                    Some(response) => {
                        self.totals.kept_answers += 1;
                        self.take(responses, index, response);
                    }
                    None => {
                        let job = Job { index, key, max_tokens };
                        self.dispatcher.push(Request { body: body.into(), job });
                    }
                }
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        responses: &mut [Option<GeneratedResponse>],
        index: usize,
        response: GeneratedResponse,
    ) {
        self.tokens += response.tokens.len() as u64;
        responses[index] = Some(response);
    }

    /// Waits for all responses.
    fn collect(&mut self, responses: &mut [Option<GeneratedResponse>]) -> Result<(), PluginError> {
        let before = self.totals.tokens;
        loop {
            let snapshot = self.dispatcher.wait(TICK);
            let Snapshot { replies, finished, stopped, counters, in_flight } = snapshot;
            for Reply { job: Job { index, .. }, content } in replies {
                self.take(responses, index, content);
            }
            self.totals.tokens = before + self.tokens;
            self.progress.progress(self.tokens, self.tokens);
            self.progress.metrics(&[
                ("requests", counters.requests as f64),
                ("retries", counters.retries as f64),
                ("in_flight", in_flight as f64),
                ("tokens", self.totals.tokens as f64),
                ("kept_answers", self.totals.kept_answers as f64),
            ]);
            if let Some(error) = stopped {
                return Err(error);
            }
            if finished {
                return Ok(());
            }
            if self.progress.is_cancelled() {
                return Err(PluginError::cancelled());
            }
        }
    }
}
