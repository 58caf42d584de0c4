//! GGUF files: header, tensors in every number format, and the decoder and tokenizer that they describe.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sppo_fuzz::{file, within_limits};
use sppo_model::checkpoint::Checkpoint;
use sppo_model::decoder::DecoderConfig;
use sppo_model::formats::{GgufFile, WeightFile};
use sppo_model::text::TextCodec;

fuzz_target!(|data: &[u8]| {
    let path = file("model.gguf", data);
    within_limits(|| {
        let Ok(model) = GgufFile::open(&path) else { return };
        for name in model.names() {
            let _ = (model.shape(name), model.values(name));
        }
        let _ = DecoderConfig::from_gguf(&model);
        let _ = Checkpoint::open(&path);
        if let Ok(text) = TextCodec::from_gguf(model.metadata(), 128) {
            let _ = text.encode("Hi <|im_start|> there", true).map(|tokens| text.decode(&tokens));
        }
    });
});
