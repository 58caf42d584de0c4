//! Services as an oracle.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use sppo_plugin::{Comparison, Oracle, Plugin, PluginError, Progress, Services, Verdict};

use crate::address::Address;
use crate::cache::{Cache, Key, KeyMaker};
use crate::config::{HttpConfig, Orders, ProtocolName};
use crate::protocol::{self, Invalid, Part, Protocol, Question};
use crate::round::{New, Round};
use crate::transport::{Client, Counters, Dispatcher, Job, Snapshot};

/// How often the user is asked and told.
const TICK: Duration = Duration::from_millis(50);
/// When a run stops, what was asked already gets this long to come back and be remembered.
const GRACE: Duration = Duration::from_secs(5);
/// What was judged is made to survive a loss of power this often.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Connections are cheap, but not free.
const MAX_CONCURRENCY: usize = 1024;

/// Judges answers by asking services over HTTP.
pub struct HttpOracle {
    config: HttpConfig,
    protocol: Arc<dyn Protocol>,
    keys: KeyMaker,
    identity: String,
    addresses: Vec<Address>,
    /// Held until the first judgment.
    client: Option<Client>,
    service: Option<Service>,
    totals: Totals,
}

/// What is there from the first judgment on.
struct Service {
    cache: Arc<Mutex<Cache>>,
    dispatcher: Dispatcher,
}

/// Counted here; the rest is counted by the dispatcher.
#[derive(Default)]
struct Totals {
    questions: u64,
    invalid: u64,
    cache_hits: u64,
    undecided_pairs: u64,
}

impl Plugin for HttpOracle {
    type Config = HttpConfig;
    const NAME: &'static str = "http";
    const SUMMARY: &'static str = "Judges and reward models over HTTP: OpenAI-compatible, vLLM, \
                                   text-embeddings-inference, OpenRLHF, or a service of your own";

    fn create(config: HttpConfig) -> Result<Self, PluginError> {
        check(&config)?;
        let protocol: Arc<dyn Protocol> = Arc::from(protocol::create(&config)?);
        let addresses = config
            .endpoints
            .iter()
            .map(|endpoint| Address::parse(endpoint, protocol.path()))
            .collect::<Result<Vec<_>, _>>()?;
        let identity = identity(&config, &addresses);
        let keys = KeyMaker::new(&judge(&config, &identity)?);
        let client = Client::new(&config, &addresses)?;
        Ok(Self {
            protocol,
            keys,
            identity,
            addresses,
            client: Some(client),
            service: None,
            totals: Totals::default(),
            config,
        })
    }
}

impl Oracle for HttpOracle {
    fn prepare(
        &mut self,
        _services: &dyn Services,
        _progress: &dyn Progress,
    ) -> Result<(), PluginError> {
        match &self.client {
            // What is asked may be remembered.
            Some(client) if !Cache::has_answered(&self.config.cache, &self.keys) => {
                client.require_service()
            }
            _ => Ok(()),
        }
    }

    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, PluginError> {
        self.start()?;
        let service = self.service.as_ref().ok_or_else(|| PluginError::failed("not started"))?;
        let mut call = Call {
            config: &self.config,
            protocol: self.protocol.as_ref(),
            keys: &self.keys,
            service,
            totals: &mut self.totals,
            progress,
            round: Round::default(),
            comparisons: comparisons.len() as u64,
            started: Instant::now(),
            before: None,
        };
        service.dispatcher.begin();
        let outcome = call.ask(comparisons).and_then(|()| call.collect());
        if outcome.is_err() {
            service.dispatcher.abandon(GRACE);
        }
        let synced = call.sync(Duration::ZERO);
        outcome.and(synced)?;
        let verdicts = call.round.verdicts(call.config.judge.undecided);
        call.count_undecided();
        verdicts
    }

    fn identity(&self) -> Option<String> {
        Some(self.identity.clone())
    }

    fn expected_requests(&self, comparisons: u64, candidates: u64) -> Option<u64> {
        let questions = match (self.protocol.compares(), self.config.orders) {
            (false, _) => candidates,
            (true, Orders::Both) => candidates * candidates.saturating_sub(1),
            (true, Orders::One) => candidates * candidates.saturating_sub(1) / 2,
        };
        let together = questions_per_request(&self.config, self.protocol.as_ref()) as u64;
        Some(match self.protocol.shares_prompt() {
            true => comparisons * questions.div_ceil(together),
            false => (comparisons * questions).div_ceil(together),
        })
    }
}

sppo_plugin::export_oracle!(HttpOracle);

impl HttpOracle {
    /// Opens the cache. Not before it is needed: a plan leaves nothing behind.
    fn start(&mut self) -> Result<(), PluginError> {
        if self.service.is_none() {
            let cache = Cache::open(&self.config.cache, &self.keys, &self.identity)?;
            let cache = Arc::new(Mutex::new(cache));
            let client = self.client.take();
            let client = client.ok_or_else(|| PluginError::failed("it could not start before"))?;
            let dispatcher = Dispatcher::new(
                &self.config,
                self.addresses.clone(),
                Arc::clone(&self.protocol),
                client,
                Arc::clone(&cache),
            )?;
            self.service = Some(Service { cache, dispatcher });
        }
        Ok(())
    }
}

/// One call of [`Oracle::preferences`].
struct Call<'a> {
    config: &'a HttpConfig,
    protocol: &'a dyn Protocol,
    keys: &'a KeyMaker,
    service: &'a Service,
    totals: &'a mut Totals,
    progress: &'a dyn Progress,
    round: Round,
    comparisons: u64,
    started: Instant,
    /// The counters when the call began.
    before: Option<Counters>,
}

/// Questions that will share a request.
#[derive(Default)]
struct Batch {
    parts: Vec<Part>,
    questions: Vec<(usize, Key)>,
}

impl Call<'_> {
    /// Puts every question that is neither known nor asked already into the queue.
    fn ask(&mut self, comparisons: &[Comparison<'_>]) -> Result<(), PluginError> {
        let compares = self.protocol.compares();
        let together = questions_per_request(self.config, self.protocol);
        let mut batch = Batch::default();
        for comparison in comparisons {
            if self.progress.is_cancelled() {
                return Err(PluginError::cancelled());
            }
            self.sync(SYNC_INTERVAL)?;
            let mut parts = Vec::new();
            let mut questions: Vec<(Question<'_>, Key)> = Vec::new();
            for question in Round::questions(comparison, compares, self.config.orders) {
                let part = self.protocol.part(question)?;
                questions.push((question, self.keys.key(&part)));
                parts.push(part);
            }
            let known = {
                let cache = self.cache();
                questions.iter().map(|(_, key)| cache.get(key)).collect()
            };
            let new = self.round.add(comparison, compares, &questions, known);
            self.totals.cache_hits += new.iter().filter(|new| new.is_none()).count() as u64;
            for ((part, (_, key)), new) in parts.into_iter().zip(questions).zip(new) {
                let Some(New(number)) = new else { continue };
                let other = batch.parts.first().is_some_and(|first| first.shared != part.shared);
                if other || batch.parts.len() >= together {
                    self.send(std::mem::take(&mut batch))?;
                }
                batch.parts.push(part);
                batch.questions.push((number, key));
            }
        }
        self.totals.questions += self.round.question_count();
        if batch.parts.is_empty() { Ok(()) } else { self.send(batch) }
    }

    fn send(&self, batch: Batch) -> Result<(), PluginError> {
        let mut body = Map::new();
        if let Some(model) = &self.config.model {
            body.insert("model".into(), json!(model));
        }
        body.extend(self.protocol.body(batch.parts));
        body.extend(self.config.extra.clone());
        let body =
            serde_json::to_vec(&body).map_err(|error| PluginError::failed(error.to_string()))?;
        self.service.dispatcher.push(Job { body: body.into(), questions: batch.questions });
        Ok(())
    }

    /// Waits for all answers.
    fn collect(&mut self) -> Result<(), PluginError> {
        loop {
            let snapshot = self.service.dispatcher.wait(TICK);
            for settled in &snapshot.settled {
                if let Err(Invalid(said)) = &settled.judgment {
                    self.totals.invalid += 1;
                    self.check_share_of_invalid(said)?;
                }
                self.round.settle(settled.question, settled.judgment.clone());
            }
            self.report(&snapshot);
            self.sync(SYNC_INTERVAL)?;
            if let Some(error) = snapshot.stopped {
                return Err(error);
            }
            if snapshot.finished {
                return Ok(());
            }
            if self.progress.is_cancelled() {
                return Err(PluginError::cancelled());
            }
        }
    }

    fn check_share_of_invalid(&self, said: &str) -> Result<(), PluginError> {
        let Totals { questions, invalid, .. } = *self.totals;
        let share = self.config.judge.max_invalid_share;
        if invalid as f64 <= (share * questions as f64).ceil() {
            return Ok(());
        }
        Err(PluginError::failed(format!(
            "{invalid} of {questions} verdicts are invalid, more than judge.max_invalid_share allows; \
             the last one: {said}"
        ))
        .with_hint(
            "make the judge answer with a label alone (`judge.template`, `judge.max_tokens`), or take \
             a better judge",
        ))
    }

    fn report(&mut self, snapshot: &Snapshot) {
        self.progress.progress(self.round.completed(), self.comparisons);
        let counters = snapshot.counters;
        let before = *self.before.get_or_insert(counters);
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        self.progress.metrics(&[
            ("requests", counters.requests as f64),
            ("requests_per_second", rate(counters.requests, before.requests)),
            ("in_flight", snapshot.in_flight as f64),
            ("retries", counters.retries as f64),
            ("retries_per_second", rate(counters.retries, before.retries)),
            ("judgments", counters.judgments as f64),
            ("cache_hits", self.totals.cache_hits as f64),
            ("invalid_verdicts", counters.invalid_verdicts as f64),
            ("undecided_pairs", self.totals.undecided_pairs as f64),
            ("prompt_tokens", counters.prompt_tokens as f64),
            ("completion_tokens", counters.completion_tokens as f64),
        ]);
    }

    fn count_undecided(&mut self) {
        let ties = self.round.undecided_pairs;
        if ties > 0 {
            self.totals.undecided_pairs += ties;
            self.progress.metrics(&[("undecided_pairs", self.totals.undecided_pairs as f64)]);
            tracing::warn!("{ties} pairs count as ties: the judge gave no valid verdict on them");
        }
    }

    /// Makes what was judged survive a loss of power, if the last time is so long ago.
    fn sync(&self, interval: Duration) -> Result<(), PluginError> {
        // The cache is free for others in the meantime.
        let Some(unsynced) = self.cache().take_unsynced(interval) else { return Ok(()) };
        unsynced.sync().inspect_err(|_| self.cache().still_unsynced())
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.service.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(config: &HttpConfig) -> Result<(), PluginError> {
    if config.endpoints.is_empty() {
        return Err(PluginError::configuration("endpoints: it is not said where the service is")
            .with_hint(
                "for instance `--set 'oracle.http.endpoints=[\"http://localhost:8000\"]'`, and \
                 `oracle.http.protocol` for what it speaks",
            ));
    }
    if config.protocol == ProtocolName::OpenaiJudge && config.model.is_none() {
        return Err(PluginError::configuration("model: it is not said which model judges")
            .with_hint("give the name that the service knows it by"));
    }
    let concurrency = &config.concurrency;
    if !(1..=MAX_CONCURRENCY).contains(&concurrency.max) || concurrency.start == 0 {
        return Err(PluginError::configuration(format!(
            "concurrency: `max` must be from 1 to {MAX_CONCURRENCY}, `start` at least 1"
        )));
    }
    let retries = &config.retries;
    let durations =
        [retries.first_delay_seconds, retries.longest_delay_seconds, retries.give_up_after_seconds];
    if retries.max_attempts == 0 || !durations.iter().all(|value| (0.0..1e6).contains(value)) {
        return Err(PluginError::configuration(
            "retries: `max_attempts` must be at least 1, and the rest seconds from 0",
        ));
    }
    Ok(())
}

fn questions_per_request(config: &HttpConfig, protocol: &dyn Protocol) -> usize {
    match config.questions_per_request {
        _ if !protocol.takes_several() => 1,
        0 => protocol.questions_per_request(),
        wanted => wanted,
    }
}

/// Who judges, in words.
fn identity(config: &HttpConfig, addresses: &[Address]) -> String {
    if let Some(identity) = &config.identity {
        return identity.clone();
    }
    let mut places: Vec<&str> = addresses.iter().map(|address| address.shown.as_str()).collect();
    places.sort_unstable();
    let model = config.model.as_ref().map_or(String::new(), |model| format!(" {model}"));
    format!("{}{model} at {}", config.protocol.as_str(), places.join(", "))
}

/// Everything that judgments depend on besides the questions.
fn judge(config: &HttpConfig, identity: &str) -> Result<Value, PluginError> {
    let as_value = |value: serde_json::Result<Value>| {
        value.map_err(|error| PluginError::configuration(error.to_string()))
    };
    let settings = match config.protocol {
        ProtocolName::OpenaiJudge => {
            let mut judge = as_value(serde_json::to_value(&config.judge))?;
            if let Value::Object(fields) = &mut judge {
                // What happens without a verdict is no part of verdicts.
                for field in ["invalid_attempts", "max_invalid_share", "undecided"] {
                    fields.shift_remove(field);
                }
            }
            judge
        }
        _ => as_value(serde_json::to_value(&config.scoring))?,
    };
    Ok(json!({
        "protocol": config.protocol.as_str(),
        "identity": identity,
        "model": config.model,
        "settings": settings,
        "extra": config.extra,
    }))
}
