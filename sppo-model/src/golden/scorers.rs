//! Scorers: PairRM against LLM-Blender, and reward models of every supported architecture, General Preference
//! Models and judges against transformers, on tiny models with random weights.

use serde::Deserialize;
use sppo_plugin::Scorer;

use super::{Failures, MakeOps, compare, fixture, read_json, widen};
use crate::decoder::FAMILIES;
use crate::error::{ModelError, Result};
use crate::ops::encoder::EncoderOps;
use crate::serve::{load_next_token_scorer, load_scorer};

/// Largest error of a logit. float32 itself is within 4e-6 of float64 here.
const LOGIT_TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct RankerGolden {
    meta: RankerMeta,
    cases: Vec<RankerCase>,
}

#[derive(Deserialize)]
struct RankerMeta {
    marker_ids: RankerMarkers,
}

#[derive(Deserialize)]
struct RankerMarkers {
    cand1_prefix_id: u32,
    cand2_prefix_id: u32,
    cand_prefix_id: u32,
}

#[derive(Deserialize)]
struct RankerCase {
    source_ids: Vec<u32>,
    candidate_ids: Vec<Vec<u32>>,
    logits: Vec<Vec<f64>>,
}

impl RankerMarkers {
    /// Candidate `first` before candidate `second`.
    fn sequence(&self, case: &RankerCase, first: usize, second: usize) -> Vec<u32> {
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
    ranker_failures(make).unwrap_or_else(|error| vec![error.to_string()])
}

fn ranker_failures<O: EncoderOps>(make: &MakeOps<'_, O>) -> Failures {
    let golden: RankerGolden = read_json(&fixture("pairrm-tiny/golden.json"))?;
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
        failures.extend(compare(&format!("case {number}"), &packed, &expected, LOGIT_TOLERANCE));
        let alone = score(&sequences[..1])?;
        failures.extend(compare(&format!("case {number} alone"), &alone, &packed[..1], 1e-5));
    }
    Ok(failures)
}

/// Largest error of a score. The scores are of the order of 1.
const SCORE_TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct RewardGolden {
    sequences: Vec<Vec<u32>>,
    scores: Vec<f64>,
    #[serde(default)]
    texts: Vec<RewardTexts>,
}

#[derive(Deserialize)]
struct RewardTexts {
    ids: Vec<Vec<u32>>,
    scores: Vec<f64>,
}

/// Scores the sequences of the golden numbers, packed and alone; describes each score that is off by
/// more than 1e-4.
pub fn check_reward_models<O: EncoderOps>(make: &MakeOps<'_, O>) -> Vec<String> {
    let names = std::iter::once("deberta").chain(FAMILIES.iter().map(|family| family.model_type()));
    let check_one = |name: &'static str| {
        let found = reward_failures(make, name).unwrap_or_else(|error| vec![error.to_string()]);
        found.into_iter().map(move |line| format!("{name}: {line}"))
    };
    names.flat_map(check_one).collect()
}

fn reward_failures<O: EncoderOps>(make: &MakeOps<'_, O>, name: &str) -> Failures {
    let directory = fixture(&format!("reward/{name}"));
    let golden: RewardGolden = read_json(&directory.join("golden.json"))?;
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
    failures.extend(compare("packed", &score(&sequences)?, &expected, SCORE_TOLERANCE));
    for (number, (sequence, expected)) in sequences.chunks(1).zip(expected.chunks(1)).enumerate() {
        let alone = score(sequence)?;
        failures.extend(compare(&format!("sequence {number}"), &alone, expected, SCORE_TOLERANCE));
    }
    Ok(failures)
}

/// Families whose language models are asked for preferences.
const PREFERRING: [&str; 2] = ["llama", "gemma2"];

#[derive(Deserialize)]
struct VectorGolden {
    sequences: Vec<Vec<u32>>,
    numbers: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct NextTokenGolden {
    sequences: Vec<Vec<u32>>,
    tokens: Vec<u32>,
    log_probs: Vec<Vec<f64>>,
}

/// Has General Preference Models and language models read the sequences of the golden numbers, packed, alone and
/// with the beginnings that they share; describes each vector and each log-probability of a next token that is off
/// by more than 1e-4.
pub fn check_preferring_models<O: EncoderOps + 'static>(make: &MakeOps<'_, O>) -> Vec<String> {
    let check_one = |name: &&'static str| {
        let found = preferring_failures(make, name).unwrap_or_else(|error| vec![error.to_string()]);
        let name = *name;
        found.into_iter().map(move |line| format!("{name}: {line}"))
    };
    PREFERRING.iter().flat_map(check_one).collect()
}

fn preferring_failures<O: EncoderOps + 'static>(make: &MakeOps<'_, O>, name: &str) -> Failures {
    let directory = fixture(&format!("reward/gpm-{name}"));
    let golden: VectorGolden = read_json(&directory.join("golden.json"))?;
    let mut failures = scorer_failures(
        "vectors",
        load_scorer(make()?, &directory)?.as_mut(),
        &golden.sequences,
        &golden.numbers,
    )?;
    let golden: NextTokenGolden = read_json(&fixture(&format!("judge/{name}.json")))?;
    let path = fixture(&format!("lm/{name}"));
    let mut judge = load_next_token_scorer(make()?, &path, &golden.tokens)?;
    let judged =
        scorer_failures("next tokens", judge.as_mut(), &golden.sequences, &golden.log_probs)?;
    failures.extend(judged);
    Ok(failures)
}

/// Has a scorer score sequences packed and alone.
fn scorer_failures(
    what: &str,
    scorer: &mut dyn Scorer,
    sequences: &[Vec<u32>],
    expected: &[Vec<f64>],
) -> Failures {
    let mut score = |sequences: &[Vec<u32>]| -> Result<Vec<f64>> {
        let scores = scorer.score(sequences);
        Ok(widen(&scores.map_err(|error| ModelError::Backend(error.message))?))
    };
    let packed = score(sequences)?;
    let whole = format!("{what}, packed");
    let mut failures =
        Vec::from_iter(compare(&whole, &packed, &expected.concat(), SCORE_TOLERANCE));
    for (number, (sequence, expected)) in sequences.chunks(1).zip(expected).enumerate() {
        let alone = score(sequence)?;
        let what = format!("{what} of sequence {number}");
        failures.extend(compare(&what, &alone, expected, SCORE_TOLERANCE));
    }
    Ok(failures)
}
