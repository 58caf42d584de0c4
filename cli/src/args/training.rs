//! The regression.

use clap::{Args, ValueEnum, value_parser};

/// The regression.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Training")]
pub(crate) struct TrainingArguments {
    /// The loss
    #[arg(long, value_name = "NAME", value_parser = OBJECTIVES)]
    pub(crate) objective: Option<String>,
    /// How far log-ratios are meant to move: 1/beta (paper: 1000)
    #[arg(long, value_name = "ETA")]
    pub(crate) eta: Option<f64>,
    /// Peak learning rate
    #[arg(long, value_name = "RATE")]
    pub(crate) learning_rate: Option<f64>,
    /// Share of labels taken to be wrong, for dpo
    #[arg(long, value_name = "SHARE", hide_short_help = true)]
    pub(crate) label_smoothing: Option<f64>,
    /// Passes over the training set
    #[arg(long, value_name = "N", value_parser = value_parser!(i64).range(0..))]
    pub(crate) epochs: Option<i64>,
    /// Passes that the schedule is laid out for; 0 for as many as --epochs
    #[arg(long, value_name = "N", hide_short_help = true, value_parser = value_parser!(i64).range(0..))]
    pub(crate) planned_epochs: Option<i64>,
    /// Pairs per optimiser step
    #[arg(long, value_name = "N", value_parser = value_parser!(i64).range(0..))]
    pub(crate) global_batch_size: Option<i64>,
    /// Most tokens that are computed at once; changes memory and speed, not the result
    #[arg(long, value_name = "N", hide_short_help = true, value_parser = value_parser!(i64).range(0..))]
    pub(crate) micro_batch_tokens: Option<i64>,
    /// The course of the learning rate after the warm-up
    #[arg(long, value_name = "NAME", value_parser = SCHEDULES)]
    pub(crate) schedule: Option<String>,
    /// Share of the planned steps in which the learning rate rises from 0
    #[arg(long, value_name = "SHARE")]
    pub(crate) warmup_ratio: Option<f64>,
    /// Scale larger gradients down to this norm; 0 leaves them
    #[arg(long, value_name = "NORM", hide_short_help = true)]
    pub(crate) max_gradient_norm: Option<f64>,
    /// How prompts and answers become tokens: clean, or as the released code does
    #[arg(long, value_name = "RULE", hide_short_help = true, value_parser = TOKENIZATIONS)]
    pub(crate) tokenization: Option<String>,
    /// Longest prompt plus answer, in tokens; 0 for the model's context
    #[arg(long, value_name = "N", hide_short_help = true, value_parser = value_parser!(i64).range(0..))]
    pub(crate) max_length: Option<i64>,
    /// Longest prompt where prompt and answer do not fit, in tokens; 0 for no limit
    #[arg(long, value_name = "N", hide_short_help = true, value_parser = value_parser!(i64).range(0..))]
    pub(crate) max_prompt_length: Option<i64>,
    /// Where the reference log-probabilities come from: recorded with the answers, or one more pass
    #[arg(long, value_name = "SOURCE", hide_short_help = true, value_parser = REFERENCES)]
    pub(crate) reference_log_probs: Option<String>,
    #[command(flatten)]
    pub(crate) optimizer: OptimizerArguments,
    #[command(flatten)]
    pub(crate) lora: LoraArguments,
}

/// Low-rank adapters.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Low-rank adapters (LoRA)")]
pub(crate) struct LoraArguments {
    /// Train adapters of this rank in place of the weights; 0 trains the weights
    #[arg(long, value_name = "RANK", value_parser = value_parser!(i64).range(0..))]
    pub(crate) lora_rank: Option<i64>,
    /// Their product is multiplied by alpha over the rank
    #[arg(long, value_name = "ALPHA", hide_short_help = true)]
    pub(crate) lora_alpha: Option<f64>,
    /// Share of an adapter's input that is left out while training
    #[arg(long, value_name = "SHARE", hide_short_help = true)]
    pub(crate) lora_dropout: Option<f64>,
    /// The matrices of every layer that are adapted, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', hide_short_help = true)]
    pub(crate) lora_target_modules: Option<Vec<String>>,
}

/// The optimiser and its constants.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Optimiser")]
pub(crate) struct OptimizerArguments {
    /// The optimiser
    #[arg(long, value_name = "NAME", value_enum)]
    pub(crate) optimizer: Option<OptimizerName>,
    /// Smoothing constant of rmsprop
    #[arg(long, value_name = "ALPHA", hide_short_help = true)]
    pub(crate) alpha: Option<f64>,
    /// Added to the root in rmsprop and adamw
    #[arg(long, value_name = "EPSILON", hide_short_help = true)]
    pub(crate) epsilon: Option<f64>,
    /// Decay of adamw's first moment
    #[arg(long, value_name = "BETA", hide_short_help = true)]
    pub(crate) beta1: Option<f64>,
    /// Decay of adamw's second moment
    #[arg(long, value_name = "BETA", hide_short_help = true)]
    pub(crate) beta2: Option<f64>,
    /// Decoupled weight decay of adamw
    #[arg(long, value_name = "DECAY", hide_short_help = true)]
    pub(crate) weight_decay: Option<f64>,
    /// Momentum of sgd
    #[arg(long, value_name = "MOMENTUM", hide_short_help = true)]
    pub(crate) momentum: Option<f64>,
}

/// The optimisers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OptimizerName {
    /// As torch.optim.RMSprop (the official optimiser)
    #[value(name = "rmsprop")]
    RmsProp,
    /// As torch.optim.AdamW
    Adamw,
    /// As torch.optim.SGD
    Sgd,
}

impl OptimizerName {
    /// Its name in the configuration.
    pub(crate) fn in_config(self) -> &'static str {
        match self {
            Self::RmsProp => "rmsprop",
            Self::Adamw => "adamw",
            Self::Sgd => "sgd",
        }
    }
}

pub(crate) const OBJECTIVES: [&str; 8] =
    ["sppo", "sppo_single", "sppo_hard", "dpo", "ipo", "hinge", "kto_pair", "sppo_all"];
pub(crate) const SCHEDULES: [&str; 3] = ["linear", "cosine", "constant"];
pub(crate) const TOKENIZATIONS: [&str; 2] = ["clean", "official"];
pub(crate) const REFERENCES: [&str; 2] = ["recorded", "recomputed"];
