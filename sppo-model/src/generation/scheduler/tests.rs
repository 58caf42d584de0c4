use serde_json::json;
use sppo_plugin::{GeneratedResponse, SamplingParameters, SilentHost};

use super::*;
use crate::decoder::{DecoderConfig, DecoderWeights, tensor_layout};
use crate::ops::random::Noise;
use crate::ops::reference::ReferenceOps;

const LONGEST: usize = 2048;
const END: u32 = 7;

/// A decoder of one layer with a long context, and its weights.
fn decoder() -> (Decoder, ParameterStore<ReferenceOps>) {
    let config = json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 400,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    let config = DecoderConfig::from_hugging_face(&config, "config.json".as_ref()).unwrap();
    let layout = tensor_layout(&config);
    let mut noise = Noise(1);
    let mut tensor = |name: &str| {
        let shape = layout.iter().find(|tensor| tensor.name == name).unwrap().shape.clone();
        let values = noise.values(shape.iter().product());
        Ok((shape, values))
    };
    let (weights, parameters) =
        DecoderWeights::load(&ReferenceOps, &config, &mut tensor, false).unwrap();
    (Decoder::new(config, weights), parameters)
}

/// Forty responses of up to 2048 tokens.
fn request() -> GenerationRequest {
    let prompt = |id: u64| GenerationPrompt { id, tokens: (0..20 + id as u32).collect() };
    GenerationRequest {
        prompts: (0..8).map(prompt).collect(),
        samples_per_prompt: 5,
        sampling: SamplingParameters { max_new_tokens: LONGEST, ..Default::default() },
        seed: 3,
        stream: 0,
    }
}

/// Generates with room for so many slots, and checks after each step that rows hold what they use and at most one page
/// more each. Returns the responses, the largest number of rows at once and how often rows waited to start again.
fn generate_within(
    slots: usize,
    request: &GenerationRequest,
) -> (Vec<GeneratedResponse>, usize, usize) {
    let (decoder, parameters) = decoder();
    let slot_bytes = 2 * 4 * ReferenceOps.cache_number_bytes();
    let limits = GenerationLimits { cache_bytes: slots * slot_bytes, ..Default::default() };
    let sampler = Sampler::new(&request.sampling, &[END]).unwrap();
    let mut scheduler =
        Scheduler::new(&ReferenceOps, &decoder, &parameters, request, sampler, &limits).unwrap();
    let plan = scheduler.pages.plan();
    assert!(plan.slots() <= slots, "{plan:?}");
    let (mut most_rows, mut interruptions) = (0, 0);
    while !scheduler.is_done() {
        scheduler.admit().unwrap();
        most_rows = most_rows.max(scheduler.rows.len());
        scheduler.decode().unwrap();
        interruptions += scheduler.interrupted.len();
        let taken = scheduler.pages.held_slots();
        let used: usize = scheduler.rows.iter().map(Row::own_tokens).sum();
        assert!(taken <= used + plan.page_slots * scheduler.rows.len(), "{taken} slots for {used}");
    }
    (scheduler.into_responses().unwrap(), most_rows, interruptions)
}

/// Responses with room for all of them.
fn generate_roomily(request: &GenerationRequest) -> Vec<GeneratedResponse> {
    let (decoder, parameters) = decoder();
    let everything = GenerationLimits::default();
    generate(&ReferenceOps, &decoder, &parameters, request, &[END], &everything, &SilentHost)
        .unwrap()
}

#[test]
fn rows_take_the_pages_that_they_fill_and_a_short_cache_changes_no_response() {
    let request = request();
    let roomy = generate_roomily(&request);
    let lengths: Vec<usize> = roomy.iter().map(|response| response.tokens.len()).collect();
    let (total, longest) = (lengths.iter().sum::<usize>(), lengths.iter().max().unwrap());
    assert!(*longest > 1000 && total > 8000, "{lengths:?}");
    // Room for four rows of the full length.
    let (responses, most_rows, _) = generate_within(4 * LONGEST, &request);
    assert!((6..40).contains(&most_rows), "{most_rows}");
    assert_eq!(responses, roomy);
}

#[test]
fn rows_that_outgrow_what_was_expected_of_them_start_again_and_end_the_same() {
    let mut request = request();
    request.sampling.max_new_tokens = 512;
    request.sampling.min_new_tokens = 450;
    let (responses, most_rows, interruptions) = generate_within(4 * 512, &request);
    assert!(most_rows > 4 && interruptions > 0, "{most_rows} rows, {interruptions} interruptions");
    assert_eq!(responses, generate_roomily(&request));
}
