//! Reward models against transformers: tiny random ones of every supported architecture.

use serde::Deserialize;

use super::{Failures, MakeOps, compare, fixture, read_json, widen};
use crate::decoder::FAMILIES;
use crate::error::{ModelError, Result};
use crate::ops::encoder::EncoderOps;
use crate::serve::load_scorer;

/// Largest error of a score. The scores are of the order of 1.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Golden {
    sequences: Vec<Vec<u32>>,
    scores: Vec<f64>,
    #[serde(default)]
    texts: Vec<GoldenTexts>,
}

#[derive(Deserialize)]
struct GoldenTexts {
    ids: Vec<Vec<u32>>,
    scores: Vec<f64>,
}

/// Scores the sequences of the golden numbers, packed and alone; describes each score that is off by
/// more than 1e-4.
pub fn check_reward_models<O: EncoderOps>(make: &MakeOps<'_, O>) -> Vec<String> {
    let names = std::iter::once("deberta").chain(FAMILIES.iter().map(|family| family.model_type()));
    let check_one = |name: &'static str| {
        let found = check(make, name).unwrap_or_else(|error| vec![error.to_string()]);
        found.into_iter().map(move |line| format!("{name}: {line}"))
    };
    names.flat_map(check_one).collect()
}

fn check<O: EncoderOps>(make: &MakeOps<'_, O>, name: &str) -> Failures {
    let directory = fixture(&format!("reward/{name}"));
    let golden: Golden = read_json(&directory.join("golden.json"))?;
    let mut model = load_scorer(make()?, &directory)?;
    let mut score = |sequences: &[Vec<u32>]| -> Result<Vec<f64>> {
        let scores = model.score(sequences);
        Ok(widen(&scores.map_err(|error| ModelError::Backend(error.message))?))
    };
    let mut sequences = golden.sequences;
    let mut expected = golden.scores;
    for texts in golden.texts {
        sequences.extend(texts.ids);
        expected.extend(texts.scores);
    }
    let mut failures = Vec::new();
    failures.extend(compare("packed", &score(&sequences)?, &expected, TOLERANCE));
    for (number, (sequence, expected)) in sequences.chunks(1).zip(expected.chunks(1)).enumerate() {
        let alone = score(sequence)?;
        failures.extend(compare(&format!("sequence {number}"), &alone, expected, TOLERANCE));
    }
    Ok(failures)
}
