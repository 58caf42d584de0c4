//! A model whose weights are all of bf16 does the same with matrices kept in bf16 as in f32, bit for
//! bit: where adapters are trained they are kept so, where all weights are trained they are not.

use std::path::Path;

use sppo_backend_candle::CandleOps;
use sppo_model::DecoderModel;
use sppo_model::checkpoint::Checkpoint;
use sppo_model::ops::Ops;
use sppo_plugin::{
    GenerationPrompt, GenerationRequest, LoraSettings, SamplingParameters, SequenceBatch,
    SilentHost,
};

fn ops() -> CandleOps {
    CandleOps::new(2, 512 << 20).unwrap()
}

#[test]
fn matrices_in_bf16_change_no_log_probability_and_no_answer() {
    for family in ["llama", "qwen2", "gemma2"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/lm").join(family);
        let checkpoint = Checkpoint::open(&path).unwrap();
        let source = &mut |name: &str| {
            let mut tensor = checkpoint.tensor(name)?;
            for value in &mut tensor.values {
                *value = f32::from_bits(value.to_bits() >> 16 << 16);
            }
            Ok((tensor.shape, tensor.values))
        };
        let config = checkpoint.config();
        let mut full = DecoderModel::load(ops(), config, source).unwrap();
        let settings = LoraSettings {
            rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            target_modules: vec!["q_proj".into(), "down_proj".into()],
            rank_stabilized: false,
            seed: 0,
        };
        let fresh = &mut |_: &str, _| Ok(None);
        let mut half = DecoderModel::load_adapted(ops(), config, source, &settings, fresh).unwrap();

        let mut batch = SequenceBatch::new();
        for length in [3, 90] {
            let tokens: Vec<u32> = (0..length).map(|place| (place * 7 + length) % 500).collect();
            let prompt = batch.push_prompt(&tokens[..2]);
            batch.push_response(prompt, &tokens[2..]);
        }
        let log_probs = full.token_log_probs(&batch).unwrap();
        assert_eq!(half.token_log_probs(&batch).unwrap(), log_probs, "{family}");

        let prompts = (0..3).map(|id| GenerationPrompt {
            id,
            tokens: (0..40).map(|place| (place * 11 + id as u32) % 500).collect(),
        });
        let request = GenerationRequest {
            prompts: prompts.collect(),
            samples_per_prompt: 2,
            sampling: SamplingParameters { max_new_tokens: 12, ..SamplingParameters::default() },
            seed: 1,
            stream: 0,
        };
        let answers = full.generate(&request, &[], &SilentHost).unwrap();
        assert_eq!(half.generate(&request, &[], &SilentHost).unwrap(), answers, "{family}");

        // Every module's A multiplies a B of zero at first, so that only B has a gradient.
        half.forward(&batch).unwrap();
        half.backward(&[1.0, -1.0]).unwrap();
        for entry in half.parameters().entries() {
            let square_sum = half.ops().gradient_square_sum(&entry.value).unwrap();
            assert_eq!(square_sum > 0.0, entry.name.ends_with("lora_B.weight"), "{}", entry.name);
        }
    }
}
