//! Requests that wait, and what follows from each attempt.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use sppo_plugin::PluginError;

use super::backoff;
use super::client::{Failure, FailureKind};
use super::fleet::{Choice, Fleet, News};
use crate::address::Address;
use crate::cache::Key;
use crate::config::{HttpConfig, RetryConfig};
use crate::judgment::Judgment;
use crate::protocol::{Invalid, Reply};

const GO_ON: &str = "see what is wrong with the service, then give the same command again (`sppo run` \
                     with `--resume`): no judgment that was made so far is asked for again";

/// A request: its body, and what is asked in it.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) body: Bytes,
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

/// The requests of a round, and how the endpoints are doing.
pub(super) struct Queue {
    retries: RetryConfig,
    invalid_attempts: u32,
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

/// What to do next.
pub(super) enum Next {
    Send {
        attempt: Attempt,
        /// Whether another could be sent too.
        has_room: bool,
    },
    Wait(Option<Instant>),
}

/// A request on its way. It must be given back to [`Queue::settle`].
pub(super) struct Attempt {
    task: Task,
    pub(super) endpoint: usize,
    is_probe: bool,
    sent: Instant,
}

impl Attempt {
    pub(super) fn job(&self) -> &Job {
        &self.task.job
    }
}

/// What became of an attempt.
pub(super) enum Outcome {
    Reply(Reply),
    Failure(Failure),
    /// Nothing that another attempt would mend.
    Broken(PluginError),
}

impl Queue {
    pub(super) fn new(config: &HttpConfig, addresses: Vec<Address>) -> Self {
        Self {
            retries: config.retries.clone(),
            invalid_attempts: config.judge.invalid_attempts,
            round: 0,
            ready: VecDeque::new(),
            delayed: BinaryHeap::new(),
            unfinished: 0,
            in_flight: 0,
            settled: Vec::new(),
            stopped: None,
            counters: Counters::default(),
            fleet: Fleet::new(addresses, &config.concurrency),
        }
    }

    /// Begins a round.
    pub(super) fn begin(&mut self) {
        self.abandon();
        self.settled.clear();
        self.stopped = None;
        self.fleet.forget_outage();
    }

    /// Ends the round: what is under way is settled and not tried again, the rest is dropped.
    pub(super) fn abandon(&mut self) {
        self.round += 1;
        self.ready.clear();
        self.delayed.clear();
        self.unfinished = 0;
    }

    pub(super) fn push(&mut self, job: Job) {
        self.unfinished += 1;
        let round = self.round;
        self.ready.push_back(Task { job, round, failures: 0, invalid: 0, avoid: None });
    }

    /// How many could be busy at the same time at most, with what is left of earlier rounds.
    pub(super) fn useful_workers(&self) -> usize {
        self.unfinished + self.in_flight
    }

    /// Whether the round will bring nothing more.
    pub(super) fn is_over(&self) -> bool {
        self.unfinished == 0 || self.stopped.is_some()
    }

    /// Whether nothing is under way.
    pub(super) fn is_quiet(&self) -> bool {
        self.in_flight == 0
    }

    /// How the round is getting on, once it is known whether there is still hope.
    pub(super) fn look(&mut self) -> Snapshot {
        if !self.is_over() {
            self.give_up_if_hopeless();
        }
        Snapshot {
            settled: std::mem::take(&mut self.settled),
            finished: self.unfinished == 0,
            stopped: self.stopped.clone(),
            counters: self.counters,
            in_flight: self.in_flight,
        }
    }

    fn give_up_if_hopeless(&mut self) {
        if let Some((lasted, failure)) = self.fleet.outage(Instant::now())
            && lasted.as_secs_f64() >= self.retries.give_up_after_seconds
        {
            let message =
                format!("nothing has succeeded for {:.0} seconds; {failure}", lasted.as_secs_f64());
            self.stopped = Some(PluginError::failed(message).with_hint(GO_ON));
        }
    }

    pub(super) fn next(&mut self, now: Instant) -> Next {
        if self.stopped.is_some() {
            return Next::Wait(None);
        }
        while self.delayed.peek().is_some_and(|delayed| delayed.until <= now) {
            if let Some(delayed) = self.delayed.pop() {
                self.ready.push_front(delayed.task);
            }
        }
        let next_delayed = self.delayed.peek().map(|delayed| delayed.until);
        let Some(task) = self.ready.pop_front() else { return Next::Wait(next_delayed) };
        let somebody_from = match self.fleet.choose(task.avoid, now) {
            Choice::Endpoint { index, is_probe } => {
                self.in_flight += 1;
                self.counters.requests += 1;
                // Somebody must know when the next delayed request is due.
                let is_last = self.ready.is_empty() && self.delayed.is_empty();
                let has_room = !is_last && self.in_flight < self.fleet.limit();
                let attempt = Attempt { task, endpoint: index, is_probe, sent: now };
                return Next::Send { attempt, has_room };
            }
            Choice::NobodyUntil(moment) => Some(moment),
            Choice::Nobody => None,
        };
        self.ready.push_front(task);
        Next::Wait(somebody_from.into_iter().chain(next_delayed).min())
    }

    /// Draws the consequences of an attempt.
    pub(super) fn settle(&mut self, attempt: Attempt, outcome: Outcome) {
        let now = Instant::now();
        let Attempt { endpoint, sent, .. } = attempt;
        self.in_flight -= 1;
        let is_current = attempt.task.round == self.round;
        match outcome {
            Outcome::Reply(reply) => {
                tell(self.fleet.succeeded(endpoint));
                self.take(attempt.task, reply, is_current);
            }
            Outcome::Failure(failure) => {
                let news = match failure.kind {
                    FailureKind::Transient | FailureKind::Overloaded => {
                        self.fleet.failed(endpoint, &failure, sent, now)
                    }
                    FailureKind::Refused(_) => self.fleet.succeeded(endpoint),
                };
                tell(news);
                if is_current && self.stopped.is_none() {
                    self.try_again(attempt, &failure, now);
                }
            }
            Outcome::Broken(error) => {
                tell(self.fleet.succeeded(endpoint));
                if is_current {
                    self.stopped.get_or_insert(error);
                }
            }
        }
    }

    /// Takes a reply, unless another may be better.
    fn take(&mut self, task: Task, reply: Reply, is_current: bool) {
        self.counters.prompt_tokens += reply.prompt_tokens;
        self.counters.completion_tokens += reply.completion_tokens;
        let is_invalid = reply.judgments.iter().any(Result::is_err);
        if is_invalid && is_current && task.invalid < self.invalid_attempts {
            self.counters.retries += 1;
            self.ready.push_back(Task { invalid: task.invalid + 1, ..task });
            return;
        }
        for ((question, _), judgment) in task.job.questions.into_iter().zip(reply.judgments) {
            match &judgment {
                Ok(_) => self.counters.judgments += 1,
                Err(_) => self.counters.invalid_verdicts += 1,
            }
            if is_current {
                self.settled.push(Settled { question, judgment });
            }
        }
        if is_current {
            self.unfinished = self.unfinished.saturating_sub(1);
        }
    }

    fn try_again(&mut self, attempt: Attempt, failure: &Failure, now: Instant) {
        let Attempt { mut task, endpoint, is_probe, .. } = attempt;
        // Whether an endpoint is back is not the fault of the request that tries.
        task.failures += u32::from(!is_probe);
        if let Some(error) = self.hopeless(&task, endpoint, failure) {
            self.stopped = Some(error);
            return;
        }
        let place = &self.fleet.address(endpoint).shown;
        tracing::debug!("{place}: {}; trying again", failure.message);
        task.avoid = Some(endpoint);
        self.counters.retries += 1;
        let wait = backoff::delay(&self.retries, task.failures.max(1));
        self.delayed.push(Delayed { until: now + wait, task });
    }

    /// Why there is no use in trying again, if there is none.
    fn hopeless(&self, task: &Task, endpoint: usize, failure: &Failure) -> Option<PluginError> {
        let place = &self.fleet.address(endpoint).shown;
        let said = &failure.message;
        if let FailureKind::Refused(status) = failure.kind {
            let error = PluginError::failed(format!("{place} refused the request: {said}"));
            return Some(error.with_hint(hint_for(status, said)));
        }
        let longest = Duration::from_secs_f64(self.retries.give_up_after_seconds);
        let message = match failure.retry_after {
            Some(wait) if wait > longest => format!(
                "{place} asks to wait {} seconds, longer than retries.give_up_after_seconds: {said}",
                wait.as_secs()
            ),
            _ if task.failures >= self.retries.max_attempts => match task.failures {
                1 => format!("a request failed at {place}: {said}"),
                times => {
                    format!("a request failed {times} times, the last time at {place}: {said}")
                }
            },
            _ => return None,
        };
        Some(PluginError::failed(message).with_hint(GO_ON))
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
