//! The threads that kernels run on.

use std::cell::RefCell;
use std::sync::Arc;
use std::thread::available_parallelism;

use rayon::{ThreadPool, ThreadPoolBuilder};
use sppo_model::{ModelError, Result};

thread_local! {
    /// The pool that this thread is a member of.
    static JOINED: RefCell<Option<Arc<ThreadPool>>> = const { RefCell::new(None) };
}

/// A pool of `threads` threads (0 for one per core).
///
/// The calling thread becomes one of them for good, where it can: a decoding step runs hundreds of
/// short kernels, and handing each to another thread and waiting for it costs more than some of them.
/// A thread that joined a pool gets the same pool again.
pub(crate) fn thread_pool(threads: usize) -> Result<Arc<ThreadPool>> {
    let threads = match threads {
        0 => available_parallelism().map_or(1, usize::from),
        given => given,
    };
    JOINED.with_borrow_mut(|joined| {
        if let Some(pool) = joined
            && pool.current_num_threads() == threads
        {
            return Ok(Arc::clone(pool));
        }
        // A pool of this thread alone would never run what another thread asks of it.
        let join = threads > 1 && rayon::current_thread_index().is_none();
        let pool = Arc::new(build(threads, join)?);
        if join {
            *joined = Some(Arc::clone(&pool));
        }
        Ok(pool)
    })
}

fn build(threads: usize, join: bool) -> Result<ThreadPool> {
    let builder = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("candle-{index}"));
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
        let pool = thread_pool(2).unwrap();
        assert!(Arc::ptr_eq(&pool, &thread_pool(2).unwrap()));
        let own = std::thread::current().id();
        assert_eq!(pool.install(|| std::thread::current().id()), own);
        let moved = Arc::clone(&pool);
        let sum = std::thread::spawn(move || moved.install(|| rayon::join(|| 1, || 2)));
        assert_eq!(sum.join().unwrap(), (1, 2));
        // Another size is another pool, which the thread does not join.
        let single = thread_pool(1).unwrap();
        assert_eq!(single.current_num_threads(), 1);
        assert_ne!(single.install(|| std::thread::current().id()), own);
    }
}
