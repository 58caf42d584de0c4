//! A real vLLM, for tests that run where there is one: its CPU build will do.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Running, require_success, sppo};

/// The name that the server gives its model.
const MODEL: &str = "model";

/// A vLLM server of its own process.
pub(crate) struct RealServer {
    _process: Running,
    pub(crate) address: String,
}

/// An interpreter with vLLM, if there is one.
pub(crate) fn vllm_python() -> Option<PathBuf> {
    let python = std::env::var_os("SPPO_VLLM_PYTHON").map(PathBuf::from);
    if python.is_none() {
        eprintln!("skipped: SPPO_VLLM_PYTHON names no interpreter that has vLLM");
    }
    python
}

impl RealServer {
    /// Starts a server of this model, with more options, on this machine's CPU, and waits until it answers.
    pub(crate) fn start(python: &Path, model: &Path, options: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Command::new(python);
        server.args(["-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port"]);
        server.arg(port.to_string()).arg("--model").arg(model);
        server.args(["--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", "512"]);
        // Short blocks, so that short prompts are cached, too; and a batch that no prompt is cut for, at which the
        // CPU build of 0.32 ends ("CPU Generator does not use offset").
        server.args(["--enforce-eager", "--block-size", "32", "--max-num-batched-tokens", "16384"]);
        server.args(options);
        for (name, value) in [
            ("VLLM_SERVER_DEV_MODE", "1"),
            ("VLLM_NO_USAGE_STATS", "1"),
            ("HF_HUB_OFFLINE", "1"),
            ("VLLM_CPU_KVCACHE_SPACE", "1"),
        ] {
            server.env(name, value);
        }
        server.stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Running(server.spawn().expect("the interpreter starts"));
        let address = format!("127.0.0.1:{port}");
        process.wait_longer_until(|| TcpStream::connect(&address).is_ok());
        Self { _process: process, address }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// The whole reply to a request, after which the server closes the connection.
pub(crate) fn forwarded(address: &str, path: &str, body: &Value) -> Vec<u8> {
    let (method, text) =
        if body.is_null() { ("GET", String::new()) } else { ("POST", body.to_string()) };
    let mut stream = TcpStream::connect(address).unwrap();
    let length = text.len();
    let head = format!("Host: {address}\r\nConnection: close\r\nContent-Type: application/json");
    write!(stream, "{method} {path} HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{text}")
        .unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).unwrap();
    reply
}

/// A copy of the default model that vLLM can reload.
pub(crate) fn with_head_of_its_own(directory: &Path) -> PathBuf {
    let served = directory.join("served");
    let mut merge = sppo();
    merge.args(["merge", "smollm2-135m-instruct", "--untied-head", "--output"]).arg(&served);
    require_success(&merge.output().unwrap());
    served
}
