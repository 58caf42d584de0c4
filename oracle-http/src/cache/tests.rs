use std::io::Write as _;

use serde_json::json;

use super::*;

fn keys(judge: &str) -> KeyMaker {
    KeyMaker::new(&json!({"identity": judge}))
}

fn part(text: &str) -> Part {
    Part { shared: Value::Null, own: json!(text) }
}

fn open(directory: &Path, keys: &KeyMaker) -> Cache {
    let config = CacheConfig { enabled: true, directory: Some(directory.into()) };
    Cache::open(&config, keys, "a judge").unwrap()
}

/// Numbers that a careless reader would round.
const VERDICTS: [QuestionVerdict; 4] = [
    QuestionVerdict::Probability(0.1 + 0.2),
    QuestionVerdict::Logit(-5e-324),
    QuestionVerdict::Score(1.797_693_134_862_315_7e308),
    QuestionVerdict::Score(2.0 / 3.0),
];

#[test]
fn verdicts_come_back_bit_for_bit_whatever_the_crash_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let keys = keys("one");
    let all: Vec<(Key, QuestionVerdict)> = VERDICTS
        .iter()
        .enumerate()
        .map(|(index, verdict)| (keys.key(&part(&index.to_string())), *verdict))
        .collect();
    let mut cache = open(directory.path(), &keys);
    cache.stage(all.iter().copied());
    cache.write_staged().unwrap();
    let file = directory.path().join(keys.file_name());
    let whole = std::fs::read(&file).unwrap();
    let ends: Vec<usize> =
        (0..whole.len()).filter(|index| whole[*index] == b'\n').map(|index| index + 1).collect();
    assert_eq!(ends.len(), 5, "a headline and a line for each verdict");
    for length in 0..=whole.len() {
        std::fs::write(&file, &whole[..length]).unwrap();
        let mut cache = open(directory.path(), &keys);
        for (index, (key, verdict)) in all.iter().enumerate() {
            let expected = (length >= ends[index + 1]).then_some(*verdict);
            assert_eq!(cache.get(key), expected, "cut at {length}, verdict {index}");
        }
        // What is written after a cut line is not lost with it.
        let key = keys.key(&part("later"));
        cache.stage([(key, QuestionVerdict::Score(1.0))]);
        cache.write_staged().unwrap();
        drop(cache);
        assert_eq!(open(directory.path(), &keys).get(&key), Some(QuestionVerdict::Score(1.0)));
    }
}

#[test]
fn a_write_that_failed_within_a_line_takes_no_later_verdict_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let keys = keys("one");
    let mut cache = open(directory.path(), &keys);
    let file = cache.file.as_mut().unwrap();
    // Nothing can be written, and yet there is the beginning of a line: as on a disk that becomes full.
    let writable = std::mem::replace(&mut file.file, Arc::new(File::open(&file.path).unwrap()));
    (&*writable).write_all(b"{\"key\":\"0123").unwrap();
    let key = keys.key(&part("paid for"));
    cache.stage([(key, QuestionVerdict::Score(1.0))]);
    cache.write_staged().unwrap_err();
    cache.file.as_mut().unwrap().file = writable;
    cache.write_staged().unwrap();
    drop(cache);
    assert_eq!(open(directory.path(), &keys).get(&key), Some(QuestionVerdict::Score(1.0)));
}

#[test]
fn damaged_lines_are_skipped_and_invalid_verdicts_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let keys = keys("one");
    let (good, bad) = (keys.key(&part("good")), keys.key(&part("bad")));
    drop(open(directory.path(), &keys));
    let file = directory.path().join(keys.file_name());
    let mut file = std::fs::OpenOptions::new().append(true).open(file).unwrap();
    let key = hexadecimal(&bad);
    writeln!(file, "\u{0}\u{0}nonsense\n{{\"key\":\"ab\",\"score\":1.0}}").unwrap();
    writeln!(file, "{{\"key\":\"{key}\",\"probability\":1.5}}").unwrap();
    writeln!(file, "{{\"key\":\"{}\",\"probability\":0.5}}", hexadecimal(&good)).unwrap();
    let cache = open(directory.path(), &keys);
    assert_eq!(
        (cache.get(&bad), cache.get(&good)),
        (None, Some(QuestionVerdict::Probability(0.5)))
    );
}

#[test]
fn another_judge_or_another_question_is_another_key() {
    let ours = keys("one");
    assert_eq!(ours.key(&part("x")), keys("one").key(&part("x")));
    assert_ne!(ours.key(&part("x")), keys("two").key(&part("x")));
    assert_ne!(ours.key(&part("x")), ours.key(&part("y")));
    let shared = Part { shared: json!("x"), own: Value::Null };
    assert_ne!(ours.key(&part("x")), ours.key(&shared));
    assert_ne!(ours.file_name(), keys("two").file_name());
}
