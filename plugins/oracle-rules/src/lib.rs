//! The oracle `rules`: a committee of verifiable criteria that judges answers without a model.
//!
//! Every criterion votes on every pair of answers (for one, for the other, or a tie), and
//! `P(i > j)` is the weighted share of votes that answer `i` gets, a tie counting half for each.
//! Majorities of different criteria can contradict each other in a circle, so the preference may be
//! truly intransitive, which is the case that SPPO is made for.
//!
//! An answer without a single letter or digit says nothing, and loses to every answer that has one,
//! whatever the committee thinks of its brevity.
//!
//! The default committee suits someone who wants a model that answers briefly, keeps to the question
//! and ends by itself. [`RulesConfig`] describes all settings.

mod committee;
mod config;
mod criteria;
mod oracle;
mod stop_words;
mod text;

pub use config::{
    EndedConfig, JsonConfig, LengthConfig, PatternsConfig, RelevanceConfig, RepetitionConfig,
    RulesConfig,
};
pub use oracle::RulesOracle;
