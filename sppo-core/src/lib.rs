//! The algorithm of SPPO (Self-Play Preference Optimization, arXiv 2405.00675) and the interfaces
//! of everything that can be swapped around it.
//!
//! SPPO's objective touches the policy only through sequence log-probabilities, so this crate never
//! sees a tensor: a [`plugin::Policy`] answers log-probabilities, [`objective`] turns them into a
//! loss and its derivative, and the policy takes the derivative back as one coefficient per response.
//!
//! Read [`self_play`] first: it is Algorithm 1 of the paper, top to bottom. [`objective`] holds every
//! loss as a pure function.

pub mod comparison;
pub mod config;
pub mod datasets;
pub mod engine;
pub mod error;
pub mod evaluation;
mod files;
/// Entry points of the fuzz targets, which see what no other crate does.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::plugins::inspect_library;
}
pub mod game;
pub mod metrics;
pub mod model_card;
pub mod notify;
pub mod objective;
pub mod observer;
pub mod oracle_quality;
pub mod plugins;
pub mod records;
pub mod run_directory;
pub mod schedule;
pub mod schema;
pub mod selection;
pub mod self_play;
pub mod session;
pub mod stages;
pub mod statistics;
pub mod tables;
pub mod target;

pub use error::{Error, ErrorCategory, Result};
pub use sppo_plugin as plugin;
pub use sppo_plugin::{preference, win_rate};
