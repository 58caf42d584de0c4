//! A service that misbehaves in every way makes the same matrices as one that does not, and is asked for
//! no judgment twice.

mod support;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sppo_oracle_http as _;
use sppo_plugin::{
    Candidate, Comparison, Message, PluginError, PluginErrorKind, Progress, Verdict, create_oracle,
};
use support::{ALL_FAULTS, Behaviour, Service};

/// Remembers what it is told, and wants to stop once a service has got a request.
#[derive(Default)]
struct Watcher<'a> {
    metrics: RefCell<BTreeMap<String, f64>>,
    progress: Cell<(u64, u64)>,
    stops_once_asked: Option<&'a Service>,
}

impl Progress for Watcher<'_> {
    fn is_cancelled(&self) -> bool {
        self.stops_once_asked.is_some_and(|service| service.requests() > 0)
    }

    fn progress(&self, completed: u64, total: u64) {
        self.progress.set((completed, total));
    }

    fn metrics(&self, values: &[(&str, f64)]) {
        let named = values.iter().map(|(name, value)| ((*name).to_owned(), *value));
        self.metrics.borrow_mut().extend(named);
    }
}

impl Watcher<'_> {
    fn metric(&self, name: &str) -> f64 {
        self.metrics.borrow()[name]
    }
}

fn comparisons(prompts: usize, candidates: usize) -> Vec<Comparison<'static>> {
    let comparison = |prompt: usize| Comparison {
        prompt: [Message::user(format!("Question {prompt}: why is the sky \"blue\"?\n"))].into(),
        rendered_prompt: None,
        candidates: (0..candidates)
            .map(|index| Candidate::from_text(format!("Answer {index} to {prompt}: é 你好")))
            .collect(),
    };
    (0..prompts).map(comparison).collect()
}

/// The settings of a protocol, with a word behind its name where there is another way to ask.
fn settings(protocol: &str, endpoints: &[String], cache: &Path) -> Value {
    let (name, way) = protocol.split_once(' ').unwrap_or((protocol, ""));
    let changes = match name {
        "openai-rubric" => {
            let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/rubric.json");
            json!({"rubric": {"file": file, "ask": if way.is_empty() { "chat" } else { way }}})
        }
        _ if way == "prompt" => json!({"decision": {"scope": "prompt"}}),
        _ => json!({}),
    };
    with(settings_of(name, endpoints, cache), changes)
}

fn settings_of(protocol: &str, endpoints: &[String], cache: &Path) -> Value {
    json!({
        "protocol": protocol,
        "endpoints": endpoints,
        "model": "judge",
        "questions_per_request": 3,
        "concurrency": {"max": 16, "start": 4},
        // Nothing takes so long, however busy the machine is.
        "timeouts": {"connect_seconds": 30.0, "read_seconds": 30.0, "total_seconds": 60.0},
        "retries": {"max_attempts": 14, "first_delay_seconds": 0.005, "longest_delay_seconds": 0.05},
        "cache": {"directory": cache},
    })
}

fn with(mut settings: Value, changes: Value) -> Value {
    for (table, fields) in changes.as_object().unwrap() {
        match fields {
            Value::Object(fields) => {
                for (name, value) in fields {
                    settings[table][name] = value.clone();
                }
            }
            value => settings[table] = value.clone(),
        }
    }
    settings
}

fn ask(
    settings: Value,
    comparisons: &[Comparison<'_>],
    host: &Watcher<'_>,
) -> Result<Vec<Verdict>, PluginError> {
    create_oracle("http", settings).unwrap().preferences(comparisons, host)
}

/// The verdicts of a service without faults, in a cache of their own.
fn expected(protocol: &str, comparisons: &[Comparison<'_>]) -> Vec<Verdict> {
    let service = Service::start(Behaviour::default());
    let cache = tempfile::tempdir().unwrap();
    let settings = settings(protocol, &[service.url()], cache.path());
    let mut oracle = create_oracle("http", settings).unwrap();
    let verdicts = oracle.preferences(comparisons, &Watcher::default()).unwrap();
    let [prompts, answers] = [comparisons.len(), comparisons[0].candidates.len()];
    let announced = oracle.expected_requests(prompts as u64, answers as u64);
    assert_eq!(announced, Some(service.requests()), "{protocol}: not as many as announced");
    verdicts
}

const PROTOCOLS: [&str; 16] = [
    "pairwise",
    "openai-judge",
    "systemone",
    "systemone prompt",
    "openai-decisions",
    "nvidia-genrm",
    "openai-rubric",
    "openai-rubric systemone",
    "openai-rubric openai-decisions",
    "openai-groupwise",
    "nemo-gym-compare",
    "openrlhf",
    "vllm-classify",
    "vllm-score",
    "tei-predict",
    "tei-rerank",
];

#[test]
fn thirty_percent_faults_change_nothing_but_the_time() {
    let mut seen = std::collections::HashSet::new();
    let threads = PROTOCOLS.map(|protocol| {
        thread::spawn(move || {
            let comparisons = comparisons(24, 4);
            let service = Service::start(Behaviour { fault_share: 0.3, ..Behaviour::default() });
            let cache = tempfile::tempdir().unwrap();
            let host = Watcher::default();
            // Some replies take longer, on purpose.
            let settings = with(
                settings(protocol, &[service.url()], cache.path()),
                json!({"timeouts": {"read_seconds": 4.0, "total_seconds": 5.0}}),
            );
            let verdicts = ask(settings.clone(), &comparisons, &host).unwrap();
            assert!(verdicts == expected(protocol, &comparisons), "{protocol}");
            assert_eq!(host.progress.get(), (24, 24), "{protocol}");
            let answered = service.answered();
            let is_reward_model =
                ["nemo", "openrlhf", "vllm", "tei"].iter().any(|one| protocol.starts_with(one));
            // Four answers: twelve ordered pairs, or three criteria or orders for each.
            let questions = if is_reward_model { 4 } else { 12 };
            assert_eq!(answered.len(), 24 * questions, "{protocol}");
            assert!(answered.values().all(|times| *times == 1), "{protocol}: asked twice");
            assert!(host.metric("retries") > 0.0, "{protocol}");
            // Again, from what is remembered alone.
            let requests = service.requests();
            let again = Watcher::default();
            assert!(ask(settings, &comparisons, &again).unwrap() == verdicts, "{protocol}");
            assert_eq!(service.requests(), requests, "{protocol}");
            assert_eq!(again.metric("cache_hits"), (24 * questions) as f64, "{protocol}");
            service.faults()
        })
    });
    for thread in threads {
        seen.extend(thread.join().unwrap().into_keys());
    }
    assert_eq!(seen.len(), ALL_FAULTS.len(), "only {seen:?} happened");
}

#[test]
fn a_group_that_is_remembered_in_part_is_asked_about_as_a_whole() {
    let service = Service::start(Behaviour::default());
    let cache = tempfile::tempdir().unwrap();
    let comparisons = comparisons(3, 4);
    let settings = settings("openai-groupwise", &[service.url()], cache.path());
    let verdicts = ask(settings.clone(), &comparisons, &Watcher::default()).unwrap();
    assert_eq!(service.requests(), 3 * 3);
    // A crash cut the file off within the scores of a reply.
    let file = std::fs::read_dir(cache.path()).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(&file).unwrap();
    let end = text.trim_end().rfind('\n').unwrap();
    std::fs::write(&file, &text[..=end]).unwrap();
    assert!(ask(settings, &comparisons, &Watcher::default()).unwrap() == verdicts);
    assert_eq!(service.requests(), 3 * 3 + 1);
}

#[test]
fn of_two_endpoints_a_dead_one_is_dropped_and_the_other_does_the_work() {
    let comparisons = comparisons(100, 3);
    // It leaves time to ask the dead one for each of the 200 requests.
    let alive =
        Service::start(Behaviour { delay: Duration::from_millis(10), ..Behaviour::default() });
    let dead = Service::start(Behaviour::default());
    dead.set_down(true);
    let cache = tempfile::tempdir().unwrap();
    let settings = settings("pairwise", &[dead.url(), alive.url()], cache.path());
    let verdicts = ask(settings, &comparisons, &Watcher::default()).unwrap();
    assert!(verdicts == expected("pairwise", &comparisons));
    // Eight failures drop it; others may be under way by then, and one request tries it now and then.
    let tried = dead.connections();
    assert!((1..=30).contains(&tried), "{tried} connections to the dead one");
}

#[test]
fn endpoints_share_the_work() {
    let slow = || Behaviour { delay: Duration::from_millis(20), ..Behaviour::default() };
    let services = [Service::start(slow()), Service::start(slow())];
    let cache = tempfile::tempdir().unwrap();
    let endpoints = services.each_ref().map(Service::url);
    let settings = settings("openai-judge", &endpoints, cache.path());
    ask(settings, &comparisons(30, 3), &Watcher::default()).unwrap();
    let [first, second] = services.each_ref().map(Service::requests);
    assert!(first + second == 180 && first.min(second) >= 20, "{first} and {second}");
}

#[test]
fn a_service_that_sends_heads_and_bodies_apart_is_not_given_twice_the_connections() {
    let service = Service::start(Behaviour { split: true, ..Behaviour::default() });
    let cache = tempfile::tempdir().unwrap();
    let settings = with(
        settings("openai-judge", &[service.url()], cache.path()),
        json!({"concurrency": {"max": 8, "start": 8}}),
    );
    ask(settings, &comparisons(60, 3), &Watcher::default()).unwrap();
    // One or the other may be opened in vain while all begin at once.
    let connections = service.connections();
    assert!(service.requests() == 360 && connections <= 10, "{connections}");
}

#[test]
fn what_fails_after_a_stop_is_not_tried_again() {
    let delay = Duration::from_millis(1500);
    let service = Service::start(Behaviour { always: Some(500), delay, ..Behaviour::default() });
    let cache = tempfile::tempdir().unwrap();
    let host = Watcher { stops_once_asked: Some(&service), ..Watcher::default() };
    let settings = settings("pairwise", &[service.url()], cache.path());
    let mut oracle = create_oracle("http", settings).unwrap();
    let error = oracle.preferences(&comparisons(1, 2), &host).unwrap_err();
    assert_eq!(error.kind, PluginErrorKind::Cancelled);
    // A second attempt would follow at once, and the oracle is still there to make it.
    thread::sleep(Duration::from_millis(300));
    assert_eq!(service.requests(), 1);
}

#[test]
fn an_outage_stops_the_call_and_what_was_judged_is_not_asked_again() {
    let comparisons = comparisons(40, 4);
    let service = Service::start(Behaviour {
        delay: Duration::from_millis(4),
        down_after: Some(30),
        ..Behaviour::default()
    });
    let cache = tempfile::tempdir().unwrap();
    let settings = with(
        settings("pairwise", &[service.url()], cache.path()),
        json!({"retries": {"give_up_after_seconds": 0.6}}),
    );
    let error = ask(settings.clone(), &comparisons, &Watcher::default()).unwrap_err();
    assert_eq!(error.kind, PluginErrorKind::Failed);
    let message = error.to_string();
    assert!(message.contains("nothing has succeeded for"), "{message}");
    assert!(message.contains(&service.url()), "{message}");
    assert!(error.hint.is_some_and(|hint| hint.contains("--resume")));

    service.set_down(false);
    let verdicts = ask(settings, &comparisons, &Watcher::default()).unwrap();
    assert!(verdicts == expected("pairwise", &comparisons));
    assert!(service.answered().values().all(|times| *times == 1), "asked twice");
}

#[test]
fn a_refusal_stops_at_once_and_says_what_the_service_said() {
    for (status, hint) in [
        (400, "change the settings"),
        (401, "api_key_env"),
        (404, "endpoints"),
        (413, "questions_per_request"),
        (302, "redirects"),
    ] {
        let service = Service::start(Behaviour { always: Some(status), ..Behaviour::default() });
        let cache = tempfile::tempdir().unwrap();
        let settings = with(
            settings("pairwise", &[service.url()], cache.path()),
            json!({"concurrency": {"max": 1}}),
        );
        let error = ask(settings, &comparisons(5, 3), &Watcher::default()).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(&status.to_string()) && message.contains("so it is"), "{message}");
        assert!(error.hint.as_deref().is_some_and(|text| text.contains(hint)), "{:?}", error.hint);
        assert_eq!(service.requests(), 1);
    }
}

#[test]
fn requests_that_fail_too_often_stop_the_call() {
    let service = Service::start(Behaviour { always: Some(500), ..Behaviour::default() });
    let cache = tempfile::tempdir().unwrap();
    let settings = with(
        settings("pairwise", &[service.url()], cache.path()),
        json!({"retries": {"max_attempts": 3}}),
    );
    let error = ask(settings, &comparisons(1, 2), &Watcher::default()).unwrap_err().to_string();
    assert!(error.contains("failed 3 times") && error.contains("500"), "{error}");
    assert_eq!(service.requests(), 3);
}

#[test]
fn invalid_verdicts_are_asked_again_counted_and_bounded() {
    let comparisons = comparisons(20, 3);
    let chatty = |chatter_share| Behaviour { chatter_share, ..Behaviour::default() };
    // Seldom enough that asking again helps.
    let service = Service::start(chatty(0.05));
    let cache = tempfile::tempdir().unwrap();
    let base = settings("openai-judge", &[service.url()], cache.path());
    let verdicts = ask(base, &comparisons, &Watcher::default()).unwrap();
    assert!(verdicts == expected("openai-judge", &comparisons));

    // Always: the bound is exceeded, and no tie is made up.
    let service = Service::start(chatty(1.0));
    let base = settings("openai-judge", &[service.url()], cache.path());
    let error = ask(base.clone(), &comparisons, &Watcher::default()).unwrap_err().to_string();
    assert!(error.contains("verdicts are invalid") && error.contains("lovely"), "{error}");
    let lenient = with(base, json!({"judge": {"max_invalid_share": 1.0}}));
    let error = ask(lenient.clone(), &comparisons, &Watcher::default()).unwrap_err().to_string();
    assert!(error.contains("no valid verdict"), "{error}");
    let ties = with(lenient, json!({"judge": {"undecided": "tie"}}));
    let host = Watcher::default();
    let verdicts = ask(ties, &comparisons, &host).unwrap();
    assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Orders(vec![None; 9])));
    assert_eq!(host.metric("undecided_pairs"), 60.0);
    assert_eq!(host.metric("invalid_verdicts"), 120.0);
}

#[test]
fn one_order_costs_half_and_equal_questions_are_asked_once() {
    let service = Service::start(Behaviour::default());
    let cache = tempfile::tempdir().unwrap();
    let settings =
        with(settings("openai-judge", &[service.url()], cache.path()), json!({"orders": "one"}));
    let mut twice = comparisons(4, 4);
    // Answers that read the same are not judged at all.
    let mut candidates = twice[0].candidates.to_vec();
    candidates[3] = candidates[1].clone();
    twice[0].candidates = candidates.into();
    twice.extend(twice.clone());
    let mut oracle = create_oracle("http", settings).unwrap();
    assert_eq!(oracle.expected_requests(4, 4), Some(24));
    let verdicts = oracle.preferences(&twice, &Watcher::default()).unwrap();
    assert_eq!(verdicts[..4], verdicts[4..]);
    // Five pairs differ, of which those with answer 3 ask what those with answer 1 ask.
    assert_eq!(service.requests(), 3 * 6 + 3);
    let Verdict::Orders(orders) = &verdicts[0] else { panic!() };
    assert_eq!((orders[7], orders[13]), (None, None), "answers 1 and 3 read the same");
    for (i, j) in [(0, 1), (0, 2), (0, 3), (1, 2), (2, 3)] {
        assert!(orders[4 * i + j].is_some() != orders[4 * j + i].is_some(), "{i} and {j}");
    }
}

#[test]
fn a_request_to_stop_is_heeded_while_requests_are_under_way() {
    let service =
        Service::start(Behaviour { delay: Duration::from_millis(300), ..Behaviour::default() });
    let cache = tempfile::tempdir().unwrap();
    let host = Watcher { stops_once_asked: Some(&service), ..Watcher::default() };
    let settings = settings("pairwise", &[service.url()], cache.path());
    let started = Instant::now();
    let error = ask(settings, &comparisons(400, 4), &host).unwrap_err();
    assert_eq!(error.kind, PluginErrorKind::Cancelled);
    // All 1600, at most 16 at a time, would take half a minute.
    let asked = service.requests();
    assert!((1..800).contains(&asked), "{asked} requests");
    assert!(started.elapsed() < Duration::from_secs(15));
}
