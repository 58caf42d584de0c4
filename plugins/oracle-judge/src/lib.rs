//! The oracle `judge`: a language model reads a request and two responses, and the log-probabilities of the
//! labels that could come next say which response is better.
//!
//! `layout` makes tokens of a request with two responses, `labels` finds the tokens that are labels and reads
//! their log-probabilities, and `oracle` has the model asked in both orders. The network runs on a backend, or
//! is the policy of the run itself.

mod config;
mod labels;
mod layout;
mod oracle;
mod question;

pub use config::{JudgeConfig, JudgePreset, Undecided};
pub use oracle::JudgeOracle;
