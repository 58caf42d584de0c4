//! Stage 1: the policy samples K responses to each prompt.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tokenize::{TokenizationRule, tokenize_prompt};
use crate::error::Result;
use crate::plugin::check::{self, Check};
use crate::plugin::{
    Codec, GeneratedResponse, GenerationPrompt, GenerationRequest, PluginError, Progress, Sampler,
    SamplingParameters,
};
use crate::records::{Prompt, Response, Rollout};

/// Settings of one sampling pass over some prompts.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingPass {
    /// Responses per prompt (K).
    pub samples_per_prompt: usize,
    /// Distribution of the tokens.
    pub parameters: SamplingParameters,
    /// Rule by which prompts become tokens.
    pub tokenization: TokenizationRule,
    /// The run's seed.
    pub seed: u64,
    /// Separates passes that use the same seed; see [`GenerationRequest::stream`].
    pub stream: u64,
}

impl SamplingPass {
    /// Most tokens that responses to so many prompts can have.
    #[must_use]
    pub fn most_tokens(&self, prompts: usize) -> u64 {
        (prompts * self.samples_per_prompt * self.parameters.max_new_tokens) as u64
    }
}

/// Settings of the section `[sampling]`: how many responses, and the way they are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingSettings {
    /// Responses per prompt (K in the paper), at least 2.
    pub samples_per_prompt: usize,
    /// Divisor of the logits before sampling; 0 takes the most probable token.
    pub temperature: f64,
    /// Probability that the most probable tokens must reach together to be kept; 1 keeps all.
    pub top_p: f64,
    /// Number of most probable tokens that are kept; 0 keeps all.
    pub top_k: usize,
    /// Smallest probability that is kept, as a share of the most probable token's, after temperature,
    /// `top_k` and `top_p`; 0 keeps all.
    pub min_p: f64,
    /// Longest response, in tokens, the stop token included.
    pub max_new_tokens: usize,
    /// Tokens before which no stop token is drawn.
    pub min_new_tokens: usize,
    /// Prompts whose responses and judgments are committed together.
    pub prompts_per_shard: usize,
}

impl Default for SamplingSettings {
    fn default() -> Self {
        let SamplingParameters { temperature, top_p, top_k, min_p, min_new_tokens, .. } =
            SamplingParameters::default();
        Self {
            samples_per_prompt: 5,
            temperature,
            top_p,
            top_k,
            min_p,
            max_new_tokens: 512,
            min_new_tokens,
            prompts_per_shard: 64,
        }
    }
}

impl SamplingSettings {
    /// The part that a sampler takes.
    #[must_use]
    pub fn parameters(&self) -> SamplingParameters {
        SamplingParameters {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            max_new_tokens: self.max_new_tokens,
            min_new_tokens: self.min_new_tokens,
        }
    }

    /// Checks the ranges, for self-play: its responses must differ to be compared.
    ///
    /// # Errors
    /// When a value is out of its range, or all responses to a prompt would be the same.
    pub fn check(&self) -> Check {
        check::require(
            self.samples_per_prompt >= 2,
            "samples_per_prompt",
            format!("{} answers per prompt cannot be compared", self.samples_per_prompt),
            "give at least 2; the paper uses 5",
        )?;
        self.parameters().check()?;
        check::require(
            self.temperature > 0.0,
            "temperature",
            "at 0 all answers to a prompt are the same, and nothing is left to compare",
            "give a number above 0, for instance 1.0",
        )?;
        check::at_least_one("prompts_per_shard", self.prompts_per_shard as u64)
    }
}

/// Samples K responses to each prompt (Algorithm 1, line 4). The prompts come in parts: replicas of the
/// policy sample parts at the same time, and a part's responses do not depend on the others.
///
/// # Errors
/// When a prompt cannot be rendered or leaves no room in the context, or the sampler fails or
/// returns something impossible.
pub fn sample(
    sampler: &mut dyn Sampler,
    parts: &[&[Prompt]],
    pass: &SamplingPass,
    progress: &dyn Progress,
) -> Result<Vec<Vec<Rollout>>> {
    let rendered: Vec<Vec<Rendered<'_>>> = parts
        .iter()
        .map(|prompts| prompts.iter().map(|prompt| Rendered::new(sampler, prompt, pass)).collect())
        .collect::<Result<_>>()?;
    let requests: Vec<GenerationRequest> =
        rendered.iter().map(|prompts| request(prompts, pass)).collect();
    let generated = sampler.generate_each(&requests, progress)?;
    validate(&generated, &requests)
        .map_err(|message| PluginError::failed(message).of_plugin(sampler.plugin()))?;
    let of_part = |(prompts, generated)| rollouts(sampler, prompts, generated, pass);
    rendered.into_iter().zip(generated).map(of_part).collect()
}

/// A prompt as the model reads it.
struct Rendered<'a> {
    prompt: &'a Prompt,
    text: String,
    tokens: Vec<u32>,
}

impl<'a> Rendered<'a> {
    fn new(codec: &dyn Codec, prompt: &'a Prompt, pass: &SamplingPass) -> Result<Self> {
        let (text, tokens) = tokenize_prompt(codec, &prompt.messages, pass.tokenization)?;
        Ok(Self { prompt, text, tokens })
    }
}

fn request(prompts: &[Rendered<'_>], pass: &SamplingPass) -> GenerationRequest {
    GenerationRequest {
        prompts: prompts
            .iter()
            .map(|Rendered { prompt, tokens, .. }| GenerationPrompt {
                id: prompt.id,
                tokens: tokens.clone(),
            })
            .collect(),
        samples_per_prompt: pass.samples_per_prompt,
        sampling: pass.parameters.clone(),
        seed: pass.seed,
        stream: pass.stream,
    }
}

/// Prompts with the responses that were generated to each.
fn rollouts(
    codec: &dyn Codec,
    prompts: Vec<Rendered<'_>>,
    generated: Vec<GeneratedResponse>,
    pass: &SamplingPass,
) -> Result<Vec<Rollout>> {
    let mut generated = generated.into_iter();
    prompts
        .into_iter()
        .map(|Rendered { prompt, text, tokens }| {
            let responses = generated
                .by_ref()
                .take(pass.samples_per_prompt)
                .map(|response| with_text(codec, response))
                .collect::<Result<Vec<_>>>()?;
            let prompt = prompt.clone();
            Ok(Rollout { prompt, rendered_prompt: text, prompt_tokens: tokens, responses })
        })
        .collect()
}

fn with_text(codec: &dyn Codec, response: GeneratedResponse) -> Result<Response> {
    let text = codec.decode(&response.tokens)?;
    let GeneratedResponse { tokens, log_probs, finish_reason } = response;
    Ok(Response { text, tokens, log_probs, finish_reason })
}

/// A backend is foreign code: what it returns is checked before anything is built on it.
fn validate(
    generated: &[Vec<GeneratedResponse>],
    requests: &[GenerationRequest],
) -> std::result::Result<(), String> {
    let (asked, returned) = (requests.len(), generated.len());
    if returned != asked {
        return Err(format!("asked for responses to {asked} requests, it returned {returned}"));
    }
    for (generated, request) in generated.iter().zip(requests) {
        let expected = request.prompts.len() * request.samples_per_prompt;
        if generated.len() != expected {
            return Err(format!("asked for {expected} responses, it returned {}", generated.len()));
        }
    }
    for (index, response) in generated.iter().flatten().enumerate() {
        if response.tokens.is_empty() || response.tokens.len() != response.log_probs.len() {
            return Err(format!(
                "response {index} has {} tokens and {} log-probabilities",
                response.tokens.len(),
                response.log_probs.len()
            ));
        }
        if let Some(value) =
            response.log_probs.iter().find(|value| value.is_nan() || **value > 1e-3)
        {
            return Err(format!("response {index} has a log-probability of {value}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::plugin::{FinishReason, Message, PolicyInfo, SilentHost};

    type Outcome<T> = std::result::Result<T, PluginError>;

    /// Another engine: no learner, but a source of responses that is handed a checkpoint's weights.
    struct Engine {
        info: PolicyInfo,
        weights: u32,
        responses: usize,
    }

    impl Codec for Engine {
        fn info(&self) -> &PolicyInfo {
            &self.info
        }

        fn plugin(&self) -> Option<&'static str> {
            Some("sampler `engine`")
        }

        fn render(&self, messages: &[Message], _prompt: bool) -> Outcome<String> {
            Ok(messages.iter().map(|message| &*message.content).collect())
        }

        fn encode(&self, text: &str, _special: bool) -> Outcome<Vec<u32>> {
            Ok(text.chars().map(u32::from).collect())
        }

        fn decode(&self, tokens: &[u32]) -> Outcome<String> {
            Ok(format!("{tokens:?}"))
        }
    }

    impl Sampler for Engine {
        fn generate(
            &mut self,
            request: &GenerationRequest,
            _progress: &dyn Progress,
        ) -> Outcome<Vec<GeneratedResponse>> {
            let ids = request.prompts.iter().map(|prompt| prompt.id as u32);
            let response = |id| GeneratedResponse {
                tokens: vec![self.weights, id],
                log_probs: vec![-0.5, -0.25],
                finish_reason: FinishReason::Stop,
            };
            Ok(ids.flat_map(|id| vec![response(id); self.responses]).collect())
        }

        fn load_weights(&mut self, checkpoint: &Path) -> Outcome<()> {
            self.weights = checkpoint.to_string_lossy().len() as u32;
            Ok(())
        }
    }

    fn engine(responses: usize) -> Engine {
        let info = PolicyInfo {
            architecture: "engine".into(),
            parameter_count: 0,
            layer_matrix_parameters: 0,
            head_parameters: 0,
            vocabulary_size: 1 << 21,
            context_length: 1024,
            bos_token: None,
            eos_token: None,
            stop_tokens: Vec::new(),
            device: "elsewhere".into(),
            dtype: "f32".into(),
            replicas: 1,
        };
        Engine { info, weights: 0, responses }
    }

    fn sampled(engine: &mut Engine) -> Result<Vec<Rollout>> {
        let prompt = |id| Prompt { id, messages: vec![Message::user("question")] };
        let pass = SamplingPass {
            samples_per_prompt: 2,
            parameters: SamplingParameters::default(),
            tokenization: TokenizationRule::Clean,
            seed: 1,
            stream: 1,
        };
        let prompts = [prompt(3), prompt(4)];
        let parts = sample(engine, &[&prompts[..1], &prompts[1..]], &pass, &SilentHost)?;
        Ok(parts.concat())
    }

    #[test]
    fn a_sampler_that_is_not_the_policy_takes_weights_and_answers() {
        let mut engine = engine(2);
        let tokens = |rollouts: &[Rollout]| -> Vec<Vec<u32>> {
            rollouts.iter().map(|rollout| rollout.responses[1].tokens.clone()).collect()
        };
        assert_eq!(tokens(&sampled(&mut engine).unwrap()), [[0, 3], [0, 4]]);
        engine.load_weights(Path::new("checkpoint")).unwrap();
        assert_eq!(tokens(&sampled(&mut engine).unwrap()), [[10, 3], [10, 4]]);
    }

    #[test]
    fn an_error_about_what_a_sampler_returned_names_the_sampler() {
        let error = sampled(&mut engine(1)).unwrap_err().to_string();
        assert_eq!(error, "sampler `engine`: asked for 2 responses, it returned 1");
    }
}
