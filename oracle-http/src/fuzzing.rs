//! Entry points of the fuzz targets, which see what no other crate does.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use serde_json::Value;

use crate::cache::{Cache, KeyMaker};
use crate::config::{
    CacheConfig, DecisionConfig, HttpConfig, JudgeConfig, ProtocolName, RubricConfig, RubricJudge,
    Scope, ScoringConfig,
};
use crate::protocol::{self, Protocol};
use crate::question::QuestionVerdict;

/// Settings that replies are read under: every protocol, and those that change how one is read.
fn settings() -> Vec<HttpConfig> {
    let of = |protocol| HttpConfig { protocol, ..HttpConfig::default() };
    let judge = |judge| HttpConfig { judge, ..of(ProtocolName::OpenaiJudge) };
    let decisions = |protocol| HttpConfig {
        decision: DecisionConfig { scope: Scope::Prompt, tie: true, ..DecisionConfig::default() },
        ..of(protocol)
    };
    let classes = |protocol, class: &str| HttpConfig {
        scoring: ScoringConfig { class: Some(class.into()), ..ScoringConfig::default() },
        ..of(protocol)
    };
    let rubric = |ask| {
        let file = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/rubric.json").into());
        let rubric = RubricConfig { file, ask, ..RubricConfig::default() };
        HttpConfig { rubric, ..of(ProtocolName::OpenaiRubric) }
    };
    vec![
        of(ProtocolName::Pairwise),
        judge(JudgeConfig::default()),
        judge(JudgeConfig {
            log_probs: false,
            label_tie: Some("C".into()),
            ..JudgeConfig::default()
        }),
        judge(JudgeConfig {
            label_first: "甲".into(),
            label_second: "乙".into(),
            ..JudgeConfig::default()
        }),
        decisions(ProtocolName::Systemone),
        decisions(ProtocolName::OpenaiDecisions),
        of(ProtocolName::NvidiaGenrm),
        of(ProtocolName::OpenaiGroupwise),
        of(ProtocolName::Openrlhf),
        of(ProtocolName::VllmClassify),
        classes(ProtocolName::VllmClassify, "1"),
        of(ProtocolName::VllmScore),
        of(ProtocolName::TeiPredict),
        classes(ProtocolName::TeiPredict, "LABEL_1"),
        of(ProtocolName::TeiRerank),
        of(ProtocolName::NemoGymCompare),
        rubric(RubricJudge::Chat),
        rubric(RubricJudge::Systemone),
        rubric(RubricJudge::OpenaiDecisions),
    ]
}

/// Reads the body of a reply, and of an error, under the settings with this number.
pub fn read_reply(choice: usize, body: &[u8]) {
    static PROTOCOLS: LazyLock<Vec<Box<dyn Protocol>>> = LazyLock::new(|| {
        let create = |config| protocol::create(config).expect("every protocol can be made");
        settings().iter().map(create).collect()
    });
    let protocol = &PROTOCOLS[choice % PROTOCOLS.len()];
    let count = if protocol.takes_several() { 1 + choice / PROTOCOLS.len() % 3 } else { 1 };
    if let Ok(reply) = protocol.read(body, count) {
        assert!(reply.refusal.is_some() || reply.verdicts.len() == count);
        let is_valid = |verdict: &QuestionVerdict| verdict.is_valid();
        assert!(reply.verdicts.iter().flatten().all(is_valid));
        let _ = reply.ending.reason(HttpConfig::default().tables());
    }
    sppo_http_transport::fuzzing::read_error(body);
}

/// Opens a file of judgments that holds these bytes, in a directory, twice: opening it mends its end.
///
/// # Panics
/// When opening it again tells other judgments.
pub fn read_cache(directory: &Path, content: &[u8]) {
    let config = CacheConfig { enabled: true, directory: Some(directory.to_path_buf()) };
    let keys = KeyMaker::new(&Value::Null);
    let open = || Cache::open(&config, &keys, "a judge").map(|cache| cache.len());
    if open().is_ok() && fs::write(directory.join(keys.file_name()), content).is_ok() {
        let _ = Cache::has_answered(&config, &keys);
        let (first, second) = (open(), open());
        assert_eq!(first.ok(), second.ok());
    }
}
