//! The oracle `reward`: a reward model, which is a sequence classifier with one label, scores each
//! response by itself.
//!
//! A conversation with its response becomes a sequence of tokens (`sequence`). Their scores are the verdict,
//! and the core makes a Bradley-Terry model of them. The network itself runs on a backend, which the
//! oracle asks its host for. A General Preference Model gives each response a vector instead of a score
//! (`general_preference`).

mod general_preference;
mod oracle;
mod sequence;

pub use general_preference::{
    BeginToken, GeneralPreferencePreset, GeneralPreferenceSettings, LastToken,
};
pub use oracle::{RewardConfig, RewardOracle};
