//! The transport carries jobs that have nothing to do with judgments: here, prompts and their texts.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use support::{Settings, Texts, ask, collect, request, serve};

#[test]
fn each_reply_comes_back_with_its_job_whatever_went_wrong_before() {
    // Of three requests one is refused for the moment, and one gets a reply without form.
    let (url, _) = serve(|number, body| match number % 3 {
        0 => (503, "busy".into()),
        1 => (200, "<html>".into()),
        _ => (200, format!("text of {body}")),
    });
    let exchange = Arc::new(Texts::default());
    let dispatcher = Settings::quick(100).dispatcher(&url, &exchange).unwrap();
    for _ in 0..2 {
        dispatcher.begin();
        (0..40).for_each(|prompt| dispatcher.push(request(prompt)));
        let expected: Vec<(usize, String)> =
            (0..40).map(|prompt| (prompt, format!("text of prompt {prompt}"))).collect();
        assert_eq!(collect(&dispatcher).unwrap(), expected);
    }
    let counters = dispatcher.wait(Duration::ZERO).counters;
    assert_eq!(counters.requests, 80 + counters.retries);
    assert!(counters.retries >= 80, "{counters:?}");
    let log = exchange.log.lock().unwrap();
    assert_eq!(log.iter().filter(|line| line.starts_with("settled")).count(), 80);
}

#[test]
fn a_reply_of_no_use_is_asked_for_again_and_committed_before_it_is_settled() {
    let (url, _) = serve(|number, _| match number {
        0 => (200, "text 0, unfinished".into()),
        _ => (200, format!("text {number}")),
    });
    let exchange = Arc::new(Texts::default());
    let dispatcher = Settings::quick(1).dispatcher(&url, &exchange).unwrap();
    dispatcher.begin();
    dispatcher.push(request(7));
    assert_eq!(collect(&dispatcher).unwrap(), [(7, "text 1".to_owned())]);
    let log = exchange.log.lock().unwrap();
    assert_eq!(
        *log,
        ["read text 0, unfinished", "commit", "read text 1", "commit", "settled text 1"]
    );
    // After the third it has to do.
    let (url, _) = serve(|number, _| (200, format!("text {number}, unfinished")));
    assert_eq!(ask(&Settings::quick(1), &url).unwrap(), "text 2, unfinished");
}

#[test]
fn a_round_stops_when_what_was_read_cannot_be_stored() {
    let (url, _) = serve(|_, _| (200, "text".into()));
    let exchange = Arc::new(Texts { disk_full: true, ..Texts::default() });
    let dispatcher = Settings::quick(5).dispatcher(&url, &exchange).unwrap();
    dispatcher.begin();
    dispatcher.push(request(0));
    assert_eq!(collect(&dispatcher).unwrap_err().to_string(), "the disk is full");
}

#[test]
fn hints_are_those_of_the_exchange_where_it_has_any() {
    let refused = |status| {
        let (url, _) = serve(move |_, _| (status, "no".into()));
        ask(&Settings::quick(3), &url).unwrap_err().hint.unwrap()
    };
    assert_eq!(refused(418), "ask a coffee machine");
    assert_eq!(refused(404), "check `endpoints`");
    assert_eq!(refused(500), "start again");
}

#[test]
fn replies_to_an_abandoned_round_are_settled_and_not_handed_over() {
    let (url, _) = serve(|_, body| {
        thread::sleep(Duration::from_millis(200));
        (200, format!("text of {body}"))
    });
    let exchange = Arc::new(Texts::default());
    let dispatcher = Settings::quick(1).dispatcher(&url, &exchange).unwrap();
    dispatcher.begin();
    dispatcher.push(request(1));
    while dispatcher.wait(Duration::ZERO).in_flight == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    dispatcher.abandon(Duration::from_secs(30));
    dispatcher.begin();
    dispatcher.push(request(2));
    assert_eq!(collect(&dispatcher).unwrap(), [(2, "text of prompt 2".to_owned())]);
    assert!(exchange.log.lock().unwrap().contains(&"settled text of prompt 1".to_owned()));
}

#[test]
fn a_key_is_sent_and_removed_from_texts() {
    let file = std::env::temp_dir().join(format!("sppo-http-transport-{}", std::process::id()));
    std::fs::write(&file, "sEcReT\n").unwrap();
    let requests = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&requests);
    let (url, _) = serve(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        (200, "text that repeats sEcReT".into())
    });
    let settings = Settings { key_file: Some(file.clone()), ..Settings::quick(1) };
    assert_eq!(ask(&settings, &url).unwrap(), "text that repeats ***");
    assert_eq!(requests.load(Ordering::SeqCst), 1);
    std::fs::remove_file(file).unwrap();
}
