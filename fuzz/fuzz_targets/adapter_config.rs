//! PEFT's `adapter_config.json`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sppo_fuzz::within_limits;
use sppo_model::fuzzing::read_adapter_config;

fuzz_target!(|data: &[u8]| within_limits(|| read_adapter_config(data)));
