//! A service that answers each request as its test says, and an exchange that asks for texts.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sppo_http_transport::{
    Address, Client, ConcurrencyConfig, Dispatcher, Exchange, KeyHeader, Malformed, Request,
    RetryConfig, Snapshot, TimeoutConfig, TransportSettings,
};
use sppo_plugin::PluginError;

/// Replies to the n-th request with a status and a body.
pub(crate) type Answer = Arc<dyn Fn(u64, &str) -> (u16, String) + Send + Sync>;

/// Starts a service, and returns its address.
pub(crate) fn serve(
    answer: impl Fn(u64, &str) -> (u16, String) + Send + Sync + 'static,
) -> (String, Answer) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer: Answer = Arc::new(answer);
    let serving = Arc::clone(&answer);
    thread::spawn(move || {
        let requests = Arc::new(AtomicU64::new(0));
        for stream in listener.incoming().flatten() {
            let (answer, requests) = (Arc::clone(&serving), Arc::clone(&requests));
            thread::spawn(move || serve_stream(stream, &answer, &requests));
        }
    });
    (url, answer)
}

/// Serves one connection until it ends.
pub(crate) fn serve_stream(stream: impl Read + Write, answer: &Answer, requests: &AtomicU64) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        let mut length = 0;
        loop {
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let number = requests.fetch_add(1, Ordering::SeqCst);
        let (status, reply) = answer(number, std::str::from_utf8(&body).unwrap());
        let head = format!("HTTP/1.1 {status} Said\r\nContent-Length: {}\r\n\r\n", reply.len());
        if reader.get_mut().write_all(format!("{head}{reply}").as_bytes()).is_err() {
            return;
        }
    }
}

/// Asks for a text per request, as a sampler on another machine would: a job is the number of a prompt.
#[derive(Default)]
pub(crate) struct Texts {
    /// Replies that were read, settled, and committed.
    pub(crate) log: Mutex<Vec<String>>,
    /// The error of the next commit.
    pub(crate) disk_full: bool,
}

impl Exchange for Texts {
    type Job = usize;
    type Content = String;

    fn read(
        &self,
        job: &usize,
        body: &[u8],
        clean: &dyn Fn(&str) -> String,
    ) -> Result<String, Malformed> {
        let text = String::from_utf8_lossy(body);
        if !text.starts_with("text") {
            return Err(Malformed(format!("no text for prompt {job}")));
        }
        let text = clean(&text);
        self.log.lock().unwrap().push(format!("read {text}"));
        Ok(text)
    }

    fn commit(&self) -> Result<(), PluginError> {
        self.log.lock().unwrap().push("commit".into());
        match self.disk_full {
            true => Err(PluginError::failed("the disk is full")),
            false => Ok(()),
        }
    }

    fn asks_again(&self, content: &String, repeats: u32) -> bool {
        content.ends_with("unfinished") && repeats < 2
    }

    fn settled(&self, content: &String) {
        self.log.lock().unwrap().push(format!("settled {content}"));
    }

    fn refusal_hint(&self, status: u16, _message: &str) -> Option<String> {
        (status == 418).then(|| "ask a coffee machine".into())
    }

    fn resume_hint(&self) -> String {
        "start again".into()
    }
}

/// Settings of the transport that a test may change.
#[derive(Default)]
pub(crate) struct Settings {
    pub(crate) key_file: Option<std::path::PathBuf>,
    pub(crate) header: KeyHeader,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) certificates: Option<std::path::PathBuf>,
    pub(crate) concurrency: ConcurrencyConfig,
    pub(crate) timeouts: TimeoutConfig,
    pub(crate) retries: RetryConfig,
}

impl Settings {
    /// Failures end soon: `max_attempts` attempts, hardly any wait between them.
    pub(crate) fn quick(max_attempts: u32) -> Self {
        let retries = RetryConfig {
            max_attempts,
            first_delay_seconds: 0.005,
            longest_delay_seconds: 0.05,
            ..RetryConfig::default()
        };
        Self { retries, ..Self::default() }
    }

    pub(crate) fn view(&self) -> TransportSettings<'_> {
        TransportSettings {
            api_key_env: None,
            api_key_file: self.key_file.as_deref(),
            api_key_header: &self.header,
            headers: &self.headers,
            certificates: self.certificates.as_deref(),
            concurrency: &self.concurrency,
            timeouts: &self.timeouts,
            retries: &self.retries,
        }
    }

    pub(crate) fn dispatcher(
        &self,
        url: &str,
        exchange: &Arc<Texts>,
    ) -> Result<Dispatcher<Texts>, PluginError> {
        let addresses = vec![Address::parse(url, "/generate")?];
        let client = Client::new(&self.view(), &addresses)?;
        Dispatcher::new(&self.view(), addresses, client, Arc::clone(exchange))
    }
}

pub(crate) fn request(prompt: usize) -> Request<usize> {
    Request { body: format!("prompt {prompt}").into_bytes().into(), job: prompt }
}

/// The texts of one round, by prompt.
pub(crate) fn collect(dispatcher: &Dispatcher<Texts>) -> Result<Vec<(usize, String)>, PluginError> {
    let mut texts = Vec::new();
    loop {
        let Snapshot { replies, stopped, finished, .. } =
            dispatcher.wait(Duration::from_millis(20));
        texts.extend(replies.into_iter().map(|reply| (reply.job, reply.content)));
        if let Some(error) = stopped {
            return Err(error);
        }
        if finished {
            texts.sort();
            return Ok(texts);
        }
    }
}

/// One round of one prompt.
pub(crate) fn ask(settings: &Settings, url: &str) -> Result<String, PluginError> {
    let dispatcher = settings.dispatcher(url, &Arc::default())?;
    dispatcher.begin();
    dispatcher.push(request(0));
    Ok(collect(&dispatcher)?.remove(0).1)
}

pub(crate) fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}
