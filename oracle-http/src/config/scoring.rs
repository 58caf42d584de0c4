//! The table `[oracle.http.scoring]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The texts that reward models see. The templates know `conversation` (the prompt as text), `messages`,
/// `prompt` (the user's last turn), `rendered_prompt` (the prompt as the policy's chat template renders
/// it; none when judging files) and `response`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ScoringConfig {
    /// Prompt and answer in one text. `openrlhf` joins the rendered prompt and the answer when it is
    /// left out; `vllm-classify` then sends the conversation as messages; `tei-predict` a pair of texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The prompt, where it is sent beside the answer (`vllm-score`, `tei-predict`, `tei-rerank`); the
    /// conversation when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_template: Option<String>,
    /// The class whose score counts, for models with several: its label (`tei-predict`) or its index
    /// (`vllm-classify`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
}
