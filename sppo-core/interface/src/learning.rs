//! Settings and reports of training: optimiser, step, low-rank adapters.

use abi_stable::StableAbi;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The optimiser and its constants. State is kept in f32.
#[repr(u8)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, StableAbi)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Optimizer {
    /// `torch.optim.RMSprop`: `v <- alpha v + (1 - alpha) g^2; w <- w - lr g / (sqrt(v) + epsilon)`,
    /// without bias correction (the optimiser of the released code).
    #[serde(rename = "rmsprop")]
    RmsProp {
        /// Smoothing constant.
        #[serde(default = "defaults::alpha")]
        alpha: f64,
        /// Added to the root.
        #[serde(default = "defaults::epsilon")]
        epsilon: f64,
    },
    /// `torch.optim.AdamW` (decoupled weight decay, bias correction).
    #[serde(rename = "adamw")]
    AdamW {
        /// Decay of the first moment.
        #[serde(default = "defaults::beta1")]
        beta1: f64,
        /// Decay of the second moment.
        #[serde(default = "defaults::beta2")]
        beta2: f64,
        /// Added to the root.
        #[serde(default = "defaults::epsilon")]
        epsilon: f64,
        /// Decoupled weight decay.
        #[serde(default)]
        weight_decay: f64,
    },
    /// `torch.optim.SGD` with optional momentum (dampening 0).
    Sgd {
        /// Momentum; 0 keeps no state.
        #[serde(default)]
        momentum: f64,
    },
}

mod defaults {
    pub(super) fn alpha() -> f64 {
        0.99
    }
    pub(super) fn epsilon() -> f64 {
        1e-8
    }
    pub(super) fn beta1() -> f64 {
        0.9
    }
    pub(super) fn beta2() -> f64 {
        0.999
    }
}

impl Default for Optimizer {
    fn default() -> Self {
        Self::RmsProp { alpha: defaults::alpha(), epsilon: defaults::epsilon() }
    }
}

/// Settings of one optimiser step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSettings {
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// Scales the gradient down to at most this L2 norm; `None` leaves it.
    pub max_gradient_norm: Option<f64>,
}

/// Outcome of one optimiser step.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// L2 norm of the accumulated gradient over all trainable parameters, before clipping.
    pub gradient_norm: f64,
}

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
    /// Seed of `A` and of dropout.
    pub seed: u64,
}

impl LoraSettings {
    /// Factor of `B A`.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let rank = self.rank.max(1) as f64;
        self.alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }
}
