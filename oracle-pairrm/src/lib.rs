//! The oracle `pairrm`: [PairRM](https://huggingface.co/llm-blender/PairRM) (arXiv 2306.02561) reads a
//! prompt and two responses and says which is better, the judge of the paper's experiments.
//!
//! Each pair of responses becomes a sequence of tokens (`sequence`), as in LLM-Blender with a batch
//! size of 1. The logits of all pairs (`pairs`) are the verdict; the core makes probabilities of
//! them. The network itself runs on a backend, which the oracle asks its host for.

mod oracle;
mod pairs;
mod sequence;

pub use oracle::{PairrmConfig, PairrmOracle, PromptView};
pub use sppo_plugin::pairwise::Orders;
