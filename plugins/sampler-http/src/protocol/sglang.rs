//! SGLang: `/generate`, and its own routes that change weights.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use sppo_http_transport::{Malformed, Unserved};
use sppo_plugin::{GeneratedResponse, PluginError};

use super::{Ask, Limits, Load, Protocol, Served, plain_format};
use crate::servers::{Server, anything, json};

const WEIGHTS: &str = "see that the server sees this path (`checkpoint_path_on_server` maps directories), that nobody else uses \
     the server, and its log; or give `refresh_command`";
const ADAPTERS: &str = "start SGLang with `--enable-lora` and a `--max-lora-rank` that is not below --lora-rank, and see that the \
     server sees the path";

pub(crate) struct SglangProtocol;

/// A log-probability, a token, and the token's text.
type TokenLogProb = (Option<f32>, u32, IgnoredAny);

#[derive(Deserialize)]
#[serde(untagged)]
enum Replies {
    Several(Vec<Generated>),
    One(Generated),
}

#[derive(Deserialize)]
struct Generated {
    #[serde(default)]
    output_ids: Option<Vec<u32>>,
    meta_info: Meta,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(default)]
    finish_reason: Option<Finish>,
    #[serde(default)]
    weight_version: Option<String>,
    #[serde(default)]
    output_token_logprobs: Option<Vec<TokenLogProb>>,
    #[serde(default)]
    input_token_logprobs: Option<Vec<TokenLogProb>>,
}

#[derive(Deserialize)]
struct Finish {
    r#type: String,
}

#[derive(Deserialize)]
struct Updated {
    success: bool,
    #[serde(default)]
    message: String,
}

impl Protocol for SglangProtocol {
    fn path(&self) -> &'static str {
        "/generate"
    }

    fn request(&self, ask: &Ask<'_>) -> Value {
        let sampling = ask.sampling;
        let top_k = if sampling.top_k == 0 { json!(-1) } else { json!(sampling.top_k) };
        let mut body = json!({
            "input_ids": ask.prompt,
            "sampling_params": {
                "n": 1,
                "max_new_tokens": ask.max_tokens,
                "min_new_tokens": sampling.min_new_tokens.min(ask.max_tokens),
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": top_k,
                "min_p": sampling.min_p,
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "stop_token_ids": ask.stop_tokens,
                "skip_special_tokens": false,
                "no_stop_trim": true,
                "sampling_seed": ask.seed,
            },
            "return_logprob": true,
            "logprob_start_len": -1,
            "top_logprobs_num": 0,
            "return_text_in_logprobs": false,
        });
        name_adapter(&mut body, ask.served);
        body
    }

    fn response(&self, body: &[u8], limits: &Limits<'_>) -> Result<GeneratedResponse, Malformed> {
        let Generated { output_ids, meta_info: meta } = only_reply(body)?;
        limits.check_version(meta.weight_version.as_deref())?;
        let output_ids = output_ids.ok_or_else(|| Malformed("it has no `output_ids`".into()))?;
        let drawn = meta.output_token_logprobs;
        let drawn = drawn.ok_or_else(|| Malformed("it has no `output_token_logprobs`".into()))?;
        let tokens: Vec<u32> = drawn.iter().map(|(_, token, _)| *token).collect();
        if tokens != output_ids {
            let message = "the tokens and those of the log-probabilities differ";
            return Err(Malformed(message.into()));
        }
        let log_probs: Option<Vec<f32>> = drawn.iter().map(|(log_prob, ..)| *log_prob).collect();
        let log_probs =
            log_probs.ok_or_else(|| Malformed("a log-probability is missing".into()))?;
        let finish = meta.finish_reason.map(|reason| reason.r#type).unwrap_or_default();
        limits.checked(tokens, log_probs, &finish)
    }

    fn scoring(&self, served: &Served, tokens: &[u32]) -> Value {
        let mut body = json!({
            "input_ids": tokens,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": true,
            "logprob_start_len": 0,
            "top_logprobs_num": 0,
            "return_text_in_logprobs": false,
        });
        name_adapter(&mut body, served);
        body
    }

    fn scores(&self, body: &[u8], tokens: &[u32]) -> Result<Vec<f32>, Malformed> {
        let given = only_reply(body)?.meta_info.input_token_logprobs;
        let given = given.ok_or_else(|| Malformed("it has no `input_token_logprobs`".into()))?;
        if !given.iter().map(|(_, token, _)| token).eq(tokens) {
            let message = "the log-probabilities are of other tokens than were sent";
            return Err(Malformed(message.into()));
        }
        let scores: Option<Vec<f32>> = given.iter().skip(1).map(|(score, ..)| *score).collect();
        scores.ok_or_else(|| Malformed("the log-probability of a token is missing".into()))
    }

    fn number_format(&self, server: Server<'_>) -> Result<Option<String>, PluginError> {
        match server.get("/server_info", json::<Value>) {
            Ok(information) => {
                let dtype = information.get("dtype").and_then(Value::as_str);
                Ok(dtype.and_then(plain_format))
            }
            Err(Unserved::Cancelled) => Err(PluginError::cancelled()),
            Err(_) => Ok(None),
        }
    }

    fn require_loading(&self, _server: Server<'_>) -> Result<(), PluginError> {
        // It always can.
        Ok(())
    }

    fn require_adapters(&self, _server: Server<'_>) -> Result<(), PluginError> {
        // It does not say before it is given some.
        Ok(())
    }

    fn loses_tied_heads(&self) -> bool {
        false
    }

    fn load_model(&self, server: Server<'_>, load: &Load<'_>) -> Result<(), PluginError> {
        let body = json!({
            "model_path": load.path,
            "load_format": null,
            "abort_all_requests": false,
            "weight_version": load.name,
            "flush_cache": true,
        });
        let Updated { success, message } = server
            .post("/update_weights_from_disk", &body, json::<Updated>)
            .map_err(|error| server.error(&format!("load {}", load.path), error, WEIGHTS))?;
        if success {
            return Ok(());
        }
        let error = format!("{} cannot load {}: {message}", server.shown(), load.path);
        Err(PluginError::failed(error).with_hint(WEIGHTS))
    }

    fn load_adapter(&self, server: Server<'_>, load: &Load<'_>) -> Result<(), PluginError> {
        let body = json!({"lora_name": load.name, "lora_path": load.path});
        match server.post("/load_lora_adapter", &body, anything) {
            Err(Unserved::Refused(refusal)) if refusal.details.contains("already") => Ok(()),
            Err(error) => {
                Err(server.error(&format!("load the adapters in {}", load.path), error, ADAPTERS))
            }
            Ok(()) => Ok(()),
        }
    }

    fn unload_adapter(&self, server: Server<'_>, name: &str) -> Result<(), PluginError> {
        match server.post("/unload_lora_adapter", &json!({"lora_name": name}), anything) {
            Ok(()) | Err(Unserved::Refused(_)) => Ok(()),
            Err(error) => Err(server.error("unload adapters", error, ADAPTERS)),
        }
    }

    fn start_command(&self, model: &str) -> String {
        format!("python -m sglang.launch_server --model-path {model} --host 127.0.0.1")
    }
}

fn name_adapter(body: &mut Value, served: &Served) {
    if let Some(adapter) = &served.adapter {
        body["lora_path"] = json!(adapter);
    }
}

fn only_reply(body: &[u8]) -> Result<Generated, Malformed> {
    match json::<Replies>(body)? {
        Replies::One(one) => Ok(one),
        Replies::Several(mut several) => match (several.pop(), several.is_empty()) {
            (Some(one), true) => Ok(one),
            _ => Err(Malformed("it does not hold the one response that was asked for".into())),
        },
    }
}

#[cfg(test)]
mod tests {
    use sppo_plugin::FinishReason;

    use super::*;

    const LIMITS: Limits<'_> =
        Limits { max_tokens: 3, stop_tokens: &[2], vocabulary_size: 10, version: Some("v1") };

    fn reply() -> Value {
        json!({"text": "x", "output_ids": [5, 2], "meta_info": {
            "finish_reason": {"type": "stop", "matched": 2}, "weight_version": "v1",
            "output_token_logprobs": [[-0.5, 5, null], [-0.25, 2, null]],
        }})
    }

    fn read(reply: &Value) -> Result<GeneratedResponse, Malformed> {
        SglangProtocol.response(reply.to_string().as_bytes(), &LIMITS)
    }

    #[test]
    fn one_reply_is_read_alone_and_in_a_list() {
        for reply in [reply(), json!([reply()])] {
            let response = read(&reply).unwrap();
            assert_eq!((response.tokens, response.log_probs), (vec![5, 2], vec![-0.5, -0.25]));
            assert_eq!(response.finish_reason, FinishReason::Stop);
        }
        assert!(read(&json!([reply(), reply()])).is_err());
    }

    #[test]
    fn replies_that_contradict_themselves_are_refused() {
        let mut lost = reply();
        lost["meta_info"]["output_token_logprobs"] = json!([[-0.5, 5, null]]);
        let mut stale = reply();
        stale["meta_info"]["weight_version"] = json!("v0");
        let mut without = reply();
        without.as_object_mut().unwrap().remove("output_ids");
        for (reply, told) in [(lost, "differ"), (stale, "`v0`"), (without, "output_ids")] {
            let error = read(&reply).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn scores_are_those_of_the_tokens_that_were_sent() {
        let body = json!({"meta_info": {"input_token_logprobs":
            [[null, 1, null], [-1.5, 7, null], [-0.25, 8, null]]}})
        .to_string();
        assert_eq!(SglangProtocol.scores(body.as_bytes(), &[1, 7, 8]).unwrap(), [-1.5, -0.25]);
        assert!(SglangProtocol.scores(body.as_bytes(), &[1, 7, 9]).is_err());
    }
}
