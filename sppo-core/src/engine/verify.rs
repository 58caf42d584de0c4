//! The comparison of an engine's numbers with the policy's own.
//!
//! An engine may report success and hold other weights: a path that was not found, a tensor that was passed
//! over, keys and values of an earlier iteration in its cache. So fixed responses are scored on both sides,
//! and the engine draws a few tokens, as it draws responses, whose log-probabilities the policy checks.

use std::fmt;

use crate::error::Result;
use crate::plugin::{
    EndpointProbe, GeneratedResponse, GenerationPrompt, GenerationRequest, Learner, PluginError,
    Policy, SamplingParameters, SequenceBatch,
};
use crate::stages::SamplingPass;

/// The response whose log-probabilities are compared. Its words are ordinary, so that training moves them.
const ANSWER: &str = "The short answer is yes, but it depends on what you need. First, think about the \
                      goal; then try the simplest thing that could work, and see how it goes.";

/// Prompts that it follows.
const PROMPTS: usize = 4;

/// Tokens that the engine draws after each.
const DRAWN: usize = 8;

/// Iterations sample on their own streams, and evaluations on the last one.
const STREAM: u64 = u64::MAX - 1;

/// Movements per token below this are taken for rounding.
const STANDSTILL: f64 = 1e-6;

/// Advice where an engine holds other weights than it should.
pub(super) const HINT: &str = "see that the servers load the weights that they are given (path, mount, refresh, cached prefixes, a tied \
     head), and that they run this model with this tokenizer; docs/rollout-servers.md lists the causes";

/// Fixed sequences, the same for all weights of the work.
pub(super) struct ProbeSet {
    /// Responses to be scored.
    pub(super) given: SequenceBatch,
    /// What the engine draws, after these responses.
    pub(super) drawn: GenerationRequest,
}

impl ProbeSet {
    /// Probes on the shortest of the prompts, which fit into every context.
    pub(super) fn new(
        policy: &dyn Policy,
        mut prompts: Vec<Vec<u32>>,
        pass: &SamplingPass,
    ) -> Result<Self> {
        let answer = policy.encode(ANSWER, false)?;
        prompts.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
        prompts.dedup();
        let context = policy.info().context_length;
        let mut given = SequenceBatch::new();
        let mut continued = Vec::new();
        for prompt in prompts.into_iter().take(PROMPTS) {
            let room = context.saturating_sub(prompt.len() + DRAWN).clamp(1, answer.len().max(1));
            let answer = &answer[..room.min(answer.len())];
            let segment = given.push_prompt(&prompt);
            given.push_response(segment, answer);
            continued.push(GenerationPrompt {
                id: continued.len() as u64,
                tokens: [&prompt, answer].concat(),
            });
        }
        let sampling = SamplingParameters {
            max_new_tokens: DRAWN,
            min_new_tokens: 0,
            ..pass.parameters.clone()
        };
        let drawn = GenerationRequest {
            prompts: continued,
            samples_per_prompt: 1,
            sampling,
            seed: pass.seed,
            stream: STREAM,
        };
        Ok(Self { given, drawn })
    }
}

/// Numbers of an engine's endpoints about the same weights, beside the policy's own.
pub(super) struct Measured {
    /// The policy's log-probabilities of the given tokens.
    own: Vec<f64>,
    own_format: String,
    endpoints: Vec<Endpoint>,
}

struct Endpoint {
    name: String,
    number_format: String,
    /// Its log-probabilities of the given tokens.
    given: Vec<f64>,
    /// Its log-probabilities of the tokens that it drew, and the policy's.
    drawn: Vec<(f64, f64)>,
}

impl Measured {
    /// Computes the policy's own numbers.
    ///
    /// # Errors
    /// When the policy fails, or an endpoint's answer has another form than was asked for.
    pub(super) fn new(
        policy: &mut dyn Policy,
        probes: &ProbeSet,
        found: Vec<EndpointProbe>,
    ) -> Result<Self> {
        let own = policy.token_log_probs(&probes.given)?;
        let lengths: Vec<usize> = own.iter().map(Vec::len).collect();
        if found.is_empty() {
            return Err(PluginError::failed("it has no endpoints").into());
        }
        let mut endpoints = Vec::with_capacity(found.len());
        for EndpointProbe { endpoint, number_format, given, drawn } in found {
            let is_whole = given.iter().map(Vec::len).eq(lengths.iter().copied())
                && drawn.len() == probes.drawn.prompts.len()
                && drawn
                    .iter()
                    .all(|one| !one.tokens.is_empty() && one.tokens.len() == one.log_probs.len());
            if !is_whole {
                let message =
                    format!("{endpoint} returned other log-probabilities than it was asked for");
                return Err(PluginError::failed(message).into());
            }
            let drawn = beside_own(policy, &probes.drawn, &drawn)?;
            endpoints.push(Endpoint { name: endpoint, number_format, given: flat(&given), drawn });
        }
        let own_format = policy.info().dtype.clone();
        Ok(Self { own: flat(&own), own_format, endpoints })
    }

    pub(super) fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// Mean difference per token, the largest of all endpoints.
    pub(super) fn difference(&self) -> f64 {
        let differences = self.endpoints.iter().map(|one| mean_difference(&one.given, &self.own));
        differences.fold(0.0, f64::max)
    }

    /// Refuses numbers that are not the policy's; `limit` 0 stands for one that suits the number formats.
    pub(super) fn check(
        &self,
        limit: f64,
        before: Option<&Self>,
    ) -> std::result::Result<(), Mismatch> {
        for endpoint in &self.endpoints {
            let limit = match limit > 0.0 {
                true => limit,
                false => limit_of(&self.own_format).max(limit_of(&endpoint.number_format)),
            };
            self.check_given(endpoint, limit)?;
            if let Some(before) = before {
                self.check_movement(endpoint, before)?;
            }
            check_drawn(endpoint, limit)?;
        }
        Ok(())
    }

    fn check_given(&self, endpoint: &Endpoint, limit: f64) -> std::result::Result<(), Mismatch> {
        let difference = mean_difference(&endpoint.given, &self.own);
        require(difference <= limit, endpoint, "given tokens", (&endpoint.given, &self.own), || {
            format!("which differ by {difference:.2e} on average, and {limit:.0e} is the limit")
        })
    }

    /// Weights that have moved must have moved in the engine too: small steps stay below every limit.
    fn check_movement(
        &self,
        endpoint: &Endpoint,
        before: &Self,
    ) -> std::result::Result<(), Mismatch> {
        let Some(earlier) = before.endpoints.iter().find(|other| other.name == endpoint.name)
        else {
            return Ok(());
        };
        let noise = mean_difference(&earlier.given, &before.own);
        let moved = mean_difference(&self.own, &before.own);
        let same = "given tokens";
        let numbers = (&endpoint.given[..], &self.own[..]);
        if moved > 2.0 * noise + STANDSTILL {
            let to_new = mean_difference(&endpoint.given, &self.own);
            let to_old = mean_difference(&endpoint.given, &before.own);
            require(to_new < to_old, endpoint, same, numbers, || {
                format!(
                    "which are those of the iteration before ({to_old:.2e} away) rather than the new ones \
                     ({to_new:.2e} away)"
                )
            })?;
        }
        let is_same = endpoint.given == earlier.given && moved > STANDSTILL;
        require(!is_same, endpoint, same, numbers, || {
            format!(
                "which are to the last digit those of the iteration before, while they moved by {moved:.2e} here"
            )
        })
    }
}

/// Tokens that were drawn as responses are: with cached prefixes, and with a temperature.
fn check_drawn(endpoint: &Endpoint, limit: f64) -> std::result::Result<(), Mismatch> {
    let (there, here): (Vec<f64>, Vec<f64>) = endpoint.drawn.iter().copied().unzip();
    let difference = mean_difference(&there, &here);
    // These are fewer.
    let limit = 2.0 * limit;
    require(difference <= limit, endpoint, "tokens that it drew", (&there, &here), || {
        format!(
            "which differ by {difference:.2e} on average ({limit:.0e} is the limit), while those of given \
             tokens agree: it computes with cached prefixes of other weights, or reports log-probabilities \
             after the temperature (vLLM: --logprobs-mode raw_logprobs; SGLang: the environment variable \
             SGLANG_RETURN_ORIGINAL_LOGPROB=1)"
        )
    })
}

/// Largest mean difference per token that rounding explains in this number format. Measured: 3e-5 for f32
/// on both sides.
fn limit_of(number_format: &str) -> f64 {
    match number_format {
        "f32" | "float32" => 2e-3,
        "f16" | "float16" => 1e-2,
        "bf16" | "bfloat16" => 5e-2,
        _ => 0.1,
    }
}

fn flat(lists: &[Vec<f32>]) -> Vec<f64> {
    lists.iter().flatten().map(|value| f64::from(*value)).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Mean of the absolute differences; infinite where a number is none.
fn mean_difference(there: &[f64], here: &[f64]) -> f64 {
    let differences: Vec<f64> = there.iter().zip(here).map(|(a, b)| (a - b).abs()).collect();
    let mean = mean(&differences);
    if mean.is_nan() { f64::INFINITY } else { mean }
}

/// The log-probabilities of drawn tokens, each beside the policy's.
fn beside_own(
    policy: &mut dyn Learner,
    request: &GenerationRequest,
    drawn: &[GeneratedResponse],
) -> Result<Vec<(f64, f64)>> {
    let vocabulary = policy.info().vocabulary_size;
    let is_known = |token: &u32| (*token as usize) < vocabulary;
    if !drawn.iter().flat_map(|response| &response.tokens).all(is_known) {
        let message = format!("it drew a token beyond the {vocabulary} of the policy's vocabulary");
        return Err(PluginError::failed(message).into());
    }
    let mut batch = SequenceBatch::new();
    for (prompt, response) in request.prompts.iter().zip(drawn) {
        let segment = batch.push_prompt(&prompt.tokens);
        batch.push_response(segment, &response.tokens);
    }
    let own = flat(&policy.token_log_probs(&batch)?);
    let there = drawn.iter().flat_map(|response| &response.log_probs);
    Ok(there.map(|value| f64::from(*value)).zip(own).collect())
}

/// Other numbers than the policy's.
pub(super) struct Mismatch {
    endpoint: String,
    tokens: &'static str,
    /// Mean log-probability per token, there and here.
    means: (f64, f64),
    reason: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, tokens, means: (there, here), reason } = self;
        write!(
            formatter,
            "{endpoint} holds other weights than the policy: the mean log-probability of {tokens} is {there:.5} \
             there and {here:.5} here, {reason}"
        )
    }
}

fn require(
    holds: bool,
    endpoint: &Endpoint,
    tokens: &'static str,
    (there, here): (&[f64], &[f64]),
    reason: impl FnOnce() -> String,
) -> std::result::Result<(), Mismatch> {
    if holds {
        return Ok(());
    }
    Err(Mismatch {
        endpoint: endpoint.name.clone(),
        tokens,
        means: (mean(there), mean(here)),
        reason: reason(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(own: &[f64], there: &[f64], number_format: &str) -> Measured {
        let endpoint = Endpoint {
            name: "http://here".into(),
            number_format: number_format.into(),
            given: there.to_vec(),
            drawn: vec![(-1.0, -1.0)],
        };
        Measured { own: own.to_vec(), own_format: "f32".into(), endpoints: vec![endpoint] }
    }

    fn refusal(now: &Measured, before: Option<&Measured>) -> String {
        now.check(0.0, before).err().map(|mismatch| mismatch.to_string()).unwrap_or_default()
    }

    #[test]
    fn the_limit_depends_on_the_number_format() {
        let own = [-1.0, -2.0];
        let there = [-1.01, -2.01];
        assert!(refusal(&measured(&own, &there, "f32"), None).contains("2e-3 is the limit"));
        assert_eq!(refusal(&measured(&own, &there, "bf16"), None), "");
        assert_ne!(refusal(&measured(&own, &[f64::NAN, -2.0], "bf16"), None), "");
    }

    #[test]
    fn a_refresh_that_was_skipped_is_seen_below_every_limit() {
        // Both sides agree within 1e-5, and a small step moves everything by 4e-4.
        let before = measured(&[-1.0, -2.0], &[-1.00001, -2.0], "f32");
        let moved = [-1.0004, -2.0004];
        assert_eq!(refusal(&measured(&moved, &[-1.00041, -2.0004], "f32"), Some(&before)), "");
        let skipped = measured(&moved, &[-1.00001, -2.0], "f32");
        assert!(refusal(&skipped, Some(&before)).contains("the iteration before"));
        // The same where the engine's rounding hides the step.
        let rough = measured(&[-1.0, -2.0], &[-1.01, -2.0], "bf16");
        let skipped = measured(&moved, &[-1.01, -2.0], "bf16");
        assert!(refusal(&skipped, Some(&rough)).contains("to the last digit"));
        // Weights that did not move leave the numbers as they are.
        let still = measured(&[-1.0, -2.0], &[-1.00001, -2.0], "f32");
        assert_eq!(refusal(&still, Some(&before)), "");
    }

    #[test]
    fn drawn_tokens_that_disagree_alone_are_told_apart() {
        let mut found = measured(&[-1.0], &[-1.0], "f32");
        found.endpoints[0].drawn = vec![(-0.5, -1.0)];
        assert!(refusal(&found, None).contains("raw_logprobs"));
    }
}
