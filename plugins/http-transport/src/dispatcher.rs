//! Workers that take requests from a queue, and give them back with what became of them.
//!
//! The workers are tasks that share one thread. They live as long as the dispatcher, and so do the
//! connections and the state of the endpoints. A caller that stops early leaves requests that are under
//! way to end by themselves, and [`Exchange`] still sees their replies until the dispatcher is dropped.

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

use crate::address::Address;
use crate::client::{Client, runtime};
use crate::exchange::{Exchange, Request};
use crate::queue::{Next, Outcome, Queue, Snapshot};
use crate::settings::TransportSettings;

/// Sends requests until all are answered.
pub struct Dispatcher<E: Exchange> {
    shared: Arc<Shared<E>>,
    /// The runtime that workers are started on.
    runtime: Handle,
    workers: AtomicUsize,
    max_workers: usize,
    thread: Option<JoinHandle<()>>,
}

struct Shared<E: Exchange> {
    client: Client,
    exchange: Arc<E>,
    queue: Mutex<Queue<E>>,
    /// Notified when there is something to do for workers.
    work: Notify,
    /// Notified when the workers are wanted no longer.
    closing: Notify,
    /// Notified when there is something to know for the caller that waits.
    news: Condvar,
}

impl<E: Exchange> Dispatcher<E> {
    /// Starts the thread of the workers. `client` was made for the same settings and addresses.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn new(
        settings: &TransportSettings<'_>,
        addresses: Vec<Address>,
        client: Client,
        exchange: Arc<E>,
    ) -> Result<Self, PluginError> {
        let max_workers = settings.concurrency.max.max(1) * addresses.len().max(1);
        let shared = Arc::new(Shared {
            client,
            queue: Mutex::new(Queue::new(settings, addresses, Arc::clone(&exchange))),
            exchange,
            work: Notify::new(),
            closing: Notify::new(),
            news: Condvar::new(),
        });
        let (runtime, thread) = start(Arc::clone(&shared))
            .map_err(|error| PluginError::failed(format!("cannot start a thread: {error}")))?;
        let workers = AtomicUsize::new(0);
        Ok(Self { shared, runtime, workers, max_workers, thread: Some(thread) })
    }

    /// Begins a round: forgets what the last one left.
    pub fn begin(&self) {
        self.shared.lock().begin();
    }

    /// Sends a request as soon as an endpoint can take it.
    pub fn push(&self, request: Request<E::Job>) {
        let mut queue = self.shared.lock();
        queue.push(request);
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
    pub fn wait(&self, patience: Duration) -> Snapshot<E> {
        let queue = self.shared.lock();
        let waited = self.shared.news.wait_timeout_while(queue, patience, |queue| !queue.is_over());
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.look()
    }

    /// Sends nothing more, and gives what is under way the time `grace` to come back.
    pub fn abandon(&self, grace: Duration) {
        let mut queue = self.shared.lock();
        queue.abandon();
        // Whether it came back or not, there is nothing else to do about it.
        let _ = self.shared.news.wait_timeout_while(queue, grace, |queue| !queue.is_quiet());
    }
}

impl<E: Exchange> Drop for Dispatcher<E> {
    fn drop(&mut self) {
        self.shared.closing.notify_one();
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

/// Starts the thread of the workers.
fn start<E: Exchange>(shared: Arc<Shared<E>>) -> io::Result<(Handle, JoinHandle<()>)> {
    let runtime = runtime()?;
    let handle = runtime.handle().clone();
    let thread = thread::Builder::new().name("sppo-http".to_owned()).spawn(move || {
        runtime.block_on(shared.closing.notified());
        // Looking up a name cannot be broken off.
        runtime.shutdown_background();
    })?;
    Ok((handle, thread))
}

impl<E: Exchange> Shared<E> {
    fn lock(&self) -> MutexGuard<'_, Queue<E>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop of a worker.
    async fn work(self: Arc<Self>) {
        loop {
            let next = self.lock().next(Instant::now());
            match next {
                Next::Wait(until) => self.rest(until).await,
                Next::Send { attempt, has_room } => {
                    if has_room {
                        self.work.notify_one();
                    }
                    let sending = self.send(attempt.request(), attempt.endpoint);
                    let outcome = without_panic(sending).await;
                    // The connection is put back, so that the next request does not open another, and
                    // replies that arrived elsewhere join the next commit.
                    yield_now().await;
                    let outcome = self.committed(outcome);
                    let mut queue = self.lock();
                    queue.settle(attempt, outcome);
                    if queue.is_over() || queue.is_quiet() {
                        self.news.notify_all();
                    }
                }
            }
        }
    }

    /// Waits until there may be something to do.
    async fn rest(&self, until: Option<Instant>) {
        let work = self.work.notified();
        match until {
            None => work.await,
            // Whether there is work or it is time makes no difference.
            Some(until) => drop(timeout_at(until.into(), work).await),
        }
    }

    /// Sends a request once, and reads what it brings.
    async fn send(&self, request: &Request<E::Job>, endpoint: usize) -> Outcome<E::Content> {
        let body = match self.client.post(endpoint, request.body.clone()).await {
            Ok(body) => body,
            Err(failure) => return Outcome::Failure(failure),
        };
        match self.exchange.read(&request.job, &body, &|text| self.client.clean(text)) {
            Ok(content) => Outcome::Reply(content),
            Err(error) => Outcome::Failure(self.client.malformed(&error.to_string(), &body)),
        }
    }

    /// The outcome, once what was read is durable.
    fn committed(&self, outcome: Outcome<E::Content>) -> Outcome<E::Content> {
        match outcome {
            Outcome::Reply(content) => match self.exchange.commit() {
                Ok(()) => Outcome::Reply(content),
                Err(error) => Outcome::Broken(error),
            },
            other => other,
        }
    }
}

/// Turns a panic into an outcome: a worker that vanished would leave the others waiting for ever.
async fn without_panic<C>(sending: impl Future<Output = Outcome<C>>) -> Outcome<C> {
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
