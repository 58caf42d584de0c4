//! Measures the overhead of a sampler with a local server that answers at once: 256 requests at the same time.
//! Compares the wall time with that of 256 threads that only write as many bytes, prepared, to sockets and read
//! the replies, and with that of the same threads when they also read the replies' JSON, which no client can do
//! without. The answers that the sampler keeps on disk are part of its time.
//!
//! `cargo run --release -p sppo-sampler-http --example sampler_overhead [ROUNDS] [TOKENS]`

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;
use serde_json::json;
use sppo_plugin::{
    EnginePlan, GenerationPrompt, GenerationRequest, IntoObject, Plugin, SamplingParameters,
    ServedWeights, SilentHost,
};
use sppo_sampler_http::Vllm;

const CONNECTIONS: usize = 256;
/// Tokens of a prompt.
const PROMPT: u32 = 64;
/// Bytes of a request with such a prompt.
const REQUEST: usize = 760;

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let argument = |place| std::env::args().nth(place);
    let rounds: usize = argument(1).map_or(Ok(40), |text| text.parse())?;
    let tokens: usize = argument(2).map_or(Ok(128), |text| text.parse())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let reply: Arc<str> = response(&completion(tokens)).into();
    let length = reply.len();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let reply = Arc::clone(&reply);
            std::thread::spawn(move || serve(stream, &reply));
        }
    });
    println!("{} requests, {CONNECTIONS} at a time, {tokens} tokens each", rounds * CONNECTIONS);
    for attempt in 1..=3 {
        let raw = raw_sockets(address, rounds, length, |_| true)?;
        let parsed = raw_sockets(address, rounds, length, |reply| {
            let body = reply.windows(4).position(|bytes| bytes == b"\r\n\r\n");
            let body = body.and_then(|end| reply.get(end + 4..)).unwrap_or_default();
            let completion = serde_json::from_slice::<Completion>(body);
            completion.is_ok_and(|completion| completion.holds(tokens))
        })?;
        let sampler = sampler(address, rounds, tokens)?;
        let more = |seconds: f64| 100.0 * (seconds / raw - 1.0);
        println!(
            "attempt {attempt}: raw sockets {raw:.3} s, with their JSON read {parsed:.3} s ({:+.0} %), sampler \
             {sampler:.3} s ({:+.0} %)",
            more(parsed),
            more(sampler)
        );
    }
    Ok(())
}

/// The least that a client must read of a reply.
#[derive(Deserialize)]
struct Completion {
    choices: [Choice; 1],
}

#[derive(Deserialize)]
struct Choice {
    token_ids: Vec<u32>,
    logprobs: LogProbs,
}

#[derive(Deserialize)]
struct LogProbs {
    token_logprobs: Vec<f32>,
}

impl Completion {
    fn holds(&self, tokens: usize) -> bool {
        let [choice] = &self.choices;
        [choice.token_ids.len(), choice.logprobs.token_logprobs.len()] == [tokens; 2]
    }
}

/// A completion with all that vLLM says.
fn completion(tokens: usize) -> String {
    let numbers = 0..tokens;
    let names = numbers.clone().map(|token| format!("token_id:{}", 1000 + token));
    let log_probs = numbers.clone().map(|token| -1.234_567_890_123 / (token + 1) as f64);
    let choice = json!({
        "index": 0,
        "text": "words ".repeat(tokens),
        "logprobs": {
            "text_offset": numbers.clone().map(|token| 6 * token).collect::<Vec<_>>(),
            "token_logprobs": log_probs.collect::<Vec<_>>(),
            "tokens": names.collect::<Vec<_>>(),
            "top_logprobs": null,
        },
        "finish_reason": "length",
        "token_ids": numbers.map(|token| 1000 + token).collect::<Vec<_>>(),
        "prompt_logprobs": null,
    });
    json!({"id": "cmpl-1", "object": "text_completion", "model": "model", "choices": [choice]})
        .to_string()
}

fn response(body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// Seconds that prepared bytes on plain sockets take, with replies of this length that are read by `is_read`.
fn raw_sockets(
    address: SocketAddr,
    rounds: usize,
    length: usize,
    is_read: impl Fn(&[u8]) -> bool + Sync,
) -> std::io::Result<f64> {
    let is_read = &is_read;
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Length: {REQUEST}\r\n\r\n{}",
        " ".repeat(REQUEST)
    );
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let started = Instant::now();
    let request = request.as_bytes();
    std::thread::scope(|scope| {
        for mut stream in streams {
            scope.spawn(move || {
                let mut reply = vec![0; length];
                for _ in 0..rounds {
                    let said = stream.write_all(request);
                    let came = said.and_then(|()| stream.read_exact(&mut reply));
                    assert!(came.is_ok() && is_read(&reply), "no such reply");
                }
            });
        }
    });
    Ok(started.elapsed().as_secs_f64())
}

/// Seconds that the sampler takes. Its connections are there already, as they are in a run.
fn sampler(address: SocketAddr, rounds: usize, tokens: usize) -> Result<f64, AnyError> {
    let directory = tempfile::tempdir()?;
    let settings = json!({
        "endpoints": [format!("http://{address}")],
        "concurrency": {"max": CONNECTIONS, "start": CONNECTIONS},
    });
    let mut engine = Vllm::create(serde_json::from_value(settings)?)?.into_object();
    let sampling = SamplingParameters { max_new_tokens: tokens, ..SamplingParameters::default() };
    let plan = EnginePlan {
        stop_tokens: vec![2],
        context_length: 4096,
        vocabulary_size: 49152,
        longest_prompt: PROMPT as usize,
        weights_change: false,
        trains_adapters: false,
        sampling: sampling.clone(),
        directory: directory.path().into(),
    };
    engine.prepare(&plan, &SilentHost)?;
    let weights = ServedWeights { path: directory.path().into(), version: "start".into() };
    engine.adopt_weights(&weights, &SilentHost)?;
    let mut seconds = 0.0;
    // The first call makes the connections.
    for (seed, rounds) in [(0, 4), (1, rounds)] {
        let prompt = |id| GenerationPrompt { id, tokens: (1000..1000 + PROMPT).collect() };
        let request = GenerationRequest {
            prompts: (0..rounds as u64).map(prompt).collect(),
            samples_per_prompt: CONNECTIONS,
            sampling: sampling.clone(),
            seed,
            stream: 0,
        };
        let started = Instant::now();
        engine.generate(&request, &SilentHost)?;
        seconds = started.elapsed().as_secs_f64();
    }
    Ok(seconds)
}

fn serve(mut stream: TcpStream, completion: &str) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let models = response(r#"{"data":[{"id":"model","root":"/nothing","max_model_len":4096}]}"#);
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (mut line, mut body) = (String::new(), Vec::new());
    loop {
        let (mut length, mut is_draw) = (0, false);
        loop {
            line.clear();
            reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
            is_draw |= line.starts_with("POST");
            let Some((name, value)) = line.trim_end().split_once(':') else {
                if line == "\r\n" { break } else { continue }
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok()?;
            }
        }
        body.resize(length, 0);
        reader.read_exact(&mut body).ok()?;
        let said = if is_draw { completion } else { &models };
        stream.write_all(said.as_bytes()).ok()?;
    }
}
