//! A service behind TLS is asked if its certificate is trusted, and not otherwise.
//!
//! The certificates were made with openssl, for the years 2020 to 2126: a clock may be slow. The
//! authority's key was thrown away.

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use sppo_oracle_http as _;
use sppo_plugin::{
    Candidate, Comparison, Message, PluginError, SilentHost, Verdict, create_oracle,
};
use support::{Behaviour, Service};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Serves a service's judgments through TLS too, at the port returned.
fn behind_tls(service: Service) -> u16 {
    let certificate = CertificateDer::from_pem_file(fixture("localhost.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(fixture("localhost.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let service = Arc::new(service);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let session = ServerConnection::new(Arc::clone(&config)).unwrap();
            let service = Arc::clone(&service);
            thread::spawn(move || service.serve(StreamOwned::new(session, stream)));
        }
    });
    port
}

fn comparison() -> Comparison<'static> {
    Comparison {
        prompt: [Message::user("Why?")].into(),
        rendered_prompt: None,
        candidates: (0..4).map(|index| Candidate::from_text(format!("Answer {index}"))).collect(),
    }
}

fn ask(url: String, certificates: Option<&Path>) -> Result<Vec<Verdict>, PluginError> {
    let mut settings: Value = json!({
        "endpoints": [url],
        "retries": {"max_attempts": 1},
        "cache": {"enabled": false},
    });
    if let Some(path) = certificates {
        settings["certificates"] = json!(path);
    }
    create_oracle("http", settings).unwrap().preferences(&[comparison()], &SilentHost)
}

#[test]
fn a_certificate_is_trusted_by_its_authority_alone() {
    let plain = Service::start(Behaviour::default());
    let expected = ask(plain.url(), None).unwrap();
    let port = behind_tls(plain);
    for host in ["localhost", "127.0.0.1"] {
        let verdicts = ask(format!("https://{host}:{port}"), Some(&fixture("authority.pem")));
        assert_eq!(verdicts.unwrap(), expected);
    }
    let untrusted = ask(format!("https://localhost:{port}"), None).unwrap_err().to_string();
    assert!(untrusted.contains("UnknownIssuer"), "{untrusted}");
    assert!(untrusted.contains("`certificates`"), "{untrusted}");
}

#[test]
fn a_service_without_tls_is_told_from_one_that_is_down() {
    let plain = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = plain.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in plain.incoming().flatten() {
            // A connection that turned out not to be needed ends without a word.
            if stream.read_exact(&mut [0; 5]).is_ok() {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            }
        }
    });
    let error = ask(format!("https://127.0.0.1:{port}"), None).unwrap_err().to_string();
    assert!(error.contains("begin with http://"), "{error}");
}

#[test]
fn a_handshake_that_does_not_end_counts_as_connecting() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let settings = json!({
        "endpoints": [format!("https://{}", silent.local_addr().unwrap())],
        "timeouts": {"connect_seconds": 0.2},
        "retries": {"max_attempts": 1},
        "cache": {"enabled": false},
    });
    let mut oracle = create_oracle("http", settings).unwrap();
    let error = oracle.preferences(&[comparison()], &SilentHost).unwrap_err().to_string();
    assert!(error.contains("timed out connecting"), "{error}");
}

#[test]
fn a_file_without_certificates_is_refused() {
    let settings = json!({"endpoints": ["https://h"], "certificates": fixture("localhost.key")});
    let error = create_oracle("http", settings).err().unwrap().to_string();
    assert!(error.contains("there is no certificate in it"), "{error}");
}
