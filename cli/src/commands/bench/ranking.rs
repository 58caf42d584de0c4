//! The speed of a ranker of PairRM's size, with random weights.

use sppo_core::plugin::{Backend, ModelSpec};
use sppo_model::synthetic::{synthetic_ranker_sequence, write_synthetic_ranker};

use super::measure::{Rate, rate, repeat};
use super::temporary_directory;
use crate::failure::Result;
use crate::terminal::Terminal;

const PAIRS: usize = 8;
/// Pairs that one process scores at once.
const AT_ONCE: usize = 2;
/// Tokens of a prompt with two answers.
const TOKENS: usize = 256;

/// Scores pairs of answers, as many batches at the same time as there are ranks.
pub(super) fn measure_ranking(
    backend: &dyn Backend,
    repetitions: usize,
    terminal: &Terminal,
) -> Result<Rate> {
    let directory = temporary_directory()?;
    let place = directory.path().display();
    terminal.note(&format!("writing random weights in the shape of PairRM, 1.6 GiB, to {place}"));
    write_synthetic_ranker(directory.path())?;
    let model = ModelSpec::new(directory.path());
    let mut scorer = backend.load_scorer(&model).map_err(sppo_core::Error::from)?;
    drop(directory);
    let sequences: Vec<Vec<u32>> =
        (0..PAIRS).map(|pair| synthetic_ranker_sequence(pair, TOKENS)).collect();
    let batches: Vec<Vec<Vec<u32>>> = sequences.chunks(AT_ONCE).map(<[_]>::to_vec).collect();
    let repetitions = repeat(repetitions, None, |_| Ok(scorer.score_each(&batches).map(drop)?))?;
    Ok(rate("pairs", PAIRS as f64, None, &repetitions))
}
