//! vLLM: `/v1/completions`, and the routes of its development mode that change weights.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use sppo_http_transport::{Malformed, Unserved};
use sppo_plugin::{GeneratedResponse, PluginError};

use super::{Ask, Limits, Load, Protocol, Served, is_unknown, plain_format};
use crate::answers::{hexadecimal, key};
use crate::servers::{Server, anything, json};

/// Time in which the blocks of the prefix cache must become free.
const LONGEST_RESET: Duration = Duration::from_secs(30);
const RESET_INTERVAL: Duration = Duration::from_millis(200);
/// Seconds for a server to load weights.
const LOAD_SECONDS: u32 = 600;

const DEVELOPMENT: &str = "start vLLM with VLLM_SERVER_DEV_MODE=1, bound to an address that only you can reach; or train low-rank \
     adapters (--lora-rank), which need no such mode; or give `refresh_command`";
const ADAPTERS: &str = "start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, `--enable-lora` and a `--max-lora-rank` that is not below \
     --lora-rank, and see that the server sees the path";

pub(crate) struct VllmProtocol;

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    token_ids: Option<Vec<u32>>,
    logprobs: Option<LogProbs>,
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(default)]
    weight_versions: Option<Value>,
    #[serde(default)]
    prompt_logprobs: Option<Vec<Option<HashMap<String, TokenLogProb>>>>,
}

#[derive(Deserialize)]
struct LogProbs {
    token_logprobs: Vec<Option<f32>>,
}

#[derive(Deserialize)]
struct TokenLogProb {
    logprob: f32,
}

impl Protocol for VllmProtocol {
    fn path(&self) -> &'static str {
        "/v1/completions"
    }

    fn request(&self, ask: &Ask<'_>) -> Value {
        let sampling = ask.sampling;
        let mut body = json!({
            "model": name(ask.served),
            "prompt": ask.prompt,
            "n": 1,
            "max_tokens": ask.max_tokens,
            "min_tokens": sampling.min_new_tokens.min(ask.max_tokens),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": ask.seed,
            "stop_token_ids": ask.stop_tokens,
            "logprobs": 0,
            "return_token_ids": true,
            "return_tokens_as_token_ids": true,
            "skip_special_tokens": false,
            "cache_salt": salt(ask.served),
        });
        if ask.served.says_version {
            body["return_weight_versions"] = json!(true);
        }
        body
    }

    fn response(&self, body: &[u8], limits: &Limits<'_>) -> Result<GeneratedResponse, Malformed> {
        let choice = only_choice(body)?;
        let versions = choice.weight_versions.as_ref();
        for version in versions.and_then(Value::as_array).into_iter().flatten() {
            limits.check_version(version.as_str())?;
        }
        let tokens = choice.token_ids.ok_or_else(|| {
            Malformed("it has no `token_ids`, which vLLM has since 0.10.2".into())
        })?;
        let log_probs = choice.logprobs.ok_or_else(|| Malformed("it has no `logprobs`".into()))?;
        let log_probs: Option<Vec<f32>> = log_probs.token_logprobs.into_iter().collect();
        let log_probs =
            log_probs.ok_or_else(|| Malformed("a log-probability is missing".into()))?;
        limits.checked(tokens, log_probs, &choice.finish_reason.unwrap_or_default())
    }

    fn scoring(&self, served: &Served, tokens: &[u32]) -> Value {
        json!({
            "model": name(served),
            "prompt": tokens,
            "n": 1,
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
            "return_token_ids": true,
            "cache_salt": salt(served),
        })
    }

    fn scores(&self, body: &[u8], tokens: &[u32]) -> Result<Vec<f32>, Malformed> {
        let choice = only_choice(body)?;
        let given = choice.prompt_logprobs;
        let given = given.ok_or_else(|| Malformed("it has no `prompt_logprobs`".into()))?;
        if given.len() != tokens.len() {
            let message = format!("{} log-probabilities of {} tokens", given.len(), tokens.len());
            return Err(Malformed(message));
        }
        let of_token = |(token, found): (&u32, &Option<HashMap<String, TokenLogProb>>)| {
            let found = found.as_ref()?.get(&token.to_string())?;
            Some(found.logprob)
        };
        let scores: Option<Vec<f32>> = tokens.iter().zip(&given).skip(1).map(of_token).collect();
        scores.ok_or_else(|| Malformed("the log-probability of a token is missing".into()))
    }

    fn number_format(&self, server: Server<'_>) -> Result<Option<String>, PluginError> {
        let found = server.get("/server_info?config_format=json", json::<Value>);
        match found {
            Ok(information) => Ok(information
                .pointer("/vllm_config/model_config/dtype")
                .and_then(Value::as_str)
                .and_then(plain_format)),
            Err(Unserved::Cancelled) => Err(PluginError::cancelled()),
            // Only the development mode has it.
            Err(_) => Ok(None),
        }
    }

    fn require_loading(&self, server: Server<'_>) -> Result<(), PluginError> {
        let paused = server.get("/is_paused", anything);
        paused.map_err(|error| server.error("be asked to load weights", error, DEVELOPMENT))
    }

    fn require_adapters(&self, server: Server<'_>) -> Result<(), PluginError> {
        let nothing = json!({"lora_name": "sppo-asks-whether-there-is-such-a-route"});
        match server.post("/v1/unload_lora_adapter", &nothing, anything) {
            // It names what it does not have, unless it has no such route.
            Err(Unserved::Refused(refusal)) if refusal.details.contains("adapter") => Ok(()),
            Err(error) => Err(server.error("be asked to load adapters", error, ADAPTERS)),
            Ok(()) => Ok(()),
        }
    }

    fn loses_tied_heads(&self) -> bool {
        true
    }

    fn load_model(&self, server: Server<'_>, load: &Load<'_>) -> Result<(), PluginError> {
        let pause = server.post("/pause?mode=wait", &json!({}), anything);
        pause.map_err(|error| server.error("be paused to load weights", error, DEVELOPMENT))?;
        let loaded = load_paused(server, load);
        // It must answer again, whatever became of the weights.
        let resumed = server.post("/resume", &json!({}), anything);
        loaded?;
        resumed.map_err(|error| server.error("be resumed", error, DEVELOPMENT))
    }

    fn load_adapter(&self, server: Server<'_>, load: &Load<'_>) -> Result<(), PluginError> {
        let body = json!({"lora_name": load.name, "lora_path": load.path, "load_inplace": false});
        match server.post("/v1/load_lora_adapter", &body, anything) {
            Err(error) if !is_loaded_already(&error) => {
                Err(server.error(&format!("load the adapters in {}", load.path), error, ADAPTERS))
            }
            _ => Ok(()),
        }
    }

    fn unload_adapter(&self, server: Server<'_>, name: &str) -> Result<(), PluginError> {
        let unloaded =
            server.post("/v1/unload_lora_adapter", &json!({"lora_name": name}), anything);
        match unloaded {
            // It did not have them.
            Ok(()) | Err(Unserved::Refused(_)) => Ok(()),
            Err(error) => Err(server.error("unload adapters", error, ADAPTERS)),
        }
    }

    fn start_command(&self, model: &str) -> String {
        format!("VLLM_SERVER_DEV_MODE=1 vllm serve {model} --host 127.0.0.1")
    }
}

/// Adapters are models of their own.
fn name(served: &Served) -> &str {
    served.adapter.as_deref().unwrap_or(&served.model)
}

/// Prefixes of other weights are not used even if they were left in the cache. A salt is short and has no slash.
fn salt(served: &Served) -> String {
    hexadecimal(&key(&served.version, b""))
}

fn only_choice(body: &[u8]) -> Result<Choice, Malformed> {
    let Completion { mut choices } = json(body)?;
    match (choices.pop(), choices.is_empty()) {
        (Some(choice), true) => Ok(choice),
        (None, _) => Err(Malformed("it holds no response".into())),
        _ => Err(Malformed("it holds several responses, one was asked for".into())),
    }
}

/// An earlier attempt, whose reply was lost, may have loaded them.
fn is_loaded_already(unserved: &Unserved) -> bool {
    matches!(unserved, Unserved::Refused(refusal) if refusal.details.contains("already been loaded"))
}

/// Loads weights into a server that draws nothing meanwhile.
fn load_paused(server: Server<'_>, load: &Load<'_>) -> Result<(), PluginError> {
    let body = json!({
        "method": "reload_weights",
        "kwargs": {"weights_path": load.path},
        "timeout": LOAD_SECONDS,
    });
    let hint = "see that the server sees this path (`checkpoint_path_on_server` maps directories), and its log";
    let loaded = server.post("/collective_rpc", &body, anything);
    loaded.map_err(|error| server.error(&format!("load {}", load.path), error, hint))?;
    reset_prefix_cache(server)?;
    let named = server.post("/update_weight_version", &json!({"new_version": load.name}), anything);
    match named {
        // Earlier servers do not know of versions, and name none.
        Err(error) if !is_unknown(&error) => {
            Err(server.error("be told the version of its weights", error, DEVELOPMENT))
        }
        _ => Ok(()),
    }
}

/// The cache cannot be emptied while blocks are in use.
fn reset_prefix_cache(server: Server<'_>) -> Result<(), PluginError> {
    let began = Instant::now();
    let succeeded = |body: &[u8]| {
        // Servers before 0.26 answer with nothing.
        let reply: Value = if body.is_empty() { Value::Null } else { json(body)? };
        Ok(reply.get("success").and_then(Value::as_bool).unwrap_or(true))
    };
    while began.elapsed() < LONGEST_RESET && !server.is_cancelled() {
        let reset = server.post("/reset_prefix_cache", &json!({}), succeeded);
        if reset.map_err(|error| server.error("empty its prefix cache", error, DEVELOPMENT))? {
            return Ok(());
        }
        thread::sleep(RESET_INTERVAL);
    }
    let message = format!(
        "{} has not emptied its prefix cache within {} seconds, and would answer from earlier weights",
        server.shown(),
        LONGEST_RESET.as_secs()
    );
    Err(PluginError::failed(message).with_hint("see that nobody else uses this server"))
}

#[cfg(test)]
mod tests {
    use sppo_plugin::FinishReason;

    use super::*;

    const LIMITS: Limits<'_> =
        Limits { max_tokens: 3, stop_tokens: &[2], vocabulary_size: 10, version: Some("v1") };

    fn read(choice: Value) -> Result<GeneratedResponse, Malformed> {
        let body = json!({"choices": [choice]}).to_string();
        VllmProtocol.response(body.as_bytes(), &LIMITS)
    }

    fn choice(tokens: &[u32], finish: &str) -> Value {
        json!({
            "token_ids": tokens, "finish_reason": finish, "weight_versions": ["v1"],
            "logprobs": {"token_logprobs": vec![-0.5; tokens.len()]},
        })
    }

    #[test]
    fn an_answer_keeps_its_end_token_and_a_cut_one_gets_none() {
        let ended = read(choice(&[5, 2], "stop")).unwrap();
        assert_eq!((ended.tokens, ended.finish_reason), (vec![5, 2], FinishReason::Stop));
        let cut = read(choice(&[5, 6, 7], "length")).unwrap();
        assert_eq!((cut.tokens, cut.finish_reason), (vec![5, 6, 7], FinishReason::Length));
    }

    #[test]
    fn whatever_was_not_asked_for_is_refused() {
        let without = |field: &str| {
            let mut choice = choice(&[5, 2], "stop");
            choice.as_object_mut().unwrap().remove(field);
            choice
        };
        let mut short = choice(&[5, 2], "stop");
        short["logprobs"]["token_logprobs"] = json!([-0.5]);
        let mut stale = choice(&[5, 2], "stop");
        stale["weight_versions"] = json!(["v1", "v0"]);
        for (choice, told) in [
            (without("token_ids"), "token_ids"),
            (without("logprobs"), "logprobs"),
            (short, "2 tokens and 1 log-probabilities"),
            (stale, "`v0`, not `v1`"),
            (choice(&[5, 6], "stop"), "ends nothing here"),
            (choice(&[5, 6], "length"), "cut after 2"),
            (choice(&[5, 6, 7, 8], "length"), "at most 3"),
            (choice(&[5, 11], "stop"), "not in the vocabulary"),
            (choice(&[5], "abort"), "abort"),
        ] {
            let error = read(choice).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        assert!(VllmProtocol.response(br#"{"choices": []}"#, &LIMITS).is_err());
    }

    #[test]
    fn scores_are_those_of_the_tokens_that_were_sent() {
        let body = json!({"choices": [{"prompt_logprobs": [
            null,
            {"7": {"logprob": -1.5, "rank": 2}, "9": {"logprob": -0.1, "rank": 1}},
            {"8": {"logprob": -0.25, "rank": 1}},
        ]}]})
        .to_string();
        assert_eq!(VllmProtocol.scores(body.as_bytes(), &[1, 7, 8]).unwrap(), [-1.5, -0.25]);
        assert!(VllmProtocol.scores(body.as_bytes(), &[1, 7, 9]).is_err());
        assert!(VllmProtocol.scores(body.as_bytes(), &[1, 7]).is_err());
    }
}
