//! The samplers `vllm` and `sglang`: responses from inference servers that hold the policy's weights.
//!
//! Tokens go in and tokens come out; every setting of sampling is sent, so that no default of a server or a
//! model leaks in. `engine` is the plugin. It finds out what each of the `servers` can do, has them load weights
//! after each iteration, and asks them for responses: one request for each prompt and sample (`round`), whose
//! answer is on disk before it is used (`answers`), so that none is asked for twice. A `protocol` knows the
//! requests and replies of a kind of server. `serving_copy` writes weights in a form that vLLM can reload.
//!
//! [`ServerConfig`] describes all settings. Nothing here is believed: the program compares the servers' numbers
//! with the policy's own after each load.

mod answers;
mod config;
mod engine;
mod protocol;
mod round;
mod samplers;
mod servers;
mod serving_copy;

pub use config::{Refresh, ServerConfig};
pub use samplers::{Sglang, Vllm};
pub use serving_copy::{has_own_head, untie_head};
