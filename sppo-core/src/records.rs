//! Records that the stages of an iteration hand to each other and leave in the run directory.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::plugin::order::OrderMatrix;
use crate::plugin::{Conversation, FinishReason};
use crate::preference::PreferenceMatrix;
use crate::stages::JudgedComparison;
use crate::win_rate::{Preferences, VerdictKind};

/// A prompt of the run's prompt set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// Position in the prompt set; keys the random draws.
    pub id: u64,
    /// The conversation, ending with the user's turn.
    pub messages: Conversation,
}

/// One sampled response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The text, special tokens left out.
    pub text: String,
    /// The sampled tokens, the end token included. These are trained on.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under the policy that sampled it.
    pub log_probs: Vec<f32>,
    /// Reason for its end.
    pub finish_reason: FinishReason,
}

/// A prompt and its K sampled responses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// The prompt.
    pub prompt: Prompt,
    /// The prompt as rendered by the chat template.
    pub rendered_prompt: String,
    /// The prompt's tokens.
    pub prompt_tokens: Vec<u32>,
    /// The K responses.
    pub responses: Vec<Response>,
}

/// Length of responses, and how often the model ended them itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResponseStatistics {
    /// Number of responses.
    pub count: usize,
    /// Mean length in tokens; 0 without responses.
    pub mean_tokens: f64,
    /// Share that ended with an end token; 0 without responses.
    pub stop_rate: f64,
}

impl ResponseStatistics {
    /// Statistics of all responses of these rollouts.
    #[must_use]
    pub fn of(rollouts: &[Rollout]) -> Self {
        let (mut count, mut tokens, mut stopped) = (0usize, 0usize, 0usize);
        for response in rollouts.iter().flat_map(|rollout| &rollout.responses) {
            count += 1;
            tokens += response.tokens.len();
            stopped += usize::from(response.finish_reason == FinishReason::Stop);
        }
        let divisor = count.max(1) as f64;
        Self { count, mean_tokens: tokens as f64 / divisor, stop_rate: stopped as f64 / divisor }
    }
}

impl fmt::Display for ResponseStatistics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, mean_tokens, stop_rate } = self;
        let percent = 100.0 * stop_rate;
        write!(
            formatter,
            "{count} answers, {mean_tokens:.0} tokens on average, {percent:.0} % ended by themselves"
        )
    }
}

/// The preferences among the responses of one rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgment {
    /// The prompt's id.
    pub prompt_id: u64,
    /// `P[i][j]` = P(response i beats response j).
    #[serde(rename = "probability")]
    pub matrix: PreferenceMatrix,
    /// One score per response, by which best and worst are chosen.
    #[serde(rename = "rm_scores")]
    pub scores: Vec<f64>,
    /// The oracle's word in each order of presentation, the response of the row read first; `None` where it
    /// tells of no order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_first: Option<OrderMatrix>,
    /// Pairs that the oracle was asked about, the lower index first; `None` for all. The other probabilities
    /// follow from these.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "pair_lists")]
    pub asked_pairs: Option<Vec<(usize, usize)>>,
    /// The oracle's own probabilities, where a price of length or labels took their place.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "oracle_probability")]
    pub oracle_matrix: Option<PreferenceMatrix>,
}

impl Judgment {
    /// The judgment of the prompt of this id.
    #[must_use]
    pub fn new(prompt_id: u64, judged: JudgedComparison) -> Self {
        let JudgedComparison { preferences, asked_pairs, oracle_matrix } = judged;
        let Preferences { matrix, scores, orders: read_first, .. } = preferences;
        Self { prompt_id, matrix, scores, read_first, asked_pairs, oracle_matrix }
    }

    /// The oracle's own probabilities.
    #[must_use]
    pub fn of_oracle(&self) -> &PreferenceMatrix {
        self.oracle_matrix.as_ref().unwrap_or(&self.matrix)
    }

    /// Whether the oracle was asked about responses `low` and `high`, given in this order.
    #[must_use]
    pub fn was_asked(&self, low: usize, high: usize) -> bool {
        self.asked_pairs.as_ref().is_none_or(|asked| asked.contains(&(low, high)))
    }
}

/// Pairs as lists of two, which tables have a column for.
mod pair_lists {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Pairs = Option<Vec<(usize, usize)>>;

    pub(super) fn serialize<S: Serializer>(
        pairs: &Pairs,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let lists = |pairs: &Vec<(usize, usize)>| -> Vec<Vec<u64>> {
            pairs.iter().map(|&(low, high)| vec![low as u64, high as u64]).collect()
        };
        pairs.as_ref().map(lists).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Pairs, D::Error> {
        let Some(lists) = Option::<Vec<Vec<u64>>>::deserialize(deserializer)? else {
            return Ok(None);
        };
        let pair = |list: Vec<u64>| match list.as_slice() {
            [low, high] => Ok((*low as usize, *high as usize)),
            // The columns of a table are found out by reading lists of one value.
            [only] => Ok((*only as usize, *only as usize)),
            _ => Err(D::Error::custom(format!("a pair of {} responses", list.len()))),
        };
        lists.into_iter().map(pair).collect::<Result<_, _>>().map(Some)
    }
}

/// The oracle's word on two answers to one prompt: the probability that the challenger's is preferred, in each
/// order of presentation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DuelVerdict {
    /// Probability where the challenger's answer is read first.
    pub read_first: f64,
    /// Probability where it is read second.
    pub read_second: f64,
}

impl DuelVerdict {
    /// The mean over both orders: an oracle may prefer what it reads first, and of two equal answers each wins
    /// half of the time.
    #[must_use]
    pub fn win_probability(&self) -> f64 {
        0.5 * (self.read_first + self.read_second)
    }

    /// The duel of two candidates, the challenger's first. Both orders are told where their mean is what the
    /// oracle prefers: that of a ranker's logits is left to its estimator.
    pub(crate) fn of(preferences: &Preferences) -> Self {
        let matrix = &preferences.matrix;
        let is_mean = preferences.kind == VerdictKind::Probabilities;
        let orders = preferences.orders.as_ref().filter(|_| is_mean);
        let of_orders = orders.and_then(|orders| Some((orders.get(0, 1)?, orders.get(1, 0)?)));
        let (first, other_first) = of_orders.unwrap_or((matrix.get(0, 1), matrix.get(1, 0)));
        Self { read_first: first, read_second: 1.0 - other_first }
    }
}

/// The oracle's judgment of a model's answers to one held-out prompt against those of an earlier model, sample
/// against sample, in both orders of presentation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOutDuels {
    /// The iteration that made the earlier model; 0 is the starting model.
    pub against: u32,
    /// The prompt's id.
    pub prompt_id: u64,
    /// P(the model's answer is preferred), by sample, where the oracle reads it first.
    pub read_first: Vec<f64>,
    /// The same where the oracle reads it second.
    pub read_second: Vec<f64>,
}

impl HeldOutDuels {
    /// The judgment of the duels on a prompt.
    #[must_use]
    pub fn new(against: u32, prompt_id: u64, duels: &[DuelVerdict]) -> Self {
        Self {
            against,
            prompt_id,
            read_first: duels.iter().map(|duel| duel.read_first).collect(),
            read_second: duels.iter().map(|duel| duel.read_second).collect(),
        }
    }

    /// The duels, one per sample.
    #[must_use]
    pub fn duels(&self) -> Vec<DuelVerdict> {
        let orders = self.read_first.iter().zip(&self.read_second);
        orders.map(|(&read_first, &read_second)| DuelVerdict { read_first, read_second }).collect()
    }
}

/// One response that is trained on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingResponse {
    /// The text, for people.
    pub text: String,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// The prompt's tokens before this response, where they differ from the example's: the official
    /// tokenisation lets a response change the prompt's last token.
    #[serde(default, rename = "own_prompt_tokens")]
    pub prompt_tokens_override: Option<Vec<u32>>,
    /// Estimated probability of beating the current policy, in `[0, 1]`.
    pub win_rate: f64,
    /// Summed log-probability under the reference policy, once known.
    pub reference_log_prob: Option<f64>,
    /// Mean logit against all K responses, where the targets are scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Summed log-probability under the starting model, where the objective needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starting_log_prob: Option<f64>,
    /// Summed log-probabilities under the policies before the reference policy, the latest first, where the
    /// objective needs them. There may be none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earlier_log_probs: Option<Vec<f64>>,
}

/// A prompt with the responses to train on: `[chosen, rejected]`, or all K.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingExample {
    /// The prompt's id.
    pub prompt_id: u64,
    /// The conversation.
    pub messages: Conversation,
    /// The prompt's tokens.
    pub prompt_tokens: Vec<u32>,
    /// The responses, the best first and the worst last.
    pub responses: Vec<TrainingResponse>,
    /// `P[chosen][rejected]` when there are two responses (official: `chosen_probs`).
    pub chosen_probability: Option<f64>,
    /// Win rates of all K sampled responses, or their scores where the responses have scores, where the targets'
    /// baseline is made of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values_of_all: Option<Vec<f64>>,
}
