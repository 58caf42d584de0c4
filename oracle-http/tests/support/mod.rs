//! A service on this machine that speaks every protocol, judges by a fixed rule, and misbehaves as much as
//! it is told to.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// A fault of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    Reset,
    Stall,
    TooManyRequests,
    TooManyRequestsWithRetryAfter,
    ServerError,
    Unavailable,
    /// The JSON ends early.
    TruncatedJson,
    /// The connection ends before the body that was announced.
    TruncatedBody,
    NotANumber,
    OneTooFew,
    OneTooMany,
    SlowDrip,
    TenMegabytes,
    WebPage,
}

pub(crate) const ALL_FAULTS: [Fault; 14] = [
    Fault::Reset,
    Fault::Stall,
    Fault::TooManyRequests,
    Fault::TooManyRequestsWithRetryAfter,
    Fault::ServerError,
    Fault::Unavailable,
    Fault::TruncatedJson,
    Fault::TruncatedBody,
    Fault::NotANumber,
    Fault::OneTooFew,
    Fault::OneTooMany,
    Fault::SlowDrip,
    Fault::TenMegabytes,
    Fault::WebPage,
];

/// The behaviour of the service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Behaviour {
    /// The share of requests that meet a fault.
    pub(crate) fault_share: f64,
    /// The time that it takes for a reply.
    pub(crate) delay: Duration,
    /// The key that it asks for; it repeats a wrong one, and its own, in what it says then.
    pub(crate) key: Option<String>,
    /// The language model talks instead of judging in this share of its replies.
    pub(crate) chatter_share: f64,
    /// Every request gets this status.
    pub(crate) always: Option<u16>,
    /// Head and body are sent apart, as many servers do.
    pub(crate) split: bool,
    /// After this many requests, the last of which is still served, it goes down once.
    pub(crate) down_after: Option<u64>,
}

/// A reply that comes slowly takes so many tenths of a second, a byte in each.
const DRIPS: usize = 65;

struct State {
    behaviour: Behaviour,
    random: Mutex<fastrand::Rng>,
    /// The number of full answers to each question.
    answered: Mutex<HashMap<String, u32>>,
    faults: Mutex<HashMap<Fault, u32>>,
    requests: AtomicU64,
    connections: AtomicU64,
    down: AtomicBool,
}

pub(crate) struct Service {
    pub(crate) port: u16,
    state: Arc<State>,
}

impl Service {
    pub(crate) fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            behaviour,
            random: Mutex::new(fastrand::Rng::with_seed(7)),
            answered: Mutex::default(),
            faults: Mutex::default(),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            down: AtomicBool::new(false),
        });
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

    /// Serves a connection that somebody else accepted, until it ends.
    pub(crate) fn serve(&self, stream: impl Read + Write) {
        self.state.serve(stream);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Hangs up on everybody from now on, or no longer.
    pub(crate) fn set_down(&self, down: bool) {
        self.state.down.store(down, Ordering::SeqCst);
    }

    /// The number of full answers to each question.
    pub(crate) fn answered(&self) -> HashMap<String, u32> {
        self.state.answered.lock().unwrap().clone()
    }

    pub(crate) fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// Connections that were ever made.
    pub(crate) fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// The faults that happened.
    pub(crate) fn faults(&self) -> HashMap<Fault, u32> {
        self.state.faults.lock().unwrap().clone()
    }
}

impl State {
    fn serve(&self, stream: impl Read + Write) {
        self.connections.fetch_add(1, Ordering::SeqCst);
        let mut reader = BufReader::new(stream);
        while let Some((path, key)) = read_head(&mut reader) {
            if self.down.load(Ordering::SeqCst) {
                return;
            }
            let requests = 1 + self.requests.fetch_add(1, Ordering::SeqCst);
            if self.behaviour.down_after == Some(requests) {
                self.down.store(true, Ordering::SeqCst);
            }
            let fault = self.fault();
            if fault == Some(Fault::Reset) {
                // With the body unread, closing resets the connection.
                return;
            }
            let body = key.body(&mut reader);
            thread::sleep(self.behaviour.delay);
            if !self.reply(reader.get_mut(), &path, &key, &body, fault) {
                return;
            }
        }
    }

    fn fault(&self) -> Option<Fault> {
        let mut random = self.random.lock().unwrap();
        let fault = (random.f64() < self.behaviour.fault_share)
            .then(|| ALL_FAULTS[random.usize(..ALL_FAULTS.len())]);
        if let Some(fault) = fault {
            *self.faults.lock().unwrap().entry(fault).or_default() += 1;
        }
        fault
    }

    /// Returns whether the connection may be used again.
    fn reply(
        &self,
        stream: &mut impl Write,
        path: &str,
        head: &Head,
        body: &[u8],
        fault: Option<Fault>,
    ) -> bool {
        let mut say = |status: &str, extra: &str, body: &[u8]| {
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{extra}\r\n", body.len());
            if self.behaviour.split {
                let sent = stream.write_all(head.as_bytes());
                thread::sleep(Duration::from_millis(1));
                return sent.and_then(|()| stream.write_all(body)).is_ok();
            }
            stream.write_all(&[head.as_bytes(), body].concat()).is_ok()
        };
        if let Some(status) = self.behaviour.always {
            return say(&format!("{status} Whatever"), "", b"{\"error\": \"so it is\"}");
        }
        if let Some(key) = &self.behaviour.key
            && head.authorization.as_deref() != Some(format!("Bearer {key}").as_str())
        {
            let said = head.authorization.as_deref().unwrap_or_default();
            let text = format!("{{\"error\": \"you sent {said}, not {key}\"}}");
            return say("401 Unauthorized", "", text.as_bytes());
        }
        let request: Value = serde_json::from_slice(body).unwrap();
        let questions = questions(path, &request);
        let values: Vec<f64> = questions.iter().map(|question| value_of(question)).collect();
        let mut answer = match path {
            "/v1/chat/completions" => {
                let chatter = self.random.lock().unwrap().f64() < self.behaviour.chatter_share;
                chat_reply(&request, &values, chatter)
            }
            _ => reply_of(path, &request, &values),
        };
        match fault {
            None => {
                // Counted before it is sent: the client may act on it at once.
                let chatter = answer.contains("lovely");
                if !chatter {
                    let mut answered = self.answered.lock().unwrap();
                    for question in &questions {
                        *answered.entry(question.clone()).or_default() += 1;
                    }
                }
                say("200 OK", "Content-Type: application/json\r\n", answer.as_bytes())
            }
            Some(Fault::Reset) => false,
            Some(Fault::Stall) => {
                thread::sleep(Duration::from_secs(5));
                false
            }
            Some(Fault::TooManyRequests) => say("429 Too Many Requests", "", b"slow down"),
            Some(Fault::TooManyRequestsWithRetryAfter) => {
                say("429 Too Many Requests", "Retry-After: 0.05\r\n", b"slow down")
            }
            Some(Fault::ServerError) => say("500 Internal Server Error", "", b"oops"),
            Some(Fault::Unavailable) => say("503 Service Unavailable", "", b""),
            Some(Fault::TruncatedJson) => say("200 OK", "", &answer.as_bytes()[..answer.len() / 2]),
            Some(Fault::TruncatedBody) => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.write_all(&answer.as_bytes()[..answer.len() / 2]);
                false
            }
            Some(Fault::NotANumber) => {
                let spoilt = answer.replacen(&values[0].to_string(), "NaN", 1);
                say("200 OK", "", if spoilt == answer { b"NaN" } else { spoilt.as_bytes() })
            }
            Some(Fault::OneTooFew) => {
                say("200 OK", "", wrong_length(path, &request, &values, false).as_bytes())
            }
            Some(Fault::OneTooMany) => {
                say("200 OK", "", wrong_length(path, &request, &values, true).as_bytes())
            }
            Some(Fault::SlowDrip) => {
                let length = answer.len() + DRIPS;
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                let _ = stream.write_all(head.as_bytes());
                for _ in 0..DRIPS {
                    thread::sleep(Duration::from_millis(100));
                    if stream.write_all(b" ").is_err() {
                        break;
                    }
                }
                false
            }
            Some(Fault::TenMegabytes) => {
                answer.extend(std::iter::repeat_n(' ', 10 << 20));
                say("200 OK", "", answer.as_bytes())
            }
            Some(Fault::WebPage) => {
                say("200 OK", "Content-Type: text/html\r\n", b"<html>Hi</html>")
            }
        }
    }
}

struct Head {
    length: usize,
    authorization: Option<String>,
}

impl Head {
    fn body(&self, reader: &mut impl Read) -> Vec<u8> {
        let mut body = vec![0; self.length];
        if reader.read_exact(&mut body).is_err() {
            body = b"{}".to_vec();
        }
        body
    }
}

fn read_head(reader: &mut impl BufRead) -> Option<(String, Head)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut head = Head { length: 0, authorization: None };
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => head.length = value.parse().unwrap(),
            "authorization" => head.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    Some((path, head))
}

/// The questions of a request, as text.
fn questions(path: &str, request: &Value) -> Vec<String> {
    let list = |field: &str| request[field].as_array().cloned().unwrap_or_default();
    let with = |shared: &Value, own: Vec<Value>| {
        own.iter().map(|own| json!([shared, own]).to_string()).collect()
    };
    match path {
        "/compare" if is_of_group(request) => {
            let shared = json!([request["conversation_history"], request["response_objs"]]);
            with(&shared, list("response_objs"))
        }
        "/compare" => with(&Value::Null, list("items")),
        "/get_reward" => with(&Value::Null, list("query")),
        "/classify" => match request.get("messages") {
            Some(messages) => vec![messages.to_string()],
            None => with(&Value::Null, list("input")),
        },
        "/v1/score" => with(&request["text_1"], list("text_2")),
        "/predict" => with(&Value::Null, list("inputs")),
        "/rerank" => with(&request["query"], list("texts")),
        "/v1/systemone" => {
            let asked = request["questions"].as_object().unwrap();
            with(&request["state"], asked.values().cloned().collect())
        }
        "/v1/decisions" => with(&request["input"], list("questions")),
        _ => match scores_wanted(request) {
            0 => vec![request["messages"].to_string()],
            count => with(&request["messages"], (1..=count).map(Value::from).collect()),
        },
    }
}

/// Whether a request is one to NeMo Gym.
fn is_of_group(request: &Value) -> bool {
    request.get("response_objs").is_some()
}

/// The text of the last turn of a chat.
fn last_turn(request: &Value) -> &str {
    let messages = request["messages"].as_array().unwrap();
    messages.last().and_then(|last| last["content"].as_str()).unwrap_or_default()
}

/// The number of answers that a chat is to score.
fn scores_wanted(request: &Value) -> usize {
    last_turn(request).matches("\": SCORE").count()
}

/// A number between 0 and 1 that a question always gets.
pub(crate) fn value_of(question: &str) -> f64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in question.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 29;
    (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1_u64 << 53) as f64
}

fn reply_of(path: &str, request: &Value, values: &[f64]) -> String {
    let indexed = |make: fn(usize, f64) -> Value| {
        let mut all: Vec<Value> =
            values.iter().enumerate().map(|(index, value)| make(index, *value)).collect();
        all.reverse();
        Value::Array(all)
    };
    match path {
        "/compare" if is_of_group(request) => json!({
            "rewards": values,
            "comparison_results": [{"response_i": 0, "response_j": 1, "judge_idx": 0, "ranking": 2.0}],
            "metrics": {"mean_individual_score": 3.5},
        }),
        "/compare" => json!({"probabilities": values}),
        "/get_reward" => json!({"rewards": values, "scores": values, "extra_logs": {}}),
        "/classify" => json!({
            "data": indexed(|index, value| json!({"index": index, "label": "LABEL_0", "probs": [value]})),
            "usage": {"prompt_tokens": 10},
        }),
        "/v1/score" => json!({
            "data": indexed(|index, value| json!({"index": index, "score": value})),
            "usage": {"prompt_tokens": 10},
        }),
        "/predict" => json!(values.iter().map(|value| json!([{"score": value, "label": "LABEL_0"}])).collect::<Vec<_>>()),
        "/rerank" => indexed(|index, value| json!({"index": index, "score": value})),
        "/v1/systemone" => {
            let is_choice = request["questions"]["q1"]["type"] == "choice";
            let answer = |value: f64| match is_choice {
                true => json!({
                    "type": "choice", "choice": "first", "confidence": 0.5,
                    "probabilities": {"first": value, "second": 1.0 - value},
                }),
                false => json!({"type": "noul", "noul": value, "x_label_mass": 0.9}),
            };
            let named = values.iter().enumerate().map(|(index, value)| (format!("q{}", index + 1), answer(*value)));
            json!({"model": "judge", "answers": Value::Object(named.collect()), "usage": {"input_tokens": 10, "output_tokens": 0}})
        }
        "/v1/decisions" => {
            let is_choice = request["questions"][0]["type"] == "choice";
            let answer = |(index, value): (usize, &f64)| match is_choice {
                true => json!({
                    "type": "choice", "name": format!("q{}", index + 1), "choice": "first", "confidence": 0.5,
                    "probabilities": [{"value": "first", "probability": value}, {"value": "second", "probability": 1.0 - value}],
                }),
                false => json!({"type": "predicate", "name": format!("q{}", index + 1), "probability": value}),
            };
            let answers: Vec<Value> = values.iter().enumerate().map(answer).collect();
            json!({"model": "judge", "answers": answers, "usage": {"input_tokens": 10, "output_tokens": 0, "total_tokens": 10}})
        }
        _ => panic!("{path}"),
    }
    .to_string()
}

fn wrong_length(path: &str, request: &Value, values: &[f64], more: bool) -> String {
    match path {
        "/v1/chat/completions" => json!({"choices": []}).to_string(),
        path if more => reply_of(path, request, &[values, &[0.5]].concat()),
        path => reply_of(path, request, &values[1..]),
    }
}

fn chat_reply(request: &Value, values: &[f64], chatter: bool) -> String {
    let value = values[0];
    let turns = request["messages"].as_array().unwrap();
    let is_genrm = turns.iter().any(|turn| turn["role"] == "response_2");
    let labels = match last_turn(request).contains("Reply with yes or no") {
        true => ["yes", " no"],
        false => ["A", " B"],
    };
    let text = match () {
        () if chatter => "Both are lovely.".to_owned(),
        () if is_genrm => {
            let ranking = 1 + (6.0 * value) as u32;
            format!(
                "<think>Is it 1?</think>\n```json\n{{\"score_1\": 3, \"score_2\": 3, \"ranking\": {ranking}}}\n```"
            )
        }
        () if scores_wanted(request) > 0 => {
            let scores = values
                .iter()
                .enumerate()
                .map(|(index, value)| ((index + 1).to_string(), json!(10.0 * value)));
            json!({"scores": Value::Object(scores.collect())}).to_string()
        }
        () => labels[0].to_owned(),
    };
    let token = |token: &str, probability: f64| json!({"token": token, "logprob": probability.ln(), "bytes": null});
    let log_probs = match request["logprobs"].as_bool() {
        Some(true) if !chatter => json!({"content": [{
            "token": labels[0], "logprob": value.ln(),
            "top_logprobs": [token(labels[0], 0.9 * value), token(labels[1], 0.9 * (1.0 - value)), token("The", 0.1)],
        }]}),
        _ => Value::Null,
    };
    json!({
        "choices": [{"message": {"role": "assistant", "content": text}, "logprobs": log_probs}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 1},
    })
    .to_string()
}
