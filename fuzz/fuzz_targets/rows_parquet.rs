//! Prompts, pairs, candidates and responses in Parquet.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sppo_core::datasets::{
    read_candidates, read_pairs, read_prompts, read_score_requests, write_candidates,
};
use sppo_core::objective::Objective;
use sppo_fuzz::{directory, file, panics_may_be_caught_in, within_limits};

fuzz_target!(init: panics_may_be_caught_in("/parquet-"), |data: &[u8]| {
    let path = file("rows.parquet", data);
    within_limits(|| {
        let _ = read_prompts(&path);
        let _ = read_pairs(&path, Objective::Sppo);
        let _ = read_score_requests(&path);
        if let Ok(sets) = read_candidates(&path) {
            let _ = write_candidates(&directory().join("out.jsonl"), &sets);
        }
    });
});
