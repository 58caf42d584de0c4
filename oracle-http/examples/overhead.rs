//! Measures the overhead of the oracle with a fast service: 64 requests at the same time, 2 ms per reply.
//! The second argument limits the requests that the service works on at once. Compares the wall time with
//! that of 64 threads that only write the same bytes, prepared, to sockets and read the replies, and with
//! the time that the service sleeps.
//!
//! `cargo run --release -p sppo-oracle-http --example overhead [ROUNDS] [AT ONCE]`

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use sppo_oracle_http as _;
use sppo_plugin::{Candidate, Comparison, Message, SilentHost, create_oracle};

const CONNECTIONS: usize = 64;
const REPLY_TIME: Duration = Duration::from_millis(2);
const REPLY: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 25\r\n\r\n\
                     {\"probabilities\": [0.75]}";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = |place| std::env::args().nth(place);
    let rounds: usize = argument(1).map_or(Ok(400), |text| text.parse())?;
    let at_once: usize = argument(2).map_or(Ok(CONNECTIONS), |text| text.parse())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let workers = Arc::new(Workers { free: Mutex::new(at_once), changed: Condvar::new() });
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let workers = Arc::clone(&workers);
            std::thread::spawn(move || serve(stream, &workers));
        }
    });
    let requests = rounds * CONNECTIONS;
    let slept = REPLY_TIME.as_secs_f64() * requests as f64 / at_once as f64;
    println!(
        "{requests} requests, {CONNECTIONS} at a time; the service works on {at_once} at once and sleeps \
         {slept:.2} s"
    );
    for attempt in 1..=3 {
        let raw = raw_sockets(address, rounds)?;
        let oracle = oracle(address, rounds)?;
        println!(
            "attempt {attempt}: raw sockets {raw:.3} s, oracle {oracle:.3} s: {:+.1} % over raw sockets, \
             {:+.1} % over the service's sleep (raw sockets {:+.1} %)",
            100.0 * (oracle / raw - 1.0),
            100.0 * (oracle / slept - 1.0),
            100.0 * (raw / slept - 1.0),
        );
    }
    Ok(())
}

/// Seconds that prepared bytes on plain sockets take.
fn raw_sockets(address: SocketAddr, rounds: usize) -> std::io::Result<f64> {
    let body = r#"{"model":"judge","items":[{"messages":[{"role":"user","content":"Question 100000?"}],"first":"Answer 0","second":"Answer 1"}]}"#;
    let request = format!(
        "POST /compare HTTP/1.1\r\nContent-Type: application/json\r\nAccept: application/json\r\nUser-Agent: \
         overhead\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
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
                let mut reply = vec![0; REPLY.len()];
                for _ in 0..rounds {
                    if stream
                        .write_all(request)
                        .and_then(|()| stream.read_exact(&mut reply))
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    Ok(started.elapsed().as_secs_f64())
}

/// Seconds that the oracle takes, its planning and its cache on disk included. Its connections and its
/// knowledge of how much the service can take are there already, as they are in a run.
fn oracle(address: SocketAddr, rounds: usize) -> Result<f64, Box<dyn std::error::Error>> {
    let cache = tempfile::tempdir()?;
    let mut oracle = create_oracle(
        "http",
        json!({
            "endpoints": [format!("http://{address}")],
            "model": "judge",
            "orders": "one",
            "questions_per_request": 1,
            "concurrency": {"max": CONNECTIONS, "start": CONNECTIONS},
            "cache": {"directory": cache.path()},
        }),
    )?;
    let comparison = |index: usize| Comparison {
        prompt: [Message::user(format!("Question {index}?"))].into(),
        rendered_prompt: None,
        candidates: ["Answer 0", "Answer 1"].map(Candidate::from_text).into(),
    };
    let warm: Vec<Comparison> = (0..10 * CONNECTIONS).map(comparison).collect();
    oracle.preferences(&warm, &SilentHost)?;
    let measured: Vec<Comparison> =
        (0..rounds * CONNECTIONS).map(|index| comparison(100_000 + index)).collect();
    let started = Instant::now();
    oracle.preferences(&measured, &SilentHost)?;
    Ok(started.elapsed().as_secs_f64())
}

/// The workers of the service, which limit the requests that it works on at once.
struct Workers {
    free: Mutex<usize>,
    changed: Condvar,
}

impl Workers {
    fn work(&self) {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_while(free, |free| *free == 0);
        *waited.unwrap_or_else(PoisonError::into_inner) -= 1;
        std::thread::sleep(REPLY_TIME);
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_one();
    }
}

fn serve(mut stream: TcpStream, workers: &Workers) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (mut line, mut body) = (String::new(), Vec::new());
    loop {
        let mut length = 0;
        loop {
            line.clear();
            reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                if line == "\r\n" { break } else { continue }
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok()?;
            }
        }
        body.resize(length, 0);
        reader.read_exact(&mut body).ok()?;
        workers.work();
        stream.write_all(REPLY.as_bytes()).ok()?;
    }
}
