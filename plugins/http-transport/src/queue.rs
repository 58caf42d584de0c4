//! Requests that wait, and what follows from each attempt.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sppo_plugin::PluginError;

use crate::address::Address;
use crate::backoff;
use crate::client::{Failure, FailureKind};
use crate::exchange::{Exchange, Reply, Request};
use crate::fleet::{Choice, Fleet, News};
use crate::refusal::{Reason, Refusal};
use crate::settings::{RetryConfig, TransportSettings};

/// Attempts at a service that has never sent a reply that makes sense, and does not now: it speaks something
/// else, and waiting does not teach it.
const UNREADABLE_ATTEMPTS: u32 = 3;

/// Status of a request at which a service fails every time, while it serves others.
const ALWAYS_FAILS: u16 = 500;

/// Totals since the dispatcher was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Attempts that were sent.
    pub requests: u64,
    /// Attempts that followed an earlier one of the same request.
    pub retries: u64,
}

/// The state of a round.
pub struct Snapshot<E: Exchange> {
    /// Replies that arrived since the last look, at most one for each request.
    pub replies: Vec<Reply<E::Job, E::Content>>,
    /// Whether nothing is left to do.
    pub finished: bool,
    /// The reason why the round cannot be finished.
    pub stopped: Option<PluginError>,
    /// Totals over all rounds.
    pub counters: Counters,
    /// Requests under way.
    pub in_flight: usize,
}

/// The requests of a round, and the state of the endpoints.
pub(crate) struct Queue<E: Exchange> {
    exchange: Arc<E>,
    retries: RetryConfig,
    round: u64,
    ready: VecDeque<Task<E::Job>>,
    delayed: BinaryHeap<Delayed<E::Job>>,
    /// Requests of this round without a reply.
    unfinished: usize,
    in_flight: usize,
    replies: Vec<Reply<E::Job, E::Content>>,
    stopped: Option<PluginError>,
    counters: Counters,
    fleet: Fleet,
}

struct Task<J> {
    request: Request<J>,
    round: u64,
    failures: u32,
    /// The time at which the first attempt that failed was sent.
    failing_since: Option<Instant>,
    /// Earlier replies after which the request was sent again.
    repeats: u32,
    /// The endpoint that failed last.
    avoid: Option<usize>,
}

struct Delayed<J> {
    until: Instant,
    task: Task<J>,
}

/// The next step of a worker.
pub(crate) enum Next<J> {
    Send {
        attempt: Attempt<J>,
        /// Whether another could be sent too.
        has_room: bool,
    },
    Wait(Option<Instant>),
}

/// A request on its way. It must be given back to [`Queue::settle`].
pub(crate) struct Attempt<J> {
    task: Task<J>,
    pub(crate) endpoint: usize,
    is_probe: bool,
    sent: Instant,
}

impl<J> Attempt<J> {
    pub(crate) fn request(&self) -> &Request<J> {
        &self.task.request
    }
}

/// The end of an attempt.
pub(crate) enum Outcome<C> {
    Reply(C),
    Failure(Failure),
    /// An error that no other attempt would mend.
    Broken(PluginError),
}

impl<E: Exchange> Queue<E> {
    pub(crate) fn new(
        settings: &TransportSettings<'_>,
        addresses: Vec<Address>,
        exchange: Arc<E>,
    ) -> Self {
        Self {
            exchange,
            retries: settings.retries.clone(),
            round: 0,
            ready: VecDeque::new(),
            delayed: BinaryHeap::new(),
            unfinished: 0,
            in_flight: 0,
            replies: Vec::new(),
            stopped: None,
            counters: Counters::default(),
            fleet: Fleet::new(addresses, settings.concurrency),
        }
    }

    /// Begins a round.
    pub(crate) fn begin(&mut self) {
        self.abandon();
        self.replies.clear();
        self.stopped = None;
        self.fleet.forget_outage();
    }

    /// Ends the round: what is under way is settled and not tried again, the rest is dropped.
    pub(crate) fn abandon(&mut self) {
        self.round += 1;
        self.ready.clear();
        self.delayed.clear();
        self.unfinished = 0;
    }

    pub(crate) fn push(&mut self, request: Request<E::Job>) {
        self.unfinished += 1;
        let round = self.round;
        self.ready.push_back(Task {
            request,
            round,
            failures: 0,
            failing_since: None,
            repeats: 0,
            avoid: None,
        });
    }

    /// The most workers that could be busy at the same time, with the rest of earlier rounds.
    pub(crate) fn useful_workers(&self) -> usize {
        self.unfinished + self.in_flight
    }

    /// Whether the round will bring no more replies.
    pub(crate) fn is_over(&self) -> bool {
        self.unfinished == 0 || self.stopped.is_some()
    }

    /// Whether nothing is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.in_flight == 0
    }

    /// The state of the round, after giving it up if there is no hope left.
    pub(crate) fn look(&mut self) -> Snapshot<E> {
        if !self.is_over() {
            self.give_up_if_hopeless();
        }
        Snapshot {
            replies: std::mem::take(&mut self.replies),
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
            self.stopped =
                Some(PluginError::failed(message).with_hint(self.exchange.resume_hint()));
        }
    }

    pub(crate) fn next(&mut self, now: Instant) -> Next<E::Job> {
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
        let free_from = match self.fleet.choose(task.avoid, now) {
            Choice::Endpoint { index, is_probe } => {
                self.in_flight += 1;
                self.counters.requests += 1;
                // One worker must wait for the next delayed request.
                let is_last = self.ready.is_empty() && self.delayed.is_empty();
                let has_room = !is_last && self.in_flight < self.fleet.limit();
                let attempt = Attempt { task, endpoint: index, is_probe, sent: now };
                return Next::Send { attempt, has_room };
            }
            Choice::NoneUntil(moment) => Some(moment),
            Choice::None => None,
        };
        self.ready.push_front(task);
        Next::Wait(free_from.into_iter().chain(next_delayed).min())
    }

    /// Draws the consequences of an attempt.
    pub(crate) fn settle(&mut self, attempt: Attempt<E::Job>, outcome: Outcome<E::Content>) {
        let now = Instant::now();
        let Attempt { endpoint, sent, .. } = attempt;
        self.in_flight -= 1;
        let is_current = attempt.task.round == self.round;
        match outcome {
            Outcome::Reply(content) => {
                tell(self.fleet.succeeded(endpoint));
                self.take(attempt.task, content, is_current);
            }
            Outcome::Failure(Failure { kind: FailureKind::Refused(refusal), message, .. }) => {
                tell(self.fleet.succeeded(endpoint));
                if is_current && self.stopped.is_none() {
                    self.set_aside_or_stop(attempt, &refusal, &message);
                }
            }
            Outcome::Failure(failure) => {
                tell(self.fleet.failed(endpoint, &failure, sent, now));
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
    fn take(&mut self, task: Task<E::Job>, content: E::Content, is_current: bool) {
        if is_current && self.exchange.asks_again(&content, task.repeats) {
            self.counters.retries += 1;
            self.ready.push_back(Task { repeats: task.repeats + 1, ..task });
            return;
        }
        self.exchange.settled(&content);
        if is_current {
            self.unfinished = self.unfinished.saturating_sub(1);
            self.replies.push(Reply { job: task.request.job, content });
        }
    }

    /// Takes what stands for the reply to a refused request, or stops the round.
    fn set_aside_or_stop(&mut self, attempt: Attempt<E::Job>, refusal: &Refusal, said: &str) {
        let Attempt { task, endpoint, .. } = attempt;
        let is_alone = self.in_flight == 0;
        if let Some(content) = self.exchange.set_aside(&task.request.job, refusal, is_alone) {
            self.take(task, content, true);
            return;
        }
        let address = &self.fleet.address(endpoint).shown;
        let error = PluginError::failed(format!("{address} refused the request: {said}"));
        let hint = match refusal.reason {
            Reason::Payment => {
                "waiting does not mend this: see to the account at the service (credit, limits, \
                                billing), then give the same command again"
                    .to_owned()
            }
            _ => {
                let hint = self.exchange.refusal_hint(refusal.status, &refusal.details);
                hint.unwrap_or_else(|| refusal_hint(refusal).to_owned())
            }
        };
        self.stopped = Some(error.with_hint(hint));
    }

    fn try_again(&mut self, attempt: Attempt<E::Job>, failure: &Failure, now: Instant) {
        let Attempt { mut task, endpoint, is_probe, sent } = attempt;
        // Whether an endpoint is back is not the fault of the request that tries, unless it was sent.
        let was_sent = failure.kind != FailureKind::Unreachable;
        task.failures += u32::from(was_sent || !is_probe);
        let failing_since = *task.failing_since.get_or_insert(sent);
        if let Some(error) = self.hopeless(&task, endpoint, failure) {
            // Where others succeed, the fault lies in the request.
            let is_its_fault =
                matches!(failure.kind, FailureKind::Transient | FailureKind::Unreadable)
                    && self.fleet.last_success().is_some_and(|success| success > failing_since);
            let details = failure.message.clone();
            let refusal = Refusal { status: ALWAYS_FAILS, reason: Reason::Request, details };
            let job = &task.request.job;
            let aside =
                is_its_fault.then(|| self.exchange.set_aside(job, &refusal, false)).flatten();
            match aside {
                Some(content) => self.take(task, content, true),
                None => self.stopped = Some(error),
            }
            return;
        }
        let address = &self.fleet.address(endpoint).shown;
        tracing::debug!("{address}: {}; trying again", failure.message);
        task.avoid = Some(endpoint);
        self.counters.retries += 1;
        let wait = backoff::delay(&self.retries, task.failures.max(1));
        self.delayed.push(Delayed { until: now + wait, task });
    }

    /// The error that ends the round, if trying again is of no use.
    fn hopeless(
        &self,
        task: &Task<E::Job>,
        endpoint: usize,
        failure: &Failure,
    ) -> Option<PluginError> {
        let address = &self.fleet.address(endpoint).shown;
        let said = &failure.message;
        let longest = Duration::from_secs_f64(self.retries.give_up_after_seconds);
        let unreadable = failure.kind == FailureKind::Unreadable;
        let attempts = match unreadable && self.fleet.last_success().is_none() {
            true => self.retries.max_attempts.min(UNREADABLE_ATTEMPTS),
            false => self.retries.max_attempts,
        };
        let message = match failure.retry_after {
            Some(wait) if wait > longest => format!(
                "{address} asks to wait {} seconds, longer than retries.give_up_after_seconds: {said}",
                wait.as_secs()
            ),
            _ if task.failures >= attempts => match task.failures {
                1 => format!("a request failed at {address}: {said}"),
                times => {
                    format!("a request failed {times} times, the last time at {address}: {said}")
                }
            },
            _ => return None,
        };
        let hint = unreadable.then(|| self.exchange.unreadable_hint(said)).flatten();
        let hint = hint.unwrap_or_else(|| self.exchange.resume_hint());
        Some(PluginError::failed(message).with_hint(hint))
    }
}

fn tell(news: Option<News>) {
    match news {
        Some(News::Dropped(failure)) => {
            tracing::warn!("{failure}; left alone for a while, then tried again");
        }
        Some(News::Back(address)) => tracing::warn!("{address} answers again"),
        None => {}
    }
}

fn refusal_hint(refusal: &Refusal) -> &'static str {
    match (refusal.reason, refusal.status) {
        (_, 300..=399) => "give the address that it redirects to in `endpoints`",
        (Reason::Key, _) | (_, 401 | 403) => {
            "check the key: `api_key_env` or `api_key_file`, and `api_key_header`"
        }
        (_, 404 | 405) => "check `endpoints`",
        _ => "trying again would not help: see what the service says, and change the settings",
    }
}

impl<J> PartialEq for Delayed<J> {
    fn eq(&self, other: &Self) -> bool {
        self.until == other.until
    }
}

impl<J> Eq for Delayed<J> {}

impl<J> PartialOrd for Delayed<J> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<J> Ord for Delayed<J> {
    /// The earliest is the greatest, which a heap gives out first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.until.cmp(&self.until)
    }
}
