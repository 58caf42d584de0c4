//! The tables that people, other tools and the stages exchange, with the column names of the official
//! repository (uclaml/SPPO, `scripts/compute_prob.py`).

mod answers;
mod candidates;
mod columns;
mod forms;
mod labelled;
mod pairs;
mod prompts;
mod roles;
mod scores;
mod stored;
mod text;
mod to_examples;

pub use answers::{AnsweredPrompt, answers_to, read_answers};
pub use candidates::{
    CandidateSet, RankedCandidates, read_candidates, read_candidates_named, write_candidates,
    write_ranked,
};
pub use columns::{ColumnNames, OneOrMore};
pub use labelled::{LabelledPair, read_labelled_pairs};
pub use pairs::{
    Contradictions, Pair, PairContent, PairTargets, pair_candidates, parse_pairs, read_pairs,
    read_pairs_named, write_pairs,
};
pub use prompts::{
    PromptSet, PromptSettings, PromptsPerIteration, parse_prompts, read_prompts,
    read_prompts_named, write_prompts,
};
pub use scores::{
    ScoreContent, ScoreRequest, ScoredResponse, read_score_requests, read_score_requests_named,
};
pub use stored::{Stored, write_generated};
pub use to_examples::{check_tokens, to_example};

#[cfg(test)]
mod other_forms;
#[cfg(test)]
mod parquet_kinds;
#[cfg(test)]
mod tests;
