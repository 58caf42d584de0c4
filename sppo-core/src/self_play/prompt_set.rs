//! The prompts of a run.

use sha2::{Digest, Sha256};

use crate::records::Prompt;

/// The prompts of a run.
#[derive(Clone, Debug)]
pub struct PromptSet {
    /// Sampled from and trained on.
    pub training: Vec<Prompt>,
    /// Only sampled from, to compare models.
    pub held_out: Vec<Prompt>,
}

impl PromptSet {
    /// SHA-256 over the roles and texts of all prompts in order, in hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for part in [&self.training, &self.held_out] {
            hash.update((part.len() as u64).to_le_bytes());
            for message in part.iter().flat_map(|prompt| &prompt.messages) {
                for text in [&message.role, &message.content] {
                    hash.update((text.len() as u64).to_le_bytes());
                    hash.update(text.as_bytes());
                }
            }
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
