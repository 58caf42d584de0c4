//! How answers are drawn.

use clap::{Args, value_parser};

/// How answers are drawn.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArguments {
    /// Answers per prompt (K in the paper)
    #[arg(long, value_name = "K", value_parser = value_parser!(i64).range(0..))]
    pub(crate) samples: Option<i64>,
    /// Divides the logits before sampling
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Keep the most probable tokens that sum to this probability; 1 keeps all
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f64>,
    /// Keep this many most probable tokens; 0 keeps all
    #[arg(long, value_name = "N", value_parser = value_parser!(i64).range(0..))]
    pub(crate) top_k: Option<i64>,
    /// Longest answer, in tokens
    #[arg(long, value_name = "N", value_parser = value_parser!(i64).range(0..))]
    pub(crate) max_new_tokens: Option<i64>,
    /// Shortest answer, in tokens
    #[arg(long, value_name = "N", value_parser = value_parser!(i64).range(0..))]
    pub(crate) min_new_tokens: Option<i64>,
}
