//! PairRM against LLM-Blender, on a tiny ranker with random weights.

use serde::Deserialize;

use super::{Failures, MakeOps, compare, fixture, read_json, widen};
use crate::error::{ModelError, Result};
use crate::ops::encoder::EncoderOps;
use crate::serve::load_scorer;

/// Largest error of a logit. float32 itself is within 4e-6 of float64 here.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Golden {
    meta: GoldenMeta,
    cases: Vec<GoldenCase>,
}

#[derive(Deserialize)]
struct GoldenMeta {
    marker_ids: GoldenMarkers,
}

#[derive(Deserialize)]
struct GoldenMarkers {
    cand1_prefix_id: u32,
    cand2_prefix_id: u32,
    cand_prefix_id: u32,
}

#[derive(Deserialize)]
struct GoldenCase {
    source_ids: Vec<u32>,
    candidate_ids: Vec<Vec<u32>>,
    logits: Vec<Vec<f64>>,
}

impl GoldenMarkers {
    /// Candidate `first` before candidate `second`.
    fn sequence(&self, case: &GoldenCase, first: usize, second: usize) -> Vec<u32> {
        let marked = |candidate: usize, marker: u32| {
            let tokens = case.candidate_ids[candidate].iter();
            tokens.map(move |&token| if token == self.cand_prefix_id { marker } else { token })
        };
        let first = marked(first, self.cand1_prefix_id);
        let second = marked(second, self.cand2_prefix_id);
        case.source_ids.iter().copied().chain(first).chain(second).collect()
    }
}

/// Shows each candidate of the golden numbers before the next, and the last before the first, alone and
/// packed with others; describes each logit that is off by more than 1e-4.
pub fn check_ranker<O: EncoderOps>(make: &MakeOps<'_, O>) -> Vec<String> {
    check(make).unwrap_or_else(|error| vec![error.to_string()])
}

fn check<O: EncoderOps>(make: &MakeOps<'_, O>) -> Failures {
    let golden: Golden = read_json(&fixture("pairrm-tiny/golden.json"))?;
    let mut failures = Vec::new();
    let mut ranker = load_scorer(make()?, &fixture("pairrm-tiny"))?;
    for (number, case) in golden.cases.iter().enumerate() {
        let size = case.candidate_ids.len();
        let pairs = (0..size).map(|first| (first, (first + 1) % size));
        let (sequences, expected): (Vec<_>, Vec<_>) = pairs
            .map(|(i, j)| (golden.meta.marker_ids.sequence(case, i, j), case.logits[i][j]))
            .unzip();
        let mut score = |sequences: &[Vec<u32>]| -> Result<Vec<f64>> {
            let scores = ranker.score(sequences);
            Ok(widen(&scores.map_err(|error| ModelError::Backend(error.message))?))
        };
        let packed = score(&sequences)?;
        failures.extend(compare(&format!("case {number}"), &packed, &expected, TOLERANCE));
        let alone = score(&sequences[..1])?;
        failures.extend(compare(&format!("case {number} alone"), &alone, &packed[..1], 1e-5));
    }
    Ok(failures)
}
