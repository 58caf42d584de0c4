//! Workers that take requests from a queue, and put back those that failed.
//!
//! The threads live as long as the dispatcher, and so do the connections and what is known of the
//! endpoints. Blocking requests cannot be broken off: whoever stops early leaves them to end by
//! themselves, and what they still bring is remembered.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sppo_core::plugin::PluginError;

use super::backoff;
use super::client::{Client, Failure, FailureKind};
use super::fleet::{Choice, Fleet, News};
use crate::address::Address;
use crate::cache::{Cache, Key};
use crate::config::{HttpConfig, RetryConfig};
use crate::judgment::Judgment;
use crate::protocol::{Invalid, Protocol, Reply};

/// A thread's stack: handshakes and parsers fit many times.
const STACK_BYTES: usize = 512 << 10;

const GO_ON: &str = "see what is wrong with the service, then give the same command again (`sppo run` \
                     with `--resume`): no judgment that was made so far is asked for again";

/// A request: its body, and what is asked in it.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) body: Vec<u8>,
    /// The number of each question among those of the round, and its key.
    pub(crate) questions: Vec<(usize, Key)>,
}

/// A question that was answered, or definitely not.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) question: usize,
    pub(crate) judgment: Result<Judgment, Invalid>,
}

/// Totals since the dispatcher was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) requests: u64,
    pub(crate) retries: u64,
    pub(crate) judgments: u64,
    pub(crate) invalid_verdicts: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
}

/// How a round is getting on.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// What was settled since the last look.
    pub(crate) settled: Vec<Settled>,
    /// Whether nothing is left to do.
    pub(crate) finished: bool,
    /// Why the round cannot be finished.
    pub(crate) stopped: Option<PluginError>,
    pub(crate) counters: Counters,
    /// Requests under way.
    pub(crate) in_flight: usize,
}

/// Sends requests until all are answered.
pub(crate) struct Dispatcher {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    protocol: Arc<dyn Protocol>,
    cache: Arc<Mutex<Cache>>,
    retries: RetryConfig,
    invalid_attempts: u32,
    max_workers: usize,
    state: Mutex<State>,
    /// There is something to do for workers.
    work: Condvar,
    /// There is something to know for whoever waits.
    outcome: Condvar,
}

struct State {
    round: u64,
    ready: VecDeque<Task>,
    delayed: BinaryHeap<Delayed>,
    /// Jobs of this round that are not settled.
    unfinished: usize,
    in_flight: usize,
    settled: Vec<Settled>,
    stopped: Option<PluginError>,
    counters: Counters,
    fleet: Fleet,
    workers: usize,
    idle: usize,
    closing: bool,
}

struct Task {
    job: Job,
    round: u64,
    failures: u32,
    invalid: u32,
    /// The endpoint that failed last.
    avoid: Option<usize>,
}

struct Delayed {
    until: Instant,
    task: Task,
}

/// What a worker does next.
enum Next {
    Send { task: Task, endpoint: usize, is_probe: bool, address: Address },
    Wait(Option<Instant>),
    Over,
}

enum Outcome {
    Reply(Reply),
    Failure(Failure),
    /// Nothing that another attempt would mend.
    Broken(PluginError),
}

impl Dispatcher {
    pub(crate) fn new(
        config: &HttpConfig,
        addresses: Vec<Address>,
        protocol: Arc<dyn Protocol>,
        client: Client,
        cache: Arc<Mutex<Cache>>,
    ) -> Self {
        let max_workers = config.concurrency.max.max(1) * addresses.len().max(1);
        let state = State {
            round: 0,
            ready: VecDeque::new(),
            delayed: BinaryHeap::new(),
            unfinished: 0,
            in_flight: 0,
            settled: Vec::new(),
            stopped: None,
            counters: Counters::default(),
            fleet: Fleet::new(addresses, &config.concurrency),
            workers: 0,
            idle: 0,
            closing: false,
        };
        let shared = Shared {
            client,
            protocol,
            cache,
            retries: config.retries.clone(),
            invalid_attempts: config.judge.invalid_attempts,
            max_workers,
            state: Mutex::new(state),
            work: Condvar::new(),
            outcome: Condvar::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Begins a round: what an earlier one left behind is dropped.
    pub(crate) fn begin(&self) {
        let mut state = self.shared.lock();
        state.round += 1;
        state.clear();
        state.settled.clear();
        state.stopped = None;
        state.fleet.forget_outage();
    }

    /// Sends this as soon as somebody can take it.
    pub(crate) fn push(&self, job: Job) -> Result<(), PluginError> {
        let mut state = self.shared.lock();
        let round = state.round;
        state.unfinished += 1;
        state.ready.push_back(Task { job, round, failures: 0, invalid: 0, avoid: None });
        if state.workers < self.shared.max_workers.min(state.unfinished) {
            let shared = Arc::clone(&self.shared);
            let name = "sppo-oracle-http".to_owned();
            let spawned = thread::Builder::new()
                .name(name)
                .stack_size(STACK_BYTES)
                .spawn(move || shared.work());
            match spawned {
                Ok(_) => state.workers += 1,
                Err(_) if state.workers > 0 => {}
                Err(error) => {
                    return Err(PluginError::failed(format!("cannot start a thread: {error}")));
                }
            }
        }
        if state.idle > 0 {
            self.shared.work.notify_one();
        }
        Ok(())
    }

    /// Waits until the round is finished, but no longer than `patience`.
    pub(crate) fn wait(&self, patience: Duration) -> Snapshot {
        let state = self.shared.lock();
        let going_on = |state: &mut State| state.unfinished > 0 && state.stopped.is_none();
        let waited = self.shared.outcome.wait_timeout_while(state, patience, going_on);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.unfinished > 0 && state.stopped.is_none() {
            state.give_up_if_hopeless(&self.shared.retries);
        }
        Snapshot {
            settled: std::mem::take(&mut state.settled),
            finished: state.unfinished == 0,
            stopped: state.stopped.clone(),
            counters: state.counters,
            in_flight: state.in_flight,
        }
    }

    /// Sends nothing more, and gives what is under way some time to come back.
    pub(crate) fn abandon(&self, grace: Duration) {
        let mut state = self.shared.lock();
        state.clear();
        let busy = |state: &mut State| state.in_flight > 0;
        // Whether it came back or not, there is nothing else to do about it.
        let _ = self.shared.outcome.wait_timeout_while(state, grace, busy);
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closing = true;
        state.clear();
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker's life.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            match state.next(Instant::now()) {
                Next::Over => return,
                Next::Wait(until) => state = self.rest(state, until),
                Next::Send { task, endpoint, is_probe, address } => {
                    if state.has_room() {
                        self.work.notify_one();
                    }
                    drop(state);
                    let sent = Instant::now();
                    let outcome = self.attempt(&task.job, endpoint, &address);
                    state = self.lock();
                    self.settle(&mut state, task, endpoint, is_probe, sent, outcome);
                    if state.unfinished == 0 || state.stopped.is_some() || state.in_flight == 0 {
                        self.outcome.notify_all();
                    }
                }
            }
        }
    }

    fn rest<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        until: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        state.idle += 1;
        let mut state = match until {
            None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                let patience = until.saturating_duration_since(Instant::now());
                let waited = self.work.wait_timeout(state, patience);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.idle -= 1;
        state
    }

    /// One attempt. What it brings is in the cache when this returns.
    fn attempt(&self, job: &Job, endpoint: usize, address: &Address) -> Outcome {
        let attempt = || {
            let body = match self.client.post(endpoint, address, &job.body) {
                Ok(body) => body,
                Err(failure) => return Outcome::Failure(failure),
            };
            let reply = match self.protocol.read(&body, job.questions.len()) {
                Ok(reply) => reply,
                Err(error) => {
                    return Outcome::Failure(self.client.malformed(&error.to_string(), &body));
                }
            };
            let pairs = job.questions.iter().zip(&reply.judgments);
            let judgments: Vec<(Key, Judgment)> = pairs
                .filter_map(|((_, key), judgment)| Some((*key, *judgment.as_ref().ok()?)))
                .collect();
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            match cache.append(&judgments) {
                Ok(()) => Outcome::Reply(reply),
                Err(error) => Outcome::Broken(error),
            }
        };
        // A worker that vanished would leave the others waiting for ever.
        catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(|_| {
            Outcome::Broken(PluginError::failed("a worker panicked, which is a bug"))
        })
    }

    /// Draws the consequences of an attempt.
    fn settle(
        &self,
        state: &mut State,
        task: Task,
        endpoint: usize,
        is_probe: bool,
        sent: Instant,
        outcome: Outcome,
    ) {
        let now = Instant::now();
        state.in_flight -= 1;
        let is_current = task.round == state.round;
        match outcome {
            Outcome::Reply(reply) => {
                tell(state.fleet.succeeded(endpoint));
                state.counters.prompt_tokens += reply.prompt_tokens;
                state.counters.completion_tokens += reply.completion_tokens;
                let is_invalid = reply.judgments.iter().any(Result::is_err);
                if is_invalid && is_current && task.invalid < self.invalid_attempts {
                    state.counters.retries += 1;
                    state.ready.push_back(Task { invalid: task.invalid + 1, ..task });
                } else {
                    self.record(state, task, reply, is_current);
                }
            }
            Outcome::Failure(failure) => {
                if failure.kind == FailureKind::Transient || failure.kind == FailureKind::Overloaded
                {
                    tell(state.fleet.failed(endpoint, &failure, sent, now));
                } else {
                    tell(state.fleet.succeeded(endpoint));
                }
                if is_current && state.stopped.is_none() {
                    self.try_again(state, task, endpoint, is_probe, failure, now);
                }
            }
            Outcome::Broken(error) => {
                tell(state.fleet.succeeded(endpoint));
                if is_current {
                    state.stopped.get_or_insert(error);
                }
            }
        }
    }

    fn record(&self, state: &mut State, task: Task, reply: Reply, is_current: bool) {
        for ((question, _), judgment) in task.job.questions.into_iter().zip(reply.judgments) {
            match &judgment {
                Ok(_) => state.counters.judgments += 1,
                Err(_) => state.counters.invalid_verdicts += 1,
            }
            if is_current {
                let judgment = judgment.map_err(|Invalid(said)| Invalid(self.client.clean(&said)));
                state.settled.push(Settled { question, judgment });
            }
        }
        if is_current {
            state.unfinished = state.unfinished.saturating_sub(1);
        }
    }

    fn try_again(
        &self,
        state: &mut State,
        mut task: Task,
        endpoint: usize,
        is_probe: bool,
        failure: Failure,
        now: Instant,
    ) {
        let place = &state.fleet.address(endpoint).shown;
        if let FailureKind::Refused(status) = failure.kind {
            let message = format!("{place} refused the request: {}", failure.message);
            let hint = hint_for(status, &failure.message);
            state.stopped = Some(PluginError::failed(message).with_hint(hint));
            return;
        }
        let longest = Duration::from_secs_f64(self.retries.give_up_after_seconds);
        if let Some(wait) = failure.retry_after.filter(|wait| *wait > longest) {
            let seconds = wait.as_secs();
            let message = format!(
                "{place} asks to wait {seconds} seconds, longer than \
                         retries.give_up_after_seconds: {}",
                failure.message
            );
            state.stopped = Some(PluginError::failed(message).with_hint(GO_ON));
            return;
        }
        // Whether an endpoint is back is not the fault of the request that tries.
        task.failures += u32::from(!is_probe);
        if task.failures >= self.retries.max_attempts {
            let message = format!(
                "a request failed {} times, the last time at {place}: {}",
                task.failures, failure.message
            );
            state.stopped = Some(PluginError::failed(message).with_hint(GO_ON));
            return;
        }
        tracing::debug!("{place}: {}; trying again", failure.message);
        task.avoid = Some(endpoint);
        state.counters.retries += 1;
        let wait = backoff::delay(&self.retries, task.failures.max(1));
        state.delayed.push(Delayed { until: now + wait, task });
    }
}

impl State {
    fn next(&mut self, now: Instant) -> Next {
        if self.closing {
            return Next::Over;
        }
        if self.stopped.is_some() {
            return Next::Wait(None);
        }
        while self.delayed.peek().is_some_and(|delayed| delayed.until <= now) {
            if let Some(delayed) = self.delayed.pop() {
                self.ready.push_front(delayed.task);
            }
        }
        let next_delayed = self.delayed.peek().map(|delayed| delayed.until);
        let Some(task) = self.ready.front() else { return Next::Wait(next_delayed) };
        match self.fleet.choose(task.avoid, now) {
            Choice::Endpoint { index, is_probe } => match self.ready.pop_front() {
                Some(task) => {
                    self.in_flight += 1;
                    self.counters.requests += 1;
                    let address = self.fleet.address(index).clone();
                    Next::Send { task, endpoint: index, is_probe, address }
                }
                None => Next::Wait(next_delayed),
            },
            Choice::NobodyUntil(moment) => {
                Next::Wait(Some(next_delayed.map_or(moment, |other| other.min(moment))))
            }
            Choice::Nobody => Next::Wait(next_delayed),
        }
    }

    /// Whether somebody who rests could be of use.
    fn has_room(&self) -> bool {
        self.idle > 0 && !self.ready.is_empty() && self.in_flight < self.fleet.limit()
    }

    fn clear(&mut self) {
        self.ready.clear();
        self.delayed.clear();
        self.unfinished = 0;
    }

    fn give_up_if_hopeless(&mut self, retries: &RetryConfig) {
        if let Some((lasted, failure)) = self.fleet.outage(Instant::now())
            && lasted.as_secs_f64() >= retries.give_up_after_seconds
        {
            let message =
                format!("nothing has succeeded for {:.0} seconds; {failure}", lasted.as_secs_f64());
            self.stopped = Some(PluginError::failed(message).with_hint(GO_ON));
        }
    }
}

fn tell(news: Option<News>) {
    match news {
        Some(News::Dropped(failure)) => {
            tracing::warn!("{failure}; left alone for a while, then tried again");
        }
        Some(News::Back(place)) => tracing::warn!("{place} answers again"),
        None => {}
    }
}

fn hint_for(status: u16, message: &str) -> String {
    let lower = message.to_lowercase();
    match status {
        _ if lower.contains("logprob") => {
            "set `judge.log_probs = false`: this model does not give log-probabilities".into()
        }
        _ if lower.contains("max_completion_tokens") => {
            "set `judge.max_tokens_field = \"max_completion_tokens\"`".into()
        }
        300..=399 => "give the address that it redirects to in `endpoints`".into(),
        401 | 403 => "check the key: `api_key_env` or `api_key_file`, and `api_key_header`".into(),
        404 | 405 => "check `endpoints`, `protocol` and `model`".into(),
        413 => "lower `questions_per_request`, or shorten the answers".into(),
        _ => {
            "trying again would not help: see what the service says, and change the settings".into()
        }
    }
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.until == other.until
    }
}

impl Eq for Delayed {}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Delayed {
    /// The earliest is the greatest, which a heap gives out first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.until.cmp(&self.until)
    }
}
