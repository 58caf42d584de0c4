//! Text to tokens and back: tokenizers, chat templates and the special tokens of a model.

mod chat_template;
mod codec;
mod files;
mod gguf_tokenizer;
mod template_functions;
mod tokenizer;

pub use chat_template::ChatTemplate;
pub use codec::{SpecialTokens, TextCodec};
pub use tokenizer::Tokenizer;
