//! Training examples of the pairs in a file.

use std::path::Path;

use sppo_core::config::Config;
use sppo_core::datasets::{Pair, to_example};
use sppo_core::plugin::Codec;
use sppo_core::records::TrainingExample;

use crate::failure::Result;
use crate::prompts;

/// Pairs as training examples, text made into tokens by the rule of the settings.
///
/// # Errors
/// When a pair cannot be tokenised, does not fit, or holds tokens that the model does not have; the
/// error names the line.
pub(super) fn examples(
    codec: &dyn Codec,
    pairs: Vec<Pair>,
    file: &Path,
    config: &Config,
) -> Result<Vec<TrainingExample>> {
    let settings = config.training.tokenization_settings(codec.info().context_length);
    (0..)
        .zip(pairs)
        .map(|(row, pair)| {
            let example = to_example(codec, row, pair, settings);
            Ok(example.map_err(|error| prompts::locate(file, row, error))?)
        })
        .collect()
}
