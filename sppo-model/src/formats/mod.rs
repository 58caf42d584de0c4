//! File formats: bytes on disk to tensors, metadata and settings, and back. Nothing here knows a model.

pub(crate) mod files;
mod gguf;
pub(crate) mod hash;
pub(crate) mod json;
pub(crate) mod peft;
pub(crate) mod safetensors;
mod weight_file;

pub use gguf::{GgufFile, GgufKeys, GgufMetadata, GgufType, GgufValue};
pub use json::JsonObject;
pub use peft::{AdapterFiles, AdapterValues, TARGET_MODULES, adapter_names, write_adapters};
pub use weight_file::{WeightFile, WeightSource};
