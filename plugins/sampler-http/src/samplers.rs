//! The two plugins, which differ by the protocol of their servers.

use sppo_plugin::{IntoObject, Plugin, PluginError, RolloutEngine};

use crate::config::ServerConfig;
use crate::engine::HttpEngine;
use crate::protocol::{SglangProtocol, VllmProtocol};

/// Responses from vLLM servers.
pub struct Vllm(HttpEngine);

impl Plugin for Vllm {
    type Config = ServerConfig;
    const NAME: &'static str = "vllm";
    const SUMMARY: &'static str =
        "Responses from vLLM servers, which load the policy's weights after each iteration";

    fn create(config: ServerConfig) -> Result<Self, PluginError> {
        HttpEngine::new(config, VllmProtocol).map(Self)
    }
}

impl IntoObject<dyn RolloutEngine> for Vllm {
    fn into_object(self) -> Box<dyn RolloutEngine> {
        Box::new(self.0)
    }
}

/// Responses from SGLang servers.
pub struct Sglang(HttpEngine);

impl Plugin for Sglang {
    type Config = ServerConfig;
    const NAME: &'static str = "sglang";
    const SUMMARY: &'static str =
        "Responses from SGLang servers, which load the policy's weights after each iteration";

    fn create(config: ServerConfig) -> Result<Self, PluginError> {
        HttpEngine::new(config, SglangProtocol).map(Self)
    }
}

impl IntoObject<dyn RolloutEngine> for Sglang {
    fn into_object(self) -> Box<dyn RolloutEngine> {
        Box::new(self.0)
    }
}

sppo_plugin::export_sampler!(Vllm, "vllm");
sppo_plugin::export_sampler!(Sglang, "sglang");
