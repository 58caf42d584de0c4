//! The policy of a run, lent to an oracle that judges with it.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;

use crate::plugin::{PluginError, Policy, Scorer};

/// A place in which self-play puts its policy while responses are judged. Scorers made here ask the policy
/// that is in it.
pub struct LentPolicy<'a> {
    find_starting_model: &'a dyn Fn() -> Result<PathBuf, PluginError>,
    /// Processes that hold the policy.
    replicas: usize,
    place: Place,
    is_wanted: Cell<bool>,
}

type Place = Rc<RefCell<Option<Box<dyn Policy>>>>;

impl<'a> LentPolicy<'a> {
    /// An empty place, of a run whose policies are held by so many processes. The model that the run starts
    /// from is found when it is asked for.
    #[must_use]
    pub fn new(
        find_starting_model: &'a dyn Fn() -> Result<PathBuf, PluginError>,
        replicas: usize,
    ) -> Self {
        Self { find_starting_model, replicas, place: Rc::default(), is_wanted: Cell::new(false) }
    }

    /// The model that the run starts from.
    pub(super) fn starting_model(&self) -> Result<PathBuf, PluginError> {
        (self.find_starting_model)()
    }

    /// The policy as a scorer of the token after a sequence.
    pub(super) fn scorer(&self, next_tokens: &[u32]) -> Box<dyn Scorer> {
        self.is_wanted.set(true);
        let (place, replicas) = (Rc::clone(&self.place), self.replicas);
        Box::new(LentScorer { place, replicas, next_tokens: next_tokens.to_vec() })
    }

    /// Whether an oracle asks the policy.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.is_wanted.get()
    }

    /// Lends the policy for some work, and takes it back.
    pub fn lend<T>(
        &self,
        policy: Box<dyn Policy>,
        work: impl FnOnce() -> T,
    ) -> (Option<Box<dyn Policy>>, T) {
        *self.place.borrow_mut() = Some(policy);
        let done = work();
        (self.place.borrow_mut().take(), done)
    }
}

/// The lent policy, asked for these tokens.
struct LentScorer {
    place: Place,
    replicas: usize,
    next_tokens: Vec<u32>,
}

impl LentScorer {
    fn ask<T>(
        &self,
        question: impl FnOnce(&mut dyn Policy) -> Result<T, PluginError>,
    ) -> Result<T, PluginError> {
        let mut place = self.place.borrow_mut();
        let policy = place.as_mut().ok_or_else(|| {
            PluginError::failed("the policy is asked for a judgment while no response is judged")
        })?;
        question(policy.as_mut())
    }
}

impl Scorer for LentScorer {
    fn score(&mut self, sequences: &[Vec<u32>]) -> Result<Vec<f32>, PluginError> {
        self.ask(|policy| policy.next_token_log_probs(sequences, &self.next_tokens))
    }

    fn width(&self) -> usize {
        self.next_tokens.len()
    }

    fn replicas(&self) -> usize {
        self.replicas
    }

    fn score_each(&mut self, batches: &[Vec<Vec<u32>>]) -> Result<Vec<Vec<f32>>, PluginError> {
        self.ask(|policy| policy.next_token_log_probs_each(batches, &self.next_tokens))
    }
}
