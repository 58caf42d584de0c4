//! Settings and reports of training: optimiser, step, low-rank adapters.

use abi_stable::StableAbi;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::{self, Check};

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

impl Optimizer {
    /// Checks the constants; their type is the key at fault.
    ///
    /// # Errors
    /// When a constant is out of its range.
    pub fn check(&self) -> Check {
        const KEY: &str = "";
        let share = |name: &str, value: f64| {
            check::require(
                (0.0..1.0).contains(&value),
                KEY,
                format!("{name} {value} is not from 0 to below 1"),
                "leave it out for the usual value",
            )
        };
        // It divides where a gradient is 0, and optimisers compute in f32.
        let positive_in_f32 = |epsilon: f64| {
            check::require(
                epsilon.is_finite() && epsilon as f32 > 0.0,
                KEY,
                format!("epsilon {epsilon} is no number above 0 in f32"),
                "leave it out for the usual value",
            )
        };
        match *self {
            Self::RmsProp { alpha, epsilon } => {
                share("alpha", alpha)?;
                positive_in_f32(epsilon)
            }
            Self::AdamW { beta1, beta2, epsilon, weight_decay } => {
                share("beta1", beta1)?;
                share("beta2", beta2)?;
                positive_in_f32(epsilon)?;
                check::not_negative(KEY, weight_decay)
            }
            Self::Sgd { momentum } => share("momentum", momentum),
        }
    }
}

/// Division among the processes of a team of what training keeps for each weight (ZeRO, arXiv 1910.02054).
/// Files hold whole weights and whole state, whatever the division.
#[repr(u8)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, StableAbi,
)]
#[serde(rename_all = "snake_case")]
pub enum Sharding {
    /// Each process keeps everything.
    #[default]
    None,
    /// Each process keeps the optimiser's state of its part, and the f32 values of it where products read
    /// others (ZeRO-1). The result is the same, to the bit.
    Optimizer,
    /// Each process keeps the gradient of its part alone, too (ZeRO-2). The result is the same to the bit
    /// where a step is one pass of each process, and up to rounding where it is several.
    Gradients,
}

/// Number format that gradients of weights are summed in, over the passes of a step and over processes.
#[repr(u8)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, StableAbi,
)]
#[serde(rename_all = "snake_case")]
pub enum GradientDtype {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16: half the memory, and sums that are rounded to 8 bits after each pass.
    Bf16,
}

/// Form in which weights that are not trained are kept in memory.
#[repr(u8)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, StableAbi,
)]
#[serde(rename_all = "snake_case")]
pub enum FrozenWeights {
    /// One number after the other, in the backend's number format.
    #[default]
    Dense,
    /// In the blocks of the model's file where it is quantized (QLoRA): less memory. They are dequantized where
    /// they are used, forward and backward, to the same numbers.
    Quantized,
}

/// Settings of one optimiser step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepSettings {
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// Scales the gradient down to at most this L2 norm; `None` leaves it.
    pub max_gradient_norm: Option<f64>,
}

/// Outcome of one optimiser step.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// L2 norm of the accumulated gradient over all trainable parameters, before clipping.
    pub gradient_norm: f64,
    /// Seconds of this step, its passes included, in which rank 0 waited for other processes; 0 without any.
    pub communication_seconds: f64,
    /// The rank that computed longest in this step.
    pub slowest_rank: usize,
}

impl StepReport {
    /// The report of a process without others.
    #[must_use]
    pub fn new(gradient_norm: f64) -> Self {
        Self { gradient_norm, communication_seconds: 0.0, slowest_rank: 0 }
    }
}

/// Low-rank adapters (LoRA, arXiv 2106.09685): an adapted matrix `W` stays as it is, and `W + scale * B A`
/// is used in its place, of which only `A` (`[rank, input]`) and `B` (`[output, rank]`) are trained. `B`
/// starts at zero, so that a fresh adapter changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoraSettings {
    /// Rank of the adapters (rows of `A`, columns of `B`); 0 trains all weights and no adapters.
    pub rank: usize,
    /// Numerator of the scale, which is alpha over the rank.
    pub alpha: f64,
    /// Probability that a feature is left out of an adapter's input while training.
    pub dropout: f64,
    /// Matrices that are adapted in every layer, by the last part of their Hugging Face name.
    pub target_modules: Vec<String>,
    /// Whether alpha is divided by the root of the rank instead (rsLoRA, arXiv 2312.03732).
    pub rank_stabilized: bool,
    /// Seed of `A` and of dropout: the run's, and no setting of its own.
    #[serde(skip)]
    pub seed: u64,
}

impl Default for LoraSettings {
    fn default() -> Self {
        let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        Self {
            rank: 0,
            alpha: 16.0,
            dropout: 0.0,
            target_modules: all.map(String::from).to_vec(),
            rank_stabilized: false,
            seed: 0,
        }
    }
}

impl LoraSettings {
    /// Adapters that begin with this seed; `None` at rank 0, where all weights are trained.
    #[must_use]
    pub fn seeded(&self, seed: u64) -> Option<Self> {
        (self.rank > 0).then(|| Self { seed, ..self.clone() })
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// When a value is out of its range, or adapters adapt nothing.
    pub fn check(&self) -> Check {
        /// Above every matrix of every model.
        const LARGEST_RANK: usize = 1 << 16;
        check::require(
            self.rank <= LARGEST_RANK,
            "rank",
            format!("{} is above {LARGEST_RANK}", self.rank),
            "ranks from 8 to 64 are usual",
        )?;
        check::positive("alpha", self.alpha)?;
        check::require(
            (0.0..1.0).contains(&self.dropout),
            "dropout",
            format!("{} is not from 0 to below 1", self.dropout),
            "give 0 to leave nothing out",
        )?;
        check::require(
            self.rank == 0 || !self.target_modules.is_empty(),
            "target_modules",
            "is empty, so nothing would be trained",
            "name matrices such as `q_proj` and `v_proj`, or leave it out to adapt all",
        )
    }

    /// Factor of `B A`.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let rank = self.rank.max(1) as f64;
        self.alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }
}
