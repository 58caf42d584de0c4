//! One endpoint is asked until it answers, refuses, or has failed too often.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sppo_http_transport::{Address, Direct, Malformed, Unserved, Verb};
use support::{Settings, serve};

fn direct(attempts: u32, url: &str) -> Direct {
    let base = Address::parse(url, "/").unwrap();
    Direct::new(&Settings::quick(attempts).view(), base).unwrap()
}

fn text(body: &[u8]) -> Result<String, Malformed> {
    let text = String::from_utf8_lossy(body).into_owned();
    if text.starts_with("text") { Ok(text) } else { Err(Malformed("no text".into())) }
}

fn ask(direct: &Direct) -> Result<String, Unserved> {
    direct.ask(Verb::Post, "/state?of=it", b"{}", &text, &|| false)
}

#[test]
fn it_is_asked_until_its_reply_makes_sense() {
    let (url, _) = serve(|number, body| match number {
        0 => (503, "paused".into()),
        1 => (500, "oops".into()),
        2 => (200, "tex".into()),
        _ => (200, format!("text of {body}")),
    });
    assert_eq!(ask(&direct(10, &url)), Ok("text of {}".into()));
    assert!(ask(&direct(10, &format!("{url}/prefix/"))).is_ok());
}

#[test]
fn a_refusal_is_told_at_once_and_a_failure_after_all_attempts() {
    let asked = std::sync::Arc::new(AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&asked);
    let (url, _) = serve(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        (404, "{\"detail\": \"Not Found\"}".into())
    });
    let Err(Unserved::Refused(refusal)) = ask(&direct(10, &url)) else { panic!() };
    assert_eq!((refusal.status, asked.load(Ordering::SeqCst)), (404, 1));
    let (url, _) = serve(|_, _| (500, "engine died".into()));
    let Err(Unserved::Failed(said)) = ask(&direct(3, &url)) else { panic!() };
    assert!(said.contains("engine died"), "{said}");
}

#[test]
fn the_caller_may_stop_in_the_middle_of_a_reply() {
    let (url, _) = serve(|_, _| {
        std::thread::sleep(Duration::from_secs(20));
        (200, "text".into())
    });
    let began = Instant::now();
    let is_late = || began.elapsed() > Duration::from_millis(100);
    let stopped = direct(1, &url).ask(Verb::Get, "/", b"", &text, &is_late);
    assert_eq!(stopped, Err(Unserved::Cancelled));
    assert!(began.elapsed() < Duration::from_secs(10));
}
