//! Safetensors: the header and values of one file, and the index of several.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sppo_fuzz::{directory, file, within_limits};
use sppo_model::fuzzing::read_safetensors;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// A shard with one tensor, `a`, of two numbers.
const SHARD: &[u8] = b"\x38\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}  \0\0\0\0\0\0\0\0";

fuzz_target!(|data: &[u8]| {
    let is_index = data.first() == Some(&b'{');
    let (name, other) = if is_index { (INDEX, SINGLE) } else { (SINGLE, INDEX) };
    let _ = std::fs::remove_file(directory().join(other));
    file(name, data);
    file("a.safetensors", SHARD);
    within_limits(|| read_safetensors(directory()));
});
