//! Workers that take requests from a queue, and give them back with what became of them.
//!
//! The workers are tasks that share one thread. They live as long as the dispatcher, and so do the
//! connections and what is known of the endpoints. Whoever stops early leaves requests that are under way
//! to end by themselves, and what they still bring until the dispatcher is dropped is remembered.

use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sppo_plugin::PluginError;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::timeout_at;

use super::client::Client;
use super::queue::{Job, Next, Outcome, Queue, Snapshot};
use super::runtime;
use crate::address::Address;
use crate::cache::Cache;
use crate::config::HttpConfig;
use crate::protocol::{Invalid, Protocol};

/// Sends requests until all are answered.
pub(crate) struct Dispatcher {
    shared: Arc<Shared>,
    /// Where workers are started.
    runtime: Handle,
    workers: AtomicUsize,
    max_workers: usize,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    client: Client,
    protocol: Arc<dyn Protocol>,
    cache: Arc<Mutex<Cache>>,
    queue: Mutex<Queue>,
    /// There is something to do for workers.
    work: Notify,
    /// The workers are wanted no longer.
    closing: Notify,
    /// There is something to know for whoever waits.
    news: Condvar,
}

impl Dispatcher {
    pub(crate) fn new(
        config: &HttpConfig,
        addresses: Vec<Address>,
        protocol: Arc<dyn Protocol>,
        client: Client,
        cache: Arc<Mutex<Cache>>,
    ) -> Result<Self, PluginError> {
        let max_workers = config.concurrency.max.max(1) * addresses.len().max(1);
        let shared = Arc::new(Shared {
            client,
            protocol,
            cache,
            queue: Mutex::new(Queue::new(config, addresses)),
            work: Notify::new(),
            closing: Notify::new(),
            news: Condvar::new(),
        });
        let (runtime, thread) = start(Arc::clone(&shared))
            .map_err(|error| PluginError::failed(format!("cannot start a thread: {error}")))?;
        let workers = AtomicUsize::new(0);
        Ok(Self { shared, runtime, workers, max_workers, thread: Some(thread) })
    }

    /// Begins a round.
    pub(crate) fn begin(&self) {
        self.shared.lock().begin();
    }

    /// Sends this as soon as somebody can take it.
    pub(crate) fn push(&self, job: Job) {
        let mut queue = self.shared.lock();
        queue.push(job);
        let wanted = self.max_workers.min(queue.useful_workers());
        drop(queue);
        if self.workers.load(Ordering::Relaxed) < wanted {
            self.workers.fetch_add(1, Ordering::Relaxed);
            self.runtime.spawn(Arc::clone(&self.shared).work());
        } else {
            self.shared.work.notify_one();
        }
    }

    /// Waits until the round is over, but no longer than `patience`.
    pub(crate) fn wait(&self, patience: Duration) -> Snapshot {
        let queue = self.shared.lock();
        let waited = self.shared.news.wait_timeout_while(queue, patience, |queue| !queue.is_over());
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.look()
    }

    /// Sends nothing more, and gives what is under way some time to come back.
    pub(crate) fn abandon(&self, grace: Duration) {
        let mut queue = self.shared.lock();
        queue.abandon();
        // Whether it came back or not, there is nothing else to do about it.
        let _ = self.shared.news.wait_timeout_while(queue, grace, |queue| !queue.is_quiet());
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.shared.closing.notify_one();
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

/// Starts the thread of the workers.
fn start(shared: Arc<Shared>) -> io::Result<(Handle, JoinHandle<()>)> {
    let runtime = runtime()?;
    let handle = runtime.handle().clone();
    let thread = thread::Builder::new().name("sppo-oracle-http".to_owned()).spawn(move || {
        runtime.block_on(shared.closing.notified());
        // Looking up a name cannot be broken off.
        runtime.shutdown_background();
    })?;
    Ok((handle, thread))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker's life.
    async fn work(self: Arc<Self>) {
        loop {
            let next = self.lock().next(Instant::now());
            match next {
                Next::Wait(until) => self.rest(until).await,
                Next::Send { attempt, has_room } => {
                    if has_room {
                        self.work.notify_one();
                    }
                    let sending = self.send(attempt.job(), attempt.endpoint);
                    let outcome = without_panic(sending).await;
                    // The connection is put back, lest the next request open another, and what has
                    // arrived elsewhere joins what will be written.
                    yield_now().await;
                    let outcome = self.written(outcome);
                    let mut queue = self.lock();
                    queue.settle(attempt, outcome);
                    if queue.is_over() || queue.is_quiet() {
                        self.news.notify_all();
                    }
                }
            }
        }
    }

    /// Until there may be something to do.
    async fn rest(&self, until: Option<Instant>) {
        let work = self.work.notified();
        match until {
            None => work.await,
            // Whether there is work or it is time makes no difference.
            Some(until) => drop(timeout_at(until.into(), work).await),
        }
    }

    /// Asks once. What it brings waits to be written to the cache.
    async fn send(&self, job: &Job, endpoint: usize) -> Outcome {
        let body = match self.client.post(endpoint, job.body.clone()).await {
            Ok(body) => body,
            Err(failure) => return Outcome::Failure(failure),
        };
        let mut reply = match self.protocol.read(&body, job.questions.len()) {
            Ok(reply) => reply,
            Err(error) => {
                return Outcome::Failure(self.client.malformed(&error.to_string(), &body));
            }
        };
        for Invalid(said) in reply.judgments.iter_mut().filter_map(|judged| judged.as_mut().err()) {
            *said = self.client.clean(said);
        }
        let pairs = job.questions.iter().zip(&reply.judgments);
        self.cache().stage(pairs.filter_map(|((_, key), judgment)| {
            let judgment = judgment.as_ref().ok()?;
            Some((*key, *judgment))
        }));
        Outcome::Reply(reply)
    }

    /// The outcome, once what it brought is in the cache.
    fn written(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Reply(reply) => match self.cache().write_staged() {
                Ok(()) => Outcome::Reply(reply),
                Err(error) => Outcome::Broken(error),
            },
            other => other,
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker that vanished would leave the others waiting for ever.
async fn without_panic(sending: impl Future<Output = Outcome>) -> Outcome {
    let mut sending = pin!(sending);
    poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| sending.as_mut().poll(context)));
        polled.unwrap_or_else(|_| {
            let bug = PluginError::failed("a worker panicked, which is a bug");
            Poll::Ready(Outcome::Broken(bug))
        })
    })
    .await
}
