//! An inference server that speaks as vLLM and SGLang do, with a real model behind it: tokens are drawn, and
//! log-probabilities computed, by a backend of this program. It misbehaves as much as it is told to.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
// The models are on this backend.
use sppo_backend_candle as _;
use sppo_core::plugin::{
    Backend, FinishReason, GeneratedResponse, GenerationPrompt, GenerationRequest, Policy,
    PolicySpec, SamplingParameters, SequenceBatch, SilentHost, create_backend,
};

use crate::support::read_request;

/// The name under which the model is served.
pub(crate) const MODEL: &str = "tiny";

/// Prefixes of so many tokens are cached.
const BLOCK: usize = 16;

/// A fault of the network or the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    Reset,
    Stall,
    Unavailable,
    ServerError,
    TruncatedJson,
    NoTokens,
    SampleLost,
    WrongLength,
}

const ALL_FAULTS: [Fault; 8] = [
    Fault::Reset,
    Fault::Stall,
    Fault::Unavailable,
    Fault::ServerError,
    Fault::TruncatedJson,
    Fault::NoTokens,
    Fault::SampleLost,
    Fault::WrongLength,
];

/// A server that reports success and does something else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lie {
    #[default]
    None,
    /// Weights are not loaded.
    SkipsRefresh,
    /// Cached prefixes outlive a refresh, whatever salt a request has.
    StaleCache,
    /// The head stays as it was, as in vLLM where it is tied to the embeddings.
    KeepsHead,
    /// Loads weights from another path.
    LoadsFrom(PathBuf),
    /// Log-probabilities of drawn tokens are those after the temperature.
    TemperedLogProbs,
}

/// The behaviour of a server.
#[derive(Clone, Debug)]
pub(crate) struct Behaviour {
    /// The share of requests that meet a fault.
    pub(crate) fault_share: f64,
    pub(crate) lie: Lie,
    /// Longest sequence, in tokens.
    pub(crate) context: usize,
    /// Time that a response takes.
    pub(crate) delay: Duration,
    /// Whether it keeps to itself from which directory it was started.
    pub(crate) hides_root: bool,
    /// Whether there are routes for adapters.
    pub(crate) adapters: bool,
    /// Whether there are routes that change weights.
    pub(crate) development: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            fault_share: 0.0,
            lie: Lie::None,
            context: 256,
            delay: Duration::ZERO,
            hides_root: false,
            adapters: true,
            development: true,
        }
    }
}

/// Work for the thread that holds the models.
enum Work {
    Draw { model: String, request: GenerationRequest, to: Sender<Option<GeneratedResponse>> },
    Score { model: String, tokens: Vec<u32>, to: Sender<Option<Vec<f32>>> },
    Load { model: String, path: PathBuf, to: Sender<Result<(), String>> },
    Unload { model: String, to: Sender<bool> },
}

struct State {
    behaviour: Behaviour,
    root: PathBuf,
    work: Mutex<Sender<Work>>,
    random: Mutex<fastrand::Rng>,
    paused: AtomicBool,
    version: Mutex<String>,
    /// Full answers to each request for a response.
    answered: Mutex<HashMap<String, u32>>,
    faults: Mutex<HashMap<Fault, u32>>,
    /// Paths and requests that changed something, in order.
    changes: Mutex<Vec<String>>,
}

pub(crate) struct RolloutServer {
    port: u16,
    state: Arc<State>,
}

impl RolloutServer {
    /// Starts a server of the model in this directory.
    pub(crate) fn start(model: &Path, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (work, todo) = channel();
        let state = Arc::new(State {
            root: model.to_path_buf(),
            work: Mutex::new(work),
            random: Mutex::new(fastrand::Rng::with_seed(11)),
            paused: AtomicBool::new(false),
            version: Mutex::new("default".into()),
            answered: Mutex::default(),
            faults: Mutex::default(),
            changes: Mutex::default(),
            behaviour,
        });
        let (root, lie) = (model.to_path_buf(), state.behaviour.lie.clone());
        thread::spawn(move || Models::new(root, lie).work(&todo));
        let serving = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                stream.set_nodelay(true).unwrap();
                let state = Arc::clone(&serving);
                thread::spawn(move || state.serve(stream));
            }
        });
        Self { port, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The number of full answers to each request for a response.
    pub(crate) fn answered(&self) -> HashMap<String, u32> {
        self.state.answered.lock().unwrap().clone()
    }

    pub(crate) fn faults(&self) -> HashMap<Fault, u32> {
        self.state.faults.lock().unwrap().clone()
    }

    pub(crate) fn changes(&self) -> Vec<String> {
        self.state.changes.lock().unwrap().clone()
    }
}

/// The models, on the one thread that may use them.
struct Models {
    backend: Box<dyn Backend>,
    policies: BTreeMap<String, Box<dyn Policy>>,
    lie: Lie,
    /// The first weights, and the prefixes that were computed with them.
    stale: Option<Box<dyn Policy>>,
    cached: HashSet<Vec<u32>>,
    root: PathBuf,
}

impl Models {
    fn new(root: PathBuf, lie: Lie) -> Self {
        let backend = create_backend("candle", json!({"threads": 1})).unwrap();
        let policy = backend.load_policy(&PolicySpec::new(&root)).unwrap();
        let stale = match lie {
            Lie::StaleCache => Some(backend.load_policy(&PolicySpec::new(&root)).unwrap()),
            _ => None,
        };
        let policies = BTreeMap::from([(MODEL.to_owned(), policy)]);
        Self { backend, policies, lie, stale, cached: HashSet::new(), root }
    }

    fn work(mut self, todo: &Receiver<Work>) {
        for work in todo {
            let is_answered = match work {
                Work::Draw { model, request, to } => to.send(self.draw(&model, &request)).is_ok(),
                Work::Score { model, tokens, to } => to.send(self.score(&model, &tokens)).is_ok(),
                Work::Load { model, path, to } => to.send(self.load(model, &path)).is_ok(),
                Work::Unload { model, to } => {
                    to.send(self.policies.remove(&model).is_some()).is_ok()
                }
            };
            assert!(is_answered, "who asked is gone");
        }
    }

    fn draw(&mut self, model: &str, request: &GenerationRequest) -> Option<GeneratedResponse> {
        let tokens = &request.prompts[0].tokens;
        let prefix = tokens[..tokens.len().min(BLOCK)].to_vec();
        // The first weights are the only ones that fill the cache.
        let is_stale = self.lie == Lie::StaleCache && !self.cached.insert(prefix);
        let policy = match (&mut self.stale, is_stale) {
            (Some(stale), true) => stale,
            _ => self.policies.get_mut(model)?,
        };
        let mut response = policy.generate(request, &SilentHost).unwrap().remove(0);
        if self.lie == Lie::TemperedLogProbs {
            let temperature = request.sampling.temperature as f32;
            response.log_probs.iter_mut().for_each(|value| *value /= temperature);
        }
        Some(response)
    }

    fn score(&mut self, model: &str, tokens: &[u32]) -> Option<Vec<f32>> {
        let mut batch = SequenceBatch::new();
        let prompt = batch.push_prompt(&tokens[..1]);
        batch.push_response(prompt, &tokens[1..]);
        Some(self.policies.get_mut(model)?.token_log_probs(&batch).unwrap().remove(0))
    }

    fn load(&mut self, model: String, path: &Path) -> Result<(), String> {
        let path = match &self.lie {
            Lie::SkipsRefresh => return Ok(()),
            Lie::LoadsFrom(other) => other.as_path(),
            _ => path,
        };
        let directory;
        let path = match self.lie {
            Lie::KeepsHead => {
                directory = tempfile::tempdir().unwrap();
                with_head_of(path, &self.root, directory.path());
                directory.path()
            }
            _ => path,
        };
        let policy = self.backend.load_policy(&PolicySpec::new(path));
        let policy = policy.map_err(|error| error.to_string())?;
        self.policies.insert(model, policy);
        Ok(())
    }
}

/// Writes a model with the head of another, which has its head as its embeddings.
fn with_head_of(body: &Path, head: &Path, to: &Path) {
    for entry in std::fs::read_dir(body).unwrap().flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    sppo_sampler_http::untie_head(to).unwrap();
    let other = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(head).unwrap().flatten() {
        std::fs::copy(entry.path(), other.path().join(entry.file_name())).unwrap();
    }
    sppo_sampler_http::untie_head(other.path()).unwrap();
    // Both are models of two files, of which the second holds the head.
    let head = "model-00002-of-00002.safetensors";
    std::fs::copy(other.path().join(head), to.join(head)).unwrap();
}

/// A reply: status and body.
type Said = (u16, Value);

impl State {
    fn serve(&self, stream: impl Read + Write) {
        let mut reader = BufReader::new(stream);
        while let Some((path, body)) = read_request(&mut reader) {
            let fault = self.fault();
            match fault {
                Some(Fault::Reset) => return,
                Some(Fault::Stall) => {
                    thread::sleep(Duration::from_secs(3));
                    return;
                }
                _ => {}
            }
            let (status, reply) = match fault {
                Some(Fault::Unavailable) => (503, json!({"error": "paused"})),
                Some(Fault::ServerError) => (500, json!({"error": {"message": "engine died"}})),
                _ => self.answer(&path, &body),
            };
            let mut reply = reply;
            if status == 200 && !spoil(fault, &mut reply) && self.is_draw(&path, &body) {
                // Held-out prompts are asked about in the same words whatever the weights.
                let asked = format!("{} {body}", self.version.lock().unwrap());
                *self.answered.lock().unwrap().entry(asked).or_default() += 1;
            }
            let mut text = reply.to_string();
            if status == 200 && fault == Some(Fault::TruncatedJson) {
                text.truncate(text.len() / 2);
            }
            let head = format!(
                "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                text.len()
            );
            if reader.get_mut().write_all(format!("{head}{text}").as_bytes()).is_err() {
                return;
            }
        }
    }

    fn fault(&self) -> Option<Fault> {
        let mut random = self.random.lock().unwrap();
        let meets_one = random.f64() < self.behaviour.fault_share;
        let fault = meets_one.then(|| ALL_FAULTS[random.usize(..ALL_FAULTS.len())])?;
        *self.faults.lock().unwrap().entry(fault).or_default() += 1;
        Some(fault)
    }

    /// Whether a request is one for a response of the work, not for a probe.
    fn is_draw(&self, path: &str, body: &Value) -> bool {
        let tokens =
            body.get("max_tokens").or_else(|| body["sampling_params"].get("max_new_tokens"));
        matches!(path, "/v1/completions" | "/generate")
            && tokens.is_some_and(|most| *most != 1 && *most != 8)
    }

    fn answer(&self, path: &str, body: &Value) -> Said {
        let route = path.split('?').next().unwrap_or_default();
        match route {
            "/health" => (200, json!({})),
            "/v1/models" => (200, self.models()),
            "/v1/completions" => self.completion(body),
            "/generate" => self.generate(body),
            "/server_info" => (
                200,
                json!({"dtype": "float32", "vllm_config": {"model_config": {"dtype": "torch.float32"}}}),
            ),
            "/v1/load_lora_adapter" | "/load_lora_adapter" if self.behaviour.adapters => {
                self.load_adapter(body)
            }
            "/v1/unload_lora_adapter" | "/unload_lora_adapter" if self.behaviour.adapters => {
                self.unload_adapter(body)
            }
            _ if self.behaviour.development => self.change(route, body),
            _ => (404, json!({"detail": "Not Found"})),
        }
    }

    fn models(&self) -> Value {
        let context = self.behaviour.context;
        let elsewhere = PathBuf::from("/elsewhere");
        let root = if self.behaviour.hides_root { &elsewhere } else { &self.root };
        json!({"object": "list", "data": [
            {"id": MODEL, "object": "model", "root": root, "parent": null, "max_model_len": context},
        ]})
    }

    /// The routes that change weights.
    fn change(&self, route: &str, body: &Value) -> Said {
        match route {
            "/is_paused" => (200, json!({"is_paused": self.paused.load(Ordering::SeqCst)})),
            "/pause" => {
                self.paused.store(true, Ordering::SeqCst);
                (200, json!({"status": "paused"}))
            }
            "/resume" => {
                self.paused.store(false, Ordering::SeqCst);
                (200, json!({"status": "resumed"}))
            }
            "/collective_rpc" => {
                assert_eq!(body["method"], "reload_weights");
                assert!(
                    self.paused.load(Ordering::SeqCst),
                    "weights change while tokens are drawn"
                );
                self.load(MODEL, &body["kwargs"]["weights_path"], json!({"results": [null]}))
            }
            "/reset_prefix_cache" => {
                // Blocks may be in use for a while.
                let success = self.random.lock().unwrap().bool();
                (200, json!({"success": success}))
            }
            "/update_weight_version" => {
                let version = body["new_version"].as_str().unwrap().to_owned();
                *self.version.lock().unwrap() = version.clone();
                (200, json!({"success": true, "new_version": version}))
            }
            "/update_weights_from_disk" => {
                assert_eq!(body["flush_cache"], true);
                let said = json!({"success": true, "message": "ok", "num_paused_requests": 0});
                let said = self.load(MODEL, &body["model_path"], said);
                *self.version.lock().unwrap() = body["weight_version"].as_str().unwrap().to_owned();
                said
            }
            _ => (404, json!({"detail": "Not Found"})),
        }
    }

    fn load(&self, model: &str, path: &Value, done: Value) -> Said {
        let path = PathBuf::from(path.as_str().unwrap());
        self.changes.lock().unwrap().push(format!("{model} = {}", path.display()));
        let (to, loaded) = channel();
        self.send(Work::Load { model: model.into(), path, to });
        match loaded.recv().unwrap() {
            Ok(()) => (200, done),
            Err(error) => {
                (400, json!({"success": false, "message": error, "error": {"message": error}}))
            }
        }
    }

    fn load_adapter(&self, body: &Value) -> Said {
        self.load(body["lora_name"].as_str().unwrap(), &body["lora_path"], json!("Success"))
    }

    fn unload_adapter(&self, body: &Value) -> Said {
        let model = body["lora_name"].as_str().unwrap().to_owned();
        let (to, unloaded) = channel();
        self.send(Work::Unload { model: model.clone(), to });
        match unloaded.recv().unwrap() {
            true => {
                self.changes.lock().unwrap().push(format!("{model} unloaded"));
                (200, json!("Success"))
            }
            false => (
                404,
                json!({"error": {"message": format!("The lora adapter '{model}' cannot be found.")}}),
            ),
        }
    }

    fn send(&self, work: Work) {
        self.work.lock().unwrap().send(work).unwrap();
    }

    fn completion(&self, body: &Value) -> Said {
        if self.paused.load(Ordering::SeqCst) {
            return (503, json!({"error": "paused"}));
        }
        let prompt = tokens(&body["prompt"]);
        let model = body["model"].as_str().unwrap_or_default();
        if !body["prompt_logprobs"].is_null() {
            return match self.score(model, prompt.clone()) {
                Some(scores) => {
                    let entry = |(token, score): (&u32, &f32)| json!({token.to_string(): {"logprob": score}});
                    let scored = prompt[1..].iter().zip(&scores).map(entry);
                    let given: Vec<Value> = std::iter::once(Value::Null).chain(scored).collect();
                    (200, json!({"choices": [{"index": 0, "text": "", "prompt_logprobs": given}]}))
                }
                None => no_model(model),
            };
        }
        let salt = body["cache_salt"].as_str().unwrap_or_default();
        if salt.len() > 128 || salt.contains(['@', '/', '\\', '\0']) {
            return (
                400,
                json!({"error": {"message": "Parameter 'cache_salt' must not contain '/'"}}),
            );
        }
        let number = |name: &str| body[name].as_f64();
        let every =
            ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"];
        if let Some(missing) = every.iter().find(|name| number(name).is_none()) {
            return (
                400,
                json!({"error": {"message": format!("{missing} would be the model's own")}}),
            );
        }
        let sampling = SamplingParameters {
            temperature: number("temperature").unwrap(),
            top_p: number("top_p").unwrap(),
            top_k: number("top_k").unwrap() as usize,
            min_p: number("min_p").unwrap(),
            max_new_tokens: number("max_tokens").unwrap() as usize,
            min_new_tokens: number("min_tokens").unwrap_or(0.0) as usize,
        };
        let seed = body["seed"].as_u64().unwrap();
        match self.draw(model, prompt, sampling, seed) {
            Ok(GeneratedResponse { tokens, log_probs, finish_reason }) => {
                let names: Vec<String> =
                    tokens.iter().map(|token| format!("token_id:{token}")).collect();
                let mut choice = json!({
                    "index": 0, "text": "text", "token_ids": tokens, "stop_reason": null,
                    "finish_reason": finish(finish_reason),
                    "logprobs": {"tokens": names, "token_logprobs": log_probs},
                });
                if body["return_weight_versions"] == true {
                    choice["weight_versions"] = json!([*self.version.lock().unwrap()]);
                }
                (200, json!({"object": "text_completion", "model": model, "choices": [choice]}))
            }
            Err(said) => said,
        }
    }

    fn generate(&self, body: &Value) -> Said {
        let known = [
            "input_ids",
            "sampling_params",
            "return_logprob",
            "logprob_start_len",
            "top_logprobs_num",
            "return_text_in_logprobs",
            "lora_path",
        ];
        if let Some(other) =
            body.as_object().unwrap().keys().find(|key| !known.contains(&key.as_str()))
        {
            return (400, json!({"error": {"message": format!("unknown field {other}")}}));
        }
        let prompt = tokens(&body["input_ids"]);
        let model = body["lora_path"].as_str().unwrap_or(MODEL);
        let version = self.version.lock().unwrap().clone();
        if body["logprob_start_len"] == 0 {
            return match self.score(model, prompt.clone()) {
                Some(scores) => {
                    let scored = prompt[1..]
                        .iter()
                        .zip(&scores)
                        .map(|(token, score)| json!([score, token, null]));
                    let first = json!([null, prompt[0], null]);
                    let given: Vec<Value> = std::iter::once(first).chain(scored).collect();
                    (
                        200,
                        json!({"text": "", "output_ids": [1], "meta_info": {
                        "weight_version": version, "input_token_logprobs": given}}),
                    )
                }
                None => no_model(model),
            };
        }
        let sent = &body["sampling_params"];
        let number =
            |name: &str| sent[name].as_f64().unwrap_or_else(|| panic!("{name} was not sent"));
        assert_eq!(
            (&sent["no_stop_trim"], &sent["skip_special_tokens"]),
            (&json!(true), &json!(false))
        );
        let sampling = SamplingParameters {
            temperature: number("temperature"),
            top_p: number("top_p"),
            top_k: number("top_k").max(0.0) as usize,
            min_p: number("min_p"),
            max_new_tokens: number("max_new_tokens") as usize,
            min_new_tokens: number("min_new_tokens") as usize,
        };
        match self.draw(model, prompt, sampling, number("sampling_seed") as u64) {
            Ok(GeneratedResponse { tokens, log_probs, finish_reason }) => {
                let drawn: Vec<Value> = tokens
                    .iter()
                    .zip(&log_probs)
                    .map(|(token, value)| json!([value, token, null]))
                    .collect();
                (
                    200,
                    json!({"text": "text", "output_ids": tokens, "meta_info": {
                    "finish_reason": {"type": finish(finish_reason)}, "weight_version": version,
                    "output_token_logprobs": drawn}}),
                )
            }
            Err(said) => said,
        }
    }

    fn draw(
        &self,
        model: &str,
        prompt: Vec<u32>,
        sampling: SamplingParameters,
        seed: u64,
    ) -> Result<GeneratedResponse, Said> {
        let length = prompt.len() + sampling.max_new_tokens;
        if length > self.behaviour.context {
            let message =
                format!("{length} tokens are more than the context of {}", self.behaviour.context);
            return Err((400, json!({"error": {"message": message}})));
        }
        thread::sleep(self.behaviour.delay);
        let request = GenerationRequest {
            prompts: vec![GenerationPrompt { id: 0, tokens: prompt }],
            samples_per_prompt: 1,
            sampling,
            seed,
            stream: 0,
        };
        let (to, drawn) = channel();
        self.send(Work::Draw { model: model.into(), request, to });
        drawn.recv().unwrap().ok_or_else(|| no_model(model))
    }

    fn score(&self, model: &str, tokens: Vec<u32>) -> Option<Vec<f32>> {
        let (to, scored) = channel();
        self.send(Work::Score { model: model.into(), tokens, to });
        scored.recv().unwrap()
    }
}

fn no_model(model: &str) -> Said {
    (
        404,
        json!({"error": {"message": format!("The model `{model}` does not exist."), "code": 404}}),
    )
}

fn finish(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

fn tokens(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

/// Spoils a reply, and returns whether the fault makes it useless.
fn spoil(fault: Option<Fault>, reply: &mut Value) -> bool {
    let is_sglang = reply.get("meta_info").is_some();
    match fault {
        Some(Fault::NoTokens) if is_sglang => {
            reply.as_object_mut().unwrap().remove("output_ids");
        }
        Some(Fault::NoTokens) => {
            if let Some(choice) = reply.pointer_mut("/choices/0").and_then(Value::as_object_mut) {
                choice.remove("token_ids");
            }
        }
        Some(Fault::SampleLost) if is_sglang => *reply = json!([]),
        Some(Fault::SampleLost) => {
            if let Some(choices) = reply.get_mut("choices") {
                *choices = json!([]);
            }
        }
        Some(Fault::WrongLength) => {
            for place in [
                "/choices/0/logprobs/token_logprobs",
                "/choices/0/prompt_logprobs",
                "/meta_info/output_token_logprobs",
                "/meta_info/input_token_logprobs",
            ] {
                if let Some(list) = reply.pointer_mut(place).and_then(Value::as_array_mut) {
                    list.pop();
                }
            }
        }
        other => return other == Some(Fault::TruncatedJson),
    }
    true
}
