//! The threads that kernels run on.

use std::cell::RefCell;
use std::sync::Arc;
use std::thread::available_parallelism;

use rayon::{ThreadPool, ThreadPoolBuilder};
use sppo_model::{ModelError, Result};

thread_local! {
    /// The pool that this thread is a member of.
    static JOINED: RefCell<Option<Threads>> = const { RefCell::new(None) };
}

/// A thread pool. Clones share it.
#[derive(Clone)]
pub struct Threads(Arc<ThreadPool>);

impl Threads {
    /// A pool of `count` threads (0 for one per core).
    ///
    /// The calling thread becomes one of them for good, where it can: a decoding step runs hundreds of
    /// short kernels, and handing each to another thread and waiting for it costs more than some of
    /// them. A thread that joined a pool gets the same pool again.
    pub fn new(count: usize) -> Result<Self> {
        let count = match count {
            0 => available_parallelism().map_or(1, usize::from),
            given => given,
        };
        JOINED.with_borrow_mut(|joined| {
            if let Some(threads) = joined
                && threads.count() == count
            {
                return Ok(threads.clone());
            }
            // A pool of this thread alone would never run what another thread asks of it.
            let join = count > 1 && rayon::current_thread_index().is_none();
            let threads = Self(Arc::new(build(count, join)?));
            if join {
                *joined = Some(threads.clone());
            }
            Ok(threads)
        })
    }

    /// Number of threads.
    pub fn count(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Runs a kernel on the threads.
    pub fn run<R: Send>(&self, kernel: impl FnOnce() -> R + Send) -> R {
        self.0.install(kernel)
    }
}

fn build(threads: usize, join: bool) -> Result<ThreadPool> {
    let builder = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("kernels-{index}"));
    let builder = if join { builder.use_current_thread() } else { builder };
    builder.build().map_err(|error| {
        ModelError::Backend(format!("{threads} threads could not be started: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_computes_for_the_thread_that_joined_it_and_for_others() {
        let threads = Threads::new(2).unwrap();
        assert!(Arc::ptr_eq(&threads.0, &Threads::new(2).unwrap().0));
        let own = std::thread::current().id();
        assert_eq!(threads.run(|| std::thread::current().id()), own);
        let moved = threads.clone();
        let sum = std::thread::spawn(move || moved.run(|| rayon::join(|| 1, || 2)));
        assert_eq!(sum.join().unwrap(), (1, 2));
        // Another size is another pool, which the thread does not join.
        let single = Threads::new(1).unwrap();
        assert_eq!(single.count(), 1);
        assert_ne!(single.run(|| std::thread::current().id()), own);
    }
}
