//! The settings of the oracle, the table `[oracle.judge]`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sppo_model::serve::judge::JudgeSettings;
use sppo_plugin::PluginError;
use sppo_plugin::pairwise::Orders;

/// Name of the policy as its own judge.
pub(crate) const POLICY: &str = "policy";

/// Name of the model that the run starts from as the judge.
pub(crate) const START: &str = "start";

/// The model that judges, the question that it is asked, and what counts as an answer.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JudgeConfig {
    /// `policy`: the policy as it is judges its own responses. `start`: the model that the run starts from.
    /// Otherwise a directory, a `.gguf` file, or a model on the Hugging Face hub (`./policy` is a directory).
    #[schemars(extend("format" = "policy-or-model"))]
    pub model: String,
    /// A branch, tag or commit of the model on the hub; its main branch when left out.
    pub revision: Option<String>,
    /// The backend that the model computes on, with its own settings; the run's when left out. The policy stays
    /// where it is.
    pub backend: Option<String>,
    /// The form of the question.
    pub preset: JudgePreset,
    /// The judge's system prompt (`chat`); left out when empty. The default is that of the oracle `http`.
    pub system: Option<String>,
    /// The file with the question (`chat`), a Jinja template over `conversation` (the prompt as text),
    /// `messages`, `prompt` (the user's last turn), `first`, `second` (the responses), `label_first` and
    /// `label_second`. The default is the question of the oracle `http`.
    #[schemars(extend("format" = "path"))]
    pub template_file: Option<PathBuf>,
    /// The beginning of the judge's answer (`chat`), after which the label is to come; none when empty. When left
    /// out, the default question is answered with `Answer` and a label, where each label is one token after a space,
    /// and another question with a label alone.
    pub answer_prefix: Option<String>,
    /// Variables of the judge's own chat template (`chat`).
    pub template_variables: Map<String, Value>,
    /// The label for "the response shown first is better".
    pub label_first: String,
    /// The label for "the response shown second is better".
    pub label_second: String,
    /// The label for "they are equal" (`chat`), half of whose probability goes to each; none when left out.
    pub label_tie: Option<String>,
    /// The orders in which each pair is shown.
    pub orders: Orders,
    /// The least probability that the labels must have together. A verdict with less is invalid.
    pub min_label_probability: f64,
    /// The largest share of verdicts that may be invalid before the run stops, from 0 to 1.
    pub max_invalid_share: f64,
    /// Treatment of a pair on which there is no valid verdict in any order.
    pub undecided: Undecided,
    /// Most tokens of a question; the model's own limit when left out. Of a longer one, prompt and responses are
    /// cut to the same length: the prompt loses its beginning, a response its end.
    pub maximum_tokens: Option<usize>,
    /// Tokens that are computed together, at most, unless one question has more. It changes memory and
    /// speed, not the result.
    pub batch_tokens: usize,
}

impl Default for JudgeConfig {
    fn default() -> Self {
        Self {
            model: POLICY.into(),
            revision: None,
            backend: None,
            preset: JudgePreset::default(),
            system: None,
            template_file: None,
            answer_prefix: None,
            template_variables: Map::from_iter([("enable_thinking".to_string(), false.into())]),
            label_first: "A".into(),
            label_second: "B".into(),
            label_tie: None,
            orders: Orders::default(),
            min_label_probability: 0.1,
            max_invalid_share: 0.02,
            undecided: Undecided::default(),
            maximum_tokens: None,
            batch_tokens: 4096,
        }
    }
}

/// The form of a question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JudgePreset {
    /// A turn of the user in the model's own chat template, which any chat model answers.
    #[default]
    Chat,
    /// That of RLHFlow's pair-preference models, which were trained to answer it.
    PairPreference,
}

/// Treatment of a pair without a valid verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Undecided {
    /// Stop the run.
    #[default]
    Stop,
    /// Call it a tie, and count it in the metrics.
    Tie,
}

impl JudgeConfig {
    /// Refuses settings that contradict each other or are out of range.
    ///
    /// # Errors
    /// Names the setting.
    pub(crate) fn check(&self) -> Result<(), PluginError> {
        self.found_by().check("Qwen/Qwen3-0.6B")?;
        self.check_shares()?;
        self.check_model()?;
        if self.preset == JudgePreset::PairPreference {
            self.check_pair_preference()?;
        }
        Ok(())
    }

    /// The model and the backend of these settings.
    pub(crate) fn found_by(&self) -> JudgeSettings<'_> {
        JudgeSettings {
            model: &self.model,
            revision: self.revision.as_deref(),
            backend: self.backend.as_deref(),
            batch_tokens: self.batch_tokens,
        }
    }

    fn check_shares(&self) -> Result<(), PluginError> {
        let shares = [
            ("min_label_probability", self.min_label_probability),
            ("max_invalid_share", self.max_invalid_share),
        ];
        match shares.iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            Some((name, share)) => {
                Err(PluginError::configuration(format!("{name}: {share} is not from 0 to 1")))
            }
            None => Ok(()),
        }
    }

    fn check_model(&self) -> Result<(), PluginError> {
        let is_of_run = [POLICY, START].contains(&self.model.as_str());
        if is_of_run && self.revision.is_some() {
            let message = format!("revision: `{}` is a model of the run", self.model);
            return Err(PluginError::configuration(message).with_hint("leave it out"));
        }
        if self.model == POLICY && self.backend.is_some() {
            let message = "backend: the policy judges on the backend that it is trained on";
            return Err(PluginError::configuration(message).with_hint("leave it out"));
        }
        Ok(())
    }

    fn check_pair_preference(&self) -> Result<(), PluginError> {
        let set = [
            ("system", self.system.is_some()),
            ("template_file", self.template_file.is_some()),
            ("answer_prefix", self.answer_prefix.is_some()),
            ("label_tie", self.label_tie.is_some()),
        ];
        let Some((name, _)) = set.iter().find(|(_, is_set)| *is_set) else { return Ok(()) };
        let message = format!("{name}: the preset `pair-preference` has a form of its own");
        Err(PluginError::configuration(message)
            .with_hint("leave it out, or take `preset = \"chat\"`"))
    }
}
