//! Files of criteria.

use std::path::Path;

use fs_err as fs;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sppo_plugin::PluginError;

/// A criterion of a rubric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Criterion {
    /// The property that an answer should have, in words.
    pub(super) criterion: String,
    /// Its weight beside the others; below 0 where answers should not meet it.
    #[serde(default = "one")]
    pub(super) weight: f64,
}

/// The criteria of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rubric {
    pub(super) criteria: Vec<Criterion>,
}

impl Rubric {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is no list of criteria, or one of them says or weighs nothing.
    pub(super) fn read(path: &Path) -> Result<Self, PluginError> {
        let refused = |reason: String| {
            PluginError::configuration(format!("rubric.file: {}: {reason}", path.display())).with_hint(
                "it is a list such as [{\"criterion\": \"The answer names a source.\", \"weight\": 2}]",
            )
        };
        let text = fs::read_to_string(path)
            .map_err(|error| PluginError::configuration(format!("rubric.file: {error}")))?;
        let criteria: Vec<Criterion> =
            serde_json::from_str(&text).map_err(|error| refused(error.to_string()))?;
        if criteria.is_empty() {
            return Err(refused("there are no criteria".into()));
        }
        for (index, Criterion { criterion, weight }) in criteria.iter().enumerate() {
            let number = index + 1;
            if criterion.trim().is_empty() {
                return Err(refused(format!("criterion {number} says nothing")));
            }
            if !weight.is_finite() || *weight == 0.0 {
                return Err(refused(format!("the weight of criterion {number} is {weight}")));
            }
        }
        Ok(Self { criteria })
    }

    pub(super) fn weights(&self) -> Vec<f64> {
        self.criteria.iter().map(|one| one.weight).collect()
    }

    /// A short name of the content.
    pub(super) fn digest(&self) -> String {
        let content = serde_json::json!(self.criteria).to_string();
        let digest: [u8; 32] = Sha256::digest(content).into();
        digest[..6].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn one() -> f64 {
    1.0
}
