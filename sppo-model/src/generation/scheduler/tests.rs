use serde_json::json;
use sppo_plugin::{SamplingParameters, SilentHost};

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

#[test]
fn rows_take_the_pages_that_they_fill_and_a_short_cache_changes_no_response() {
    let (decoder, parameters) = decoder();
    let request = request();
    let everything = GenerationLimits::default();
    let roomy =
        generate(&ReferenceOps, &decoder, &parameters, &request, &[END], &everything, &SilentHost);
    let roomy = roomy.unwrap();
    let lengths: Vec<usize> = roomy.iter().map(|response| response.tokens.len()).collect();
    let (total, longest) = (lengths.iter().sum::<usize>(), lengths.iter().max().unwrap());
    assert!(*longest > 1000 && total > 8000, "{lengths:?}");

    // Room for four rows of the full length, and for five of what they are expected to need.
    let slot_bytes = 2 * 4 * ReferenceOps.cache_number_bytes();
    let limits = GenerationLimits { cache_bytes: 4 * LONGEST * slot_bytes, ..everything };
    let sampler = Sampler::new(&request.sampling, &[END]).unwrap();
    let mut scheduler =
        Scheduler::new(&ReferenceOps, &decoder, &parameters, &request, sampler, &limits).unwrap();
    let plan = scheduler.pages.plan();
    assert!(plan.slots() <= 4 * LONGEST, "{plan:?}");
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
    println!("{most_rows} rows at once, {interruptions} waits of interrupted rows");
    assert!((6..40).contains(&most_rows), "{most_rows}");
    assert!(interruptions > 0, "rows were never interrupted");
    assert_eq!(scheduler.into_responses().unwrap(), roomy);
}
