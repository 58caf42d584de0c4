//! The stages of one iteration, each a function from records to records, usable alone on files.

mod judge;
mod sample;
mod score;
mod select;
mod tokenize;
mod train;

pub(crate) use judge::ROUNDING;
pub(crate) use judge::refuse_scores;
pub use judge::{
    JudgedComparison, LabelDraw, LabelRule, OracleView, PairRule, PreferenceSettings, as_seen,
    comparison, judge, judge_for_training, without_signal,
};
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
    TrainingProgress, TrainingSettings, mean_log_prob_changes, require_finite, response_log_probs,
    train,
};

#[cfg(test)]
pub(crate) use train::anchor_log_prob;
