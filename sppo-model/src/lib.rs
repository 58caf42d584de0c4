//! Language models written once and run on any tensor library.
//!
//! A compute backend implements [`ops::Ops`], a small vocabulary of operations, each with its own
//! vector-Jacobian product. Everything else is generic over it. With [`ops::encoder::EncoderOps`] a
//! backend also runs encoders that score text.
//!
//! Each room imports only from rooms above it in this list:
//!
//! - [`formats`]: file formats, to tensors and metadata and back.
//! - [`ops`]: the op vocabulary, the tape that runs its backward pass, and the reference of every op.
//! - [`text`]: tokenizer, chat template and special tokens.
//! - [`decoder`]: decoder language models: families, weights and the forward pass.
//! - [`encoder`]: encoders and reward models that score text.
//! - [`hub`]: the Hugging Face hub.
//! - [`checkpoint`]: models on disk, found, opened and written.
//! - [`generation`]: sampling with a key-value cache.
//! - [`training`]: a decoder that is trained, with its optimiser.
//! - [`serve`]: a model as a core [`Policy`](sppo_plugin::Policy),
//!   [`Scorer`](sppo_plugin::Scorer) or judge.
//! - [`synthetic`]: models with random weights, for measurements.

mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod golden;

pub use error::{ModelError, Result};
pub use generation::GenerationLimits;
pub use training::DecoderModel;

pub mod formats {
    //! File formats: bytes on disk to tensors, metadata and settings, and back. Nothing here knows a model.

    pub(crate) mod bitsandbytes;
    pub(crate) mod files;
    mod gguf;
    pub(crate) mod json;
    mod nf4;
    pub(crate) mod peft;
    mod quantized_matrix;
    pub(crate) mod safetensors;
    pub(crate) mod weight_file;
    pub(crate) mod weight_names;

    pub use gguf::{
        ArchitectureEntries, GgufEntries, GgufFile, GgufFormat, GgufKeys, GgufMetadata, GgufTensor,
        GgufType, GgufValue, GgufWriter,
    };
    pub use json::JsonObject;
    pub use peft::{AdapterFiles, AdapterValues, TARGET_MODULES, adapter_names, write_adapters};
    pub use quantized_matrix::{QuantizedMatrix, SharedBytes};
    pub use weight_file::{WeightFile, WeightSource};
}

pub mod ops {
    //! Tensor operations: the vocabulary that a backend implements, the tape that differentiates it, a plain
    //! reference of every op, and the checks that compare a backend with that reference.

    pub mod conformance;
    pub mod encoder;
    pub mod encoder_conformance;
    mod logits;
    mod memo;
    mod parameter_state;
    mod parameters;
    pub(crate) mod random;
    pub mod reference;
    mod routing;
    mod tape;
    mod vocabulary;

    pub use logits::LogitsLimits;
    pub use memo::Memo;
    pub use parameter_state::{Accumulation, GradientSlot, ensure_state, state_count};
    pub use parameters::{NamedParameter, ParameterId, ParameterStore};
    pub use routing::{ExpertRows, Routes, Routing};
    pub use tape::{AdapterUse, Graph, Tape, Variable};
    pub use vocabulary::{
        Activation, AttentionOutput, AttentionSegment, AttentionShape, CachedRow, DeviceSampling,
        MixtureGradients, Ops, Position, RotaryFrequencies, SampledToken, UpdateRule, not_finite,
    };
}

pub mod text {
    //! Text to tokens and back: tokenizers, chat templates and the special tokens of a model.

    mod chat_template;
    mod codec;
    mod files;
    mod gguf_export;
    mod gguf_tokenizer;
    mod gguf_vocabulary;
    mod gguf_word_rules;
    mod jinja;
    mod tokenizer;
    mod tokenizer_merges;

    pub use chat_template::{ChatTemplate, TemplateVariables};
    pub use codec::{SpecialTokens, TEMPLATE_HINT, TextCodec};
    pub(crate) use gguf_export::{check_tokenizer, name_in_gguf, write_template, write_tokenizer};
    pub use tokenizer::Tokenizer;
}

pub mod decoder {
    //! Decoder language models: configuration, weights and forward pass.

    mod config;
    mod families;
    mod forward;
    mod general_preference;
    pub(crate) mod lora;
    mod packing;
    mod rotary;
    mod sequence_classifier;
    mod shared_prefixes;
    mod stored;
    mod weights;

    pub use config::{
        Container, DecoderConfig, Experts, Family, GgufWindows, NormPlacement, QueryKeyNorm,
    };
    pub use families::FAMILIES;
    pub(crate) use families::{
        as_gguf_says, gguf_source, gguf_tensors, rotary_tensors, write_gguf_settings,
    };
    pub use forward::{AttentionSource, Decoder};
    pub use general_preference::GeneralPreferenceConfig;
    pub use lora::{AdapterSource, merge};
    pub(crate) use lora::{adapter_shapes, own_targets, stored_adapters};
    pub use packing::{InputLimits, PackedBatch};
    pub use rotary::{Rotary, RotaryScaling};
    pub(crate) use sequence_classifier::{DecoderClassifier, Head};
    pub(crate) use stored::{StoredTensor, StoredWeight, stored_tensors};
    pub(crate) use weights::EMBEDDING;
    pub use weights::{
        DecoderWeights, FrozenWeight, FrozenWeightSource, TensorLayout, TensorSource, tensor_layout,
    };
}

pub mod encoder {
    //! Encoders that score text, for inference: DeBERTa v3, the head of PairRM and that of a sequence
    //! classifier.

    mod config;
    mod forward;
    mod pair_ranker;
    mod reward_model;
    mod weights;

    pub use config::EncoderConfig;
    pub use forward::{Encoder, EncoderBatch};
    pub use pair_ranker::{PairMarkers, PairRanker, PairRankerConfig};
    pub(crate) use reward_model::architectures;
    pub use reward_model::{RewardModel, RewardModelConfig};
}

pub mod hub {
    //! The Hugging Face hub: the way to it, downloads into its cache, and pushing files to it.
    //!
    //! The protocol of pushing is that of Python's `huggingface_hub` without Xet: the hub says which files are large
    //! (`preupload`), takes these by Git LFS's batch protocol, in one piece or in parts, and the rest within one
    //! commit.

    mod access;
    mod cache;
    mod client;
    mod download;
    mod error;
    mod files;
    mod large_files;
    mod parts;
    mod push;
    mod repository;

    pub(crate) use access::hub_cache;
    pub use access::{HubAccess, Token};
    pub(crate) use cache::CachedRepository;
    pub(crate) use download::{RemoteFile, download};
    pub use error::HubError;
    pub use files::UploadFile;
    pub use push::{PushTarget, Pushed, TransferProgress, Watch, push, resolve_repository};
    pub(crate) use repository::encoded;
}

pub mod checkpoint {
    //! Models on disk: found or fetched, opened with their text side, and written.

    mod gguf;
    mod open;
    mod weights;
    mod write;

    pub mod source {
        //! Files on this machine for a user's name of a model.

        mod hub;
        mod origin;
        mod resolve;
        mod wheel;

        pub use origin::{
            DEFAULT_MODEL, ModelOrigin, ModelSourceIdentity, ModelSourceOptions, ResolvedModel,
        };
        pub use resolve::{cache_directory, may_be_fetched, resolve};
    }

    pub use gguf::{GgufExport, write_gguf};
    pub use open::{Checkpoint, CheckpointIdentity, ModelShape, TensorData, scorer_identity};
    pub use write::{WeightFiles, WeightFormat, write_checkpoint};
}

pub mod generation {
    //! Batched generation with a key-value cache.
    //!
    //! Each prompt is computed once and shared by its samples. All active rows decode together; a row
    //! that is finished leaves at once, and the next sample takes its place.

    mod limits;
    mod pages;
    mod rows;
    mod sampler;
    mod scheduler;

    pub use limits::GenerationLimits;
    pub(crate) use limits::planned_cache;
    pub(crate) use pages::CachePlan;
    pub use sampler::{SampleKey, SampleRequest, Sampler};
    pub use scheduler::generate;
}

pub mod training {
    //! Training: a decoder whose weights or adapters are changed, and its optimiser.

    mod decoder_model;
    mod optimizer;
    pub(crate) mod state_file;

    pub use decoder_model::DecoderModel;
}

pub mod serve {
    //! A model behind the core's plugin interface: as a policy, as a scorer, and as an oracle's judge.

    mod backend;
    pub mod judge;
    mod memory_estimate;
    mod next_token;
    mod policy;
    mod scorer;
    mod team;

    pub use backend::{MatrixRate, ModelBackend, keep_large_buffers};
    pub use memory_estimate::{CopiedMatrices, GRADIENTS_UNDER_WAY, MemoryTraits};
    pub(crate) use next_token::load_next_token_scorer;
    pub use policy::DecoderPolicy;
    pub use scorer::{ScorerKind, load_scorer};
    pub use team::{Channel, Collective};
}

pub mod synthetic {
    //! Models of well-known shapes with random weights, to measure what such a model costs.

    mod decoder;
    mod ranker;

    pub use decoder::{Shape, write_synthetic_model};
    pub use ranker::{synthetic_ranker_sequence, write_synthetic_ranker};
}
