//! A service behind TLS is asked if its certificate is trusted, and not otherwise.
//!
//! The certificates were made with openssl, for the years 2020 to 2126: a clock may be slow. The
//! authority's key was thrown away.

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sppo_http_transport::TimeoutConfig;
use sppo_plugin::PluginError;
use support::{Answer, Settings, fixture, serve, serve_stream};

/// Serves the same answers through TLS too, at the port returned.
fn behind_tls(answer: Answer) -> u16 {
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
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let session = ServerConnection::new(Arc::clone(&config)).unwrap();
            let answer = Arc::clone(&answer);
            thread::spawn(move || {
                serve_stream(StreamOwned::new(session, stream), &answer, &AtomicU64::new(0));
            });
        }
    });
    port
}

fn ask(url: &str, certificates: Option<PathBuf>) -> Result<String, PluginError> {
    support::ask(&Settings { certificates, ..Settings::quick(1) }, url)
}

#[test]
fn a_certificate_is_trusted_by_its_authority_alone() {
    let (plain, answer) = serve(|_, body| (200, format!("text of {body}")));
    let expected = ask(&plain, None).unwrap();
    let port = behind_tls(answer);
    for host in ["localhost", "127.0.0.1"] {
        let text = ask(&format!("https://{host}:{port}"), Some(fixture("authority.pem")));
        assert_eq!(text.unwrap(), expected);
    }
    let untrusted = ask(&format!("https://localhost:{port}"), None).unwrap_err().to_string();
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
    let error = ask(&format!("https://127.0.0.1:{port}"), None).unwrap_err().to_string();
    assert!(error.contains("begin with http://"), "{error}");
}

#[test]
fn a_handshake_that_does_not_end_counts_as_connecting() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let timeouts = TimeoutConfig { connect_seconds: 0.2, ..TimeoutConfig::default() };
    let settings = Settings { timeouts, ..Settings::quick(1) };
    let url = format!("https://{}", silent.local_addr().unwrap());
    let error = support::ask(&settings, &url).unwrap_err().to_string();
    assert!(error.contains("timed out connecting"), "{error}");
}

#[test]
fn a_file_without_certificates_is_refused() {
    let error = ask("https://h", Some(fixture("localhost.key"))).unwrap_err().to_string();
    assert!(error.contains("there is no certificate in it"), "{error}");
}
