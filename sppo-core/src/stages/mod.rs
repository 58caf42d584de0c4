//! The stages of one iteration, each a function from records to records, usable alone on files.

mod judge;
mod sample;
mod select;
mod tokenize;
mod train;

pub use judge::{PreferenceSettings, comparison, judge, judgment};
pub use sample::{SamplingPass, SamplingSettings, length_statistics, sample};
pub use select::assemble;
pub use tokenize::{
    TokenizationRule, TokenizationSettings, TokenizedAnswer, retokenize, set_tokens,
    tokenize_answers, tokenize_prompt,
};
pub use train::{
    ReferenceLogProbs, TrainingPass, TrainingProgress, TrainingSettings, mean_log_prob_changes,
    reference_log_probs, require_finite, train,
};
