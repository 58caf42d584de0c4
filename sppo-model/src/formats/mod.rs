//! File formats: bytes on disk to tensors, metadata and settings, and back. Nothing here knows a model.

pub(crate) mod files;
mod gguf;
pub(crate) mod hash;
pub(crate) mod json;
pub(crate) mod peft;
pub(crate) mod safetensors;

pub use gguf::{GgufFile, GgufMetadata, GgufType, GgufValue};
pub use peft::{AdapterFiles, AdapterValues, TARGET_MODULES, adapter_names, write_adapters};
