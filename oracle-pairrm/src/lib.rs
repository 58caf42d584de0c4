//! The oracle `pairrm`: [PairRM](https://huggingface.co/llm-blender/PairRM) (arXiv 2306.02561) reads a
//! prompt and two answers and says which is better, the judge of the paper's experiments.
//!
//! Each pair of answers becomes a sequence of tokens (`layout`), as LLM-Blender lays them out with a
//! batch size of 1. The logits of all pairs (`pairs`) are the verdict; the core makes probabilities of
//! them. The network itself runs on a backend, which the oracle asks its host for.

mod config;
mod layout;
mod oracle;
mod pairs;

pub use config::{Orders, PairrmConfig, PromptView};
pub use oracle::PairrmOracle;
