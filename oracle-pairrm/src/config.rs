//! The settings of the oracle, the table `[oracle.pairrm]`.

use schemars::JsonSchema;
use serde::Deserialize;

/// Which ranker judges, where it computes, and what it gets to see.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PairrmConfig {
    /// A directory, or a model on the Hugging Face hub, in the layout of `llm-blender/PairRM` or of
    /// `llm-blender/PairRM-hf`.
    pub model: String,
    /// A branch, tag or commit of the model on the hub; its main branch when left out.
    pub revision: Option<String>,
    /// The backend that the ranker computes on, with its own settings; the run's when left out.
    pub backend: Option<String>,
    /// Whether each pair is shown in both orders, as the released code does, or in one at half the cost.
    pub orders: Orders,
    /// How the ranker sees prompts.
    pub prompt_view: PromptView,
    /// Tokens that are computed together, at most, unless one pair has more. It changes memory and
    /// speed, not the result.
    pub batch_tokens: usize,
}

impl Default for PairrmConfig {
    fn default() -> Self {
        Self {
            model: "llm-blender/PairRM".into(),
            revision: None,
            backend: None,
            orders: Orders::default(),
            prompt_view: PromptView::default(),
            batch_tokens: 2048,
        }
    }
}

/// In which orders the two answers of a pair are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Orders {
    /// Both: K (K - 1) comparisons of K answers.
    #[default]
    Both,
    /// One; the other is taken to be its opposite. Which answer comes first follows from the texts,
    /// evenly.
    One,
}

/// How the ranker sees prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PromptView {
    /// As the policy's chat template renders them, its control tokens as text: what the released code
    /// does. Prompts of a file, for which no policy is loaded, are shown as with `raw`.
    #[default]
    Templated,
    /// As the user wrote them. A longer conversation is shown as lines `USER: ...` and
    /// `ASSISTANT: ...`.
    Raw,
}
