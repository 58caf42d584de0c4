use std::fs;

use serde_json::json;

use super::tensorboard::masked_checksum;
use super::*;

/// `(tag, step, value)` of every scalar, read with TensorBoard's own rules.
fn scalars(directory: &Path) -> Vec<(String, u64, f32)> {
    let files: Vec<_> = fs::read_dir(directory.join(TENSORBOARD)).unwrap().flatten().collect();
    assert_eq!(files.len(), 1);
    let bytes = fs::read(files[0].path()).unwrap();
    let mut rest = bytes.as_slice();
    let mut found = Vec::new();
    let mut first = true;
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(rest[8..12], masked_checksum(&rest[..8]).to_le_bytes());
        let data = &rest[12..12 + length];
        assert_eq!(rest[12 + length..16 + length], masked_checksum(data).to_le_bytes());
        rest = &rest[16 + length..];

        let event = fields(data);
        if std::mem::take(&mut first) {
            assert_eq!(event[1], (3, Field::Bytes(b"brain.Event:2".to_vec())));
            continue;
        }
        let (2, Field::Varint(step)) = event[1] else { panic!("{event:?}") };
        let (5, Field::Bytes(summary)) = &event[2] else { panic!("{event:?}") };
        for (_, value) in fields(summary) {
            let Field::Bytes(value) = value else { panic!() };
            let [(1, Field::Bytes(tag)), (2, Field::Float(value))] = &fields(&value)[..] else {
                panic!()
            };
            found.push((String::from_utf8(tag.clone()).unwrap(), step, *value));
        }
    }
    found
}

#[derive(Debug, PartialEq)]
enum Field {
    Varint(u64),
    Double(f64),
    Bytes(Vec<u8>),
    Float(f32),
}

fn fields(mut data: &[u8]) -> Vec<(u64, Field)> {
    fn varint(data: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = data[0];
            *data = &data[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    fn take<const N: usize>(data: &mut &[u8]) -> [u8; N] {
        let (taken, rest) = data.split_first_chunk().unwrap();
        *data = rest;
        *taken
    }
    let mut found = Vec::new();
    while !data.is_empty() {
        let key = varint(&mut data);
        let field = match key & 7 {
            0 => Field::Varint(varint(&mut data)),
            1 => Field::Double(f64::from_le_bytes(take(&mut data))),
            2 => {
                let length = varint(&mut data) as usize;
                let (taken, rest) = data.split_at(length);
                data = rest;
                Field::Bytes(taken.to_vec())
            }
            5 => Field::Float(f32::from_le_bytes(take(&mut data))),
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, field));
    }
    found
}

#[test]
fn checksums_are_masked_crc32c() {
    // CRC-32C of "123456789" is 0xe3069283 (RFC 3720); the mask is that of LevelDB and TFRecord.
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(masked_checksum(b"123456789"), 0xc78a_b0e5);
}

#[test]
fn both_records_tell_the_same_after_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = MetricsLog::open(directory.path(), |_| true).unwrap();
    for step in 1..=300u64 {
        let values = json!({"iteration": 1, "loss": step as f64 / 4.0, "note": "text"});
        log.append("training_step", step, &values).unwrap();
    }
    log.append("iteration", 1, &json!({"win_rate": {"mean": 0.75}, "loss": f64::NAN})).unwrap();
    drop(log);
    let path = directory.path().join(LINES);
    let mut lines = fs::read(&path).unwrap();
    lines.extend(b"{\"time\": 1.0, \"kind\": \"training_st");
    fs::write(&path, lines).unwrap();

    let committed =
        |entry: &MetricsEntry| entry.kind != "training_step" || entry.global_step <= 299;
    let mut log = MetricsLog::open(directory.path(), committed).unwrap();
    log.append("training_step", 300, &json!({"loss": 9.5})).unwrap();
    assert_eq!(log.entries().len(), 301);
    assert_eq!(log.entries()[299].values["loss"], Value::Null);

    let read: Vec<MetricsEntry> = fs::read_to_string(&path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(read, log.entries());

    let scalars = scalars(directory.path());
    assert_eq!(scalars.len(), 2 * 299 + 1 + 1);
    assert_eq!(scalars[1], ("training_step/loss".into(), 1, 0.25));
    assert_eq!(scalars[597], ("training_step/loss".into(), 299, 74.75));
    assert_eq!(scalars[598], ("iteration/win_rate/mean".into(), 1, 0.75));
    assert_eq!(scalars[599], ("training_step/loss".into(), 300, 9.5));
}
