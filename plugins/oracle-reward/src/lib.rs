//! The oracle `reward`: a reward model, which is a sequence classifier with one label, scores each answer
//! by itself.
//!
//! A conversation with its answer becomes a sequence of tokens (`layout`). Their scores are the verdict,
//! and the core makes a Bradley-Terry model of them. The network itself runs on a backend, which the
//! oracle asks its host for.

mod config;
mod layout;
mod oracle;

pub use config::RewardConfig;
pub use oracle::RewardOracle;
