//! The table `[oracle.http.genrm]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Questions of `nvidia-genrm`, and the meaning of its rankings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GenrmConfig {
    /// A principle to judge by, for models that take one; none is sent when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principle: Option<String>,
    /// The probability that the first answer is better for each ranking from 1 (it is much better) to 6 (the second
    /// one is).
    pub probabilities: [f64; 6],
    /// Sampling temperature of the model.
    pub temperature: f64,
    /// Nucleus of its sampling.
    pub top_p: f64,
    /// Longest reply, in tokens, the thought included.
    pub max_tokens: u32,
}

impl Default for GenrmConfig {
    fn default() -> Self {
        Self {
            principle: None,
            probabilities: [0.95, 0.8, 0.6, 0.4, 0.2, 0.05],
            temperature: 0.6,
            top_p: 0.95,
            max_tokens: 16384,
        }
    }
}
