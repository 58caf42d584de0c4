//! Prompts, pairs, candidates and responses in JSON lines, one JSON document, or either in gzip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sppo_core::datasets::{
    ColumnNames, Contradictions, OneOrMore, read_candidates, read_pairs, read_prompts,
    read_prompts_named, read_score_requests, write_candidates,
};
use sppo_core::objective::Objective;
use sppo_fuzz::{directory, file, within_limits};

fuzz_target!(|data: &[u8]| {
    let path = file("rows.jsonl", data);
    within_limits(|| {
        let _ = read_prompts(&path);
        let several = OneOrMore::More(vec!["instruction".into(), "input".into()]);
        let names = ColumnNames { prompt: Some(several), ..ColumnNames::default() };
        let _ = read_prompts_named(&path, &names);
        for objective in [Objective::Dpo, Objective::Sppo] {
            let _ = read_pairs(&path, objective).map(|pairs| Contradictions::among(&pairs));
        }
        let _ = read_score_requests(&path);
        if let Ok(sets) = read_candidates(&path) {
            for name in ["out.jsonl", "out.parquet"] {
                let _ = write_candidates(&directory().join(name), &sets);
            }
        }
    });
});
