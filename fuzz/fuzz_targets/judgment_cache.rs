//! The file in which the oracle `http` remembers judgments.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sppo_fuzz::{directory, within_limits};
use sppo_oracle_http::fuzzing::read_cache;

fuzz_target!(|data: &[u8]| within_limits(|| read_cache(directory(), data)));
