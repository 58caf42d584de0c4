//! What a well-formed value must also satisfy.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Config, ReferenceLogProbs};
use crate::objective::Objective;
use crate::plugin::{Optimizer, PluginKind};
use crate::plugins::PluginRegistry;
use crate::selection::SelectionStrategy;
use crate::stages::TokenizationRule;

/// A setting that makes no sense.
#[derive(Debug)]
pub(super) struct Invalid {
    pub(super) key: &'static str,
    pub(super) message: String,
    pub(super) hint: String,
}

type Check = Result<(), Invalid>;

fn require(
    holds: bool,
    key: &'static str,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> Check {
    if holds { Ok(()) } else { Err(Invalid { key, message: message.into(), hint: hint.into() }) }
}

fn positive(key: &'static str, value: f64) -> Check {
    require(
        value.is_finite() && value > 0.0,
        key,
        format!("{value} is not a number above 0"),
        "give a number above 0",
    )
}

fn not_negative(key: &'static str, value: f64) -> Check {
    require(
        value.is_finite() && value >= 0.0,
        key,
        format!("{value} is not a number from 0"),
        "give 0 or a number above it",
    )
}

/// Optimisers divide by it where a gradient is 0, and compute in f32.
fn positive_in_f32(key: &'static str, value: f64) -> Check {
    require(
        value.is_finite() && value as f32 > 0.0,
        key,
        format!("epsilon {value} is no number above 0 in f32"),
        "leave it out for the usual value",
    )
}

fn at_least_one(key: &'static str, value: u64) -> Check {
    require(value >= 1, key, "must be at least 1", "give a whole number from 1")
}

impl Config {
    pub(super) fn validate(&self) -> Check {
        self.validate_run()?;
        self.validate_plugins()?;
        self.validate_sampling()?;
        self.validate_training()?;
        self.validate_lora()?;
        self.validate_optimizer()?;
        self.validate_evaluation()
    }

    fn validate_run(&self) -> Check {
        let plain = !matches!(self.name.as_str(), "" | "." | "..")
            && !self.name.contains(['/', '\\', '\0'])
            && !self.name.starts_with('.');
        require(
            plain,
            "name",
            format!("`{}` cannot be the name of a directory", self.name),
            "use letters, digits, `-` and `_`; the parent directory is `run_directory`",
        )?;
        require(
            !self.model.is_empty(),
            "model",
            "is empty",
            "name a model, a directory or a file",
        )?;
        at_least_one("iterations", self.iterations.into())?;
        require(
            i64::try_from(self.seed).is_ok(),
            "seed",
            format!("{} does not fit a TOML integer", self.seed),
            "give a number below 2^63",
        )
    }

    fn validate_plugins(&self) -> Check {
        let (backend, oracle) = (&self.backend, &self.oracle);
        let mut known = PluginRegistry::embedded();
        let are_known = |kind, chosen: &str, tables: &BTreeMap<String, Value>| {
            let names = known.names(kind);
            tables.keys().all(|name| name == chosen || names.contains(&name.as_str()))
        };
        // Libraries are only read when a table is not explained without them.
        if !are_known(PluginKind::BACKEND, &backend.name, &backend.settings)
            || !are_known(PluginKind::ORACLE, &oracle.name, &oracle.settings)
        {
            known = PluginRegistry::discover(&self.plugins).unwrap_or(known);
        }
        let names = known.names(PluginKind::BACKEND);
        plugin_tables("backend", &backend.name, &backend.settings, &names)?;
        let names = known.names(PluginKind::ORACLE);
        plugin_tables("oracle", &oracle.name, &oracle.settings, &names)
    }

    fn validate_sampling(&self) -> Check {
        let sampling = &self.sampling;
        require(
            sampling.samples_per_prompt >= 2,
            "sampling.samples_per_prompt",
            format!("{} answers per prompt cannot be compared", sampling.samples_per_prompt),
            "give at least 2; the paper uses 5",
        )?;
        not_negative("sampling.temperature", sampling.temperature)?;
        require(
            sampling.temperature > 0.0,
            "sampling.temperature",
            "at 0 all answers to a prompt are the same, and nothing is left to compare",
            "give a number above 0, for instance 1.0",
        )?;
        require(
            sampling.top_p > 0.0 && sampling.top_p <= 1.0,
            "sampling.top_p",
            format!("{} is not above 0 and up to 1", sampling.top_p),
            "give 1.0 to keep all tokens",
        )?;
        at_least_one("sampling.max_new_tokens", sampling.max_new_tokens as u64)?;
        require(
            sampling.min_new_tokens <= sampling.max_new_tokens,
            "sampling.min_new_tokens",
            format!(
                "{} is more than `sampling.max_new_tokens` ({})",
                sampling.min_new_tokens, sampling.max_new_tokens
            ),
            "lower the one or raise the other",
        )?;
        at_least_one("sampling.prompts_per_shard", sampling.prompts_per_shard as u64)?;
        positive("preference.bradley_terry_temperature", self.preference.bradley_terry_temperature)
    }

    fn validate_training(&self) -> Check {
        let training = &self.training;
        positive("training.eta", training.eta)?;
        require(
            (0.0..0.5).contains(&training.label_smoothing),
            "training.label_smoothing",
            format!("{} is not from 0 to below 0.5", training.label_smoothing),
            "give the probability that a label is wrong, for instance 0.1",
        )?;
        at_least_one("training.epochs", training.epochs.into())?;
        require(
            training.planned_epochs.is_none_or(|planned| planned >= training.epochs),
            "training.planned_epochs",
            format!("fewer epochs are planned than `training.epochs` ({})", training.epochs),
            "plan at least as many; 0 plans exactly as many",
        )?;
        at_least_one("training.global_batch_size", training.global_batch_size as u64)?;
        at_least_one("training.micro_batch_tokens", training.micro_batch_tokens as u64)?;
        at_least_one("training.commit_every_steps", training.commit_every_steps)?;
        positive("training.learning_rate", training.learning_rate)?;
        require(
            (0.0..=1.0).contains(&training.warmup_ratio),
            "training.warmup_ratio",
            format!("{} is not from 0 to 1", training.warmup_ratio),
            "give the share of steps, for instance 0.1",
        )?;
        not_negative("training.max_gradient_norm", training.max_gradient_norm.unwrap_or(0.0))?;
        self.validate_selection()?;
        self.validate_lengths()
    }

    fn validate_selection(&self) -> Check {
        let takes_all = self.training.objective == Objective::SppoAll;
        require(
            takes_all
                || self.selection.strategy == SelectionStrategy::BestAndWorst
                || self.sampling.samples_per_prompt == 2,
            "selection.strategy",
            "`all` trains on every answer, and the objective compares two",
            "set `training.objective = \"sppo_all\"`, or `selection.strategy = \"best-and-worst\"`",
        )
    }

    fn validate_lengths(&self) -> Check {
        let training = &self.training;
        if let (Some(longest), Some(prompt)) = (training.max_length, training.max_prompt_length) {
            require(
                prompt < longest,
                "training.max_prompt_length",
                format!(
                    "{prompt} leaves no room for an answer within `training.max_length` ({longest})"
                ),
                "lower the one or raise the other",
            )?;
        }
        let official = training.tokenization == TokenizationRule::Official;
        require(
            official || training.max_prompt_length.is_none(),
            "training.max_prompt_length",
            "only `official` tokenisation cuts prompts",
            "set it to 0 and leave long prompts out of the data, or set \
             `training.tokenization = \"official\"`",
        )?;
        if official {
            require(
                training.max_length.is_some() && training.max_prompt_length.is_some(),
                "training.tokenization",
                "`official` cuts to fixed lengths and needs both of them",
                "set `training.max_length` (1024) and `training.max_prompt_length` (512)",
            )?;
            require(
                training.reference_log_probs == ReferenceLogProbs::Recomputed,
                "training.reference_log_probs",
                "`official` tokenisation makes new tokens of the text, which have no recorded \
                 log-probabilities",
                "set it to `recomputed`",
            )?;
        }
        Ok(())
    }

    fn validate_lora(&self) -> Check {
        /// Above every matrix of every model.
        const LARGEST_RANK: usize = 1 << 16;
        let lora = &self.training.lora;
        require(
            lora.rank <= LARGEST_RANK,
            "training.lora.rank",
            format!("{} is above {LARGEST_RANK}", lora.rank),
            "ranks from 8 to 64 are usual",
        )?;
        positive("training.lora.alpha", lora.alpha)?;
        require(
            (0.0..1.0).contains(&lora.dropout),
            "training.lora.dropout",
            format!("{} is not from 0 to below 1", lora.dropout),
            "give 0 to leave nothing out",
        )?;
        require(
            lora.rank == 0 || !lora.target_modules.is_empty(),
            "training.lora.target_modules",
            "is empty, so nothing would be trained",
            "name matrices such as `q_proj` and `v_proj`, or leave it out to adapt all",
        )
    }

    fn validate_optimizer(&self) -> Check {
        const KEY: &str = "training.optimizer";
        let share = |name: &str, value: f64| {
            require(
                (0.0..1.0).contains(&value),
                KEY,
                format!("{name} {value} is not from 0 to below 1"),
                "leave it out for the usual value",
            )
        };
        match self.training.optimizer {
            Optimizer::RmsProp { alpha, epsilon } => {
                share("alpha", alpha)?;
                positive_in_f32(KEY, epsilon)
            }
            Optimizer::AdamW { beta1, beta2, epsilon, weight_decay } => {
                share("beta1", beta1)?;
                share("beta2", beta2)?;
                positive_in_f32(KEY, epsilon)?;
                not_negative(KEY, weight_decay)
            }
            Optimizer::Sgd { momentum } => share("momentum", momentum),
        }
    }

    fn validate_evaluation(&self) -> Check {
        let evaluation = &self.evaluation;
        at_least_one("evaluation.samples_per_prompt", evaluation.samples_per_prompt as u64)?;
        at_least_one("evaluation.bootstrap_resamples", evaluation.bootstrap_resamples as u64)?;
        require(
            evaluation.confidence > 0.0 && evaluation.confidence < 1.0,
            "evaluation.confidence",
            format!("{} is not between 0 and 1", evaluation.confidence),
            "give for instance 0.95",
        )
    }
}

/// Below `[backend]` and `[oracle]` stand tables of plugins, and nothing else.
fn plugin_tables(
    kind: &'static str,
    chosen: &str,
    tables: &BTreeMap<String, Value>,
    known: &[&str],
) -> Check {
    require(
        !chosen.is_empty(),
        kind,
        "has an empty name",
        "`sppo plugin list` shows which there are",
    )?;
    for (name, settings) in tables {
        let suggestion = known
            .iter()
            .copied()
            .chain([chosen, "name"])
            .max_by(|a, b| strsim::jaro_winkler(name, a).total_cmp(&strsim::jaro_winkler(name, b)))
            .unwrap_or(chosen);
        require(
            settings.is_object(),
            kind,
            format!("`{kind}.{name}` is not a table"),
            format!("settings of a plugin stand in its own table, `[{kind}.{chosen}]`"),
        )?;
        require(
            name == chosen || known.contains(&name.as_str()),
            kind,
            format!("there is no {kind} named `{name}` to take the settings in `[{kind}.{name}]`"),
            format!("did you mean `[{kind}.{suggestion}]`?"),
        )?;
    }
    Ok(())
}
