//! Low-rank adapters: what a backend must know to train them in place of a model's weights.

use serde::{Deserialize, Serialize};

/// Low-rank adaptation (LoRA, arXiv 2106.09685): an adapted matrix `W` stays as it is, and
/// `W + scale * B A` is used in its place, of which only `A` (`[rank, input]`) and `B`
/// (`[output, rank]`) are trained. `B` starts at zero, so that a fresh adapter changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSettings {
    /// Rows of `A`, columns of `B`.
    pub rank: usize,
    /// The numerator of the scale.
    pub alpha: f64,
    /// Probability that a feature is left out of an adapter's input while training.
    pub dropout: f64,
    /// The matrices that are adapted in every layer, by the last part of their Hugging Face name.
    pub target_modules: Vec<String>,
    /// Divides alpha by the root of the rank rather than by the rank (rsLoRA, arXiv 2312.03732).
    pub rank_stabilized: bool,
    /// Draws `A` and what dropout leaves out.
    pub seed: u64,
}

impl LoraSettings {
    /// What `B A` is multiplied by.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let rank = self.rank.max(1) as f64;
        self.alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }
}
