//! The stages of one iteration, each a function from records to records, usable alone on files.

mod judge;
mod sample;
mod score;
mod select;
mod tokenize;
mod train;

pub(crate) use judge::ROUNDING;
pub use judge::{OracleView, PreferenceSettings, as_seen, comparison, judge, without_signal};
pub use sample::{SamplingPass, SamplingSettings, sample};
pub use score::score;
pub use select::assemble;
pub use tokenize::{
    TokenizationRule, TokenizationSettings, TokenizedResponse, cut_all_to_fit, cut_notice,
    official_ends, retokenize, set_tokens, tokenize_noting_cuts, tokenize_prompt,
    tokenize_responses,
};
pub use train::{
    CommitInterval, Recomputation, ReferenceLogProbs, ShardingChoice, TrainingPass,
    TrainingProgress, TrainingSettings, mean_log_prob_changes, reference_log_probs, require_finite,
    train,
};
