//! Language models as scorers: the log-probabilities of a few tokens as the one after a sequence.

use std::path::Path;

use sppo_plugin::{PluginError, Policy, Scorer};

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::ops::Ops;
use crate::training::DecoderModel;

type Answer<T> = std::result::Result<T, PluginError>;

/// Loads the language model at `path`, which is asked for these tokens and never trained.
///
/// # Errors
/// When it cannot be read or does not fit into memory.
pub(crate) fn load_next_token_scorer<O: Ops + 'static>(
    ops: O,
    path: &Path,
    next_tokens: &[u32],
) -> Result<Box<dyn Scorer>> {
    let checkpoint = Checkpoint::open(path)?;
    let model = DecoderModel::load_frozen(ops, checkpoint.config(), &mut |name| {
        let tensor = checkpoint.tensor(name)?;
        Ok((tensor.shape, tensor.values))
    })?;
    Ok(Box::new(LocalModel { model, next_tokens: next_tokens.to_vec() }))
}

/// A language model in this process.
struct LocalModel<O: Ops> {
    model: DecoderModel<O>,
    next_tokens: Vec<u32>,
}

impl<O: Ops> Scorer for LocalModel<O> {
    fn score(&mut self, sequences: &[Vec<u32>]) -> Answer<Vec<f32>> {
        Ok(self.model.next_token_log_probs(sequences, &self.next_tokens)?)
    }

    fn width(&self) -> usize {
        self.next_tokens.len()
    }
}

/// A policy that is asked for these tokens, and nothing else.
pub(super) struct AskedPolicy {
    pub(super) policy: Box<dyn Policy>,
    pub(super) next_tokens: Vec<u32>,
}

impl Scorer for AskedPolicy {
    fn score(&mut self, sequences: &[Vec<u32>]) -> Answer<Vec<f32>> {
        self.policy.next_token_log_probs(sequences, &self.next_tokens)
    }

    fn width(&self) -> usize {
        self.next_tokens.len()
    }

    fn replicas(&self) -> usize {
        self.policy.info().replicas
    }

    fn score_each(&mut self, batches: &[Vec<Vec<u32>>]) -> Answer<Vec<Vec<f32>>> {
        self.policy.next_token_log_probs_each(batches, &self.next_tokens)
    }
}
