//! Built-in games.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::error::{Error, Result};
use crate::preference::PreferenceMatrix;

/// Rock, paper, scissors for any odd number of answers in a circle: each beats the half of the others
/// that follow it with probability 0.9.
///
/// # Errors
/// When the size is even or below 3.
pub fn cycle(size: usize) -> Result<PreferenceMatrix> {
    const WIN: f64 = 0.9;
    if size < 3 || size.is_multiple_of(2) {
        return Err(Error::configuration(
            "--size",
            format!("a cycle needs an odd number of answers, not {size}"),
        )
        .with_hint("use 3 for rock, paper, scissors"));
    }
    let probability = |i: usize, j: usize| match (j + size - i) % size {
        0 => 0.5,
        distance if distance <= size / 2 => WIN,
        _ => 1.0 - WIN,
    };
    filled(size, probability)
}

/// A game with uniformly random probabilities, by seed; usually intransitive.
///
/// # Errors
/// When there is no answer to play.
pub fn random(size: usize, seed: u64) -> Result<PreferenceMatrix> {
    if size == 0 {
        return Err(Error::configuration("--size", "a game needs at least one answer"));
    }
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut values = vec![0.5; size * size];
    for first in 0..size {
        for second in first + 1..size {
            let probability = (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            values[first * size + second] = probability;
            values[second * size + first] = 1.0 - probability;
        }
    }
    filled(size, |i, j| values[i * size + j])
}

fn filled(size: usize, probability: impl Fn(usize, usize) -> f64) -> Result<PreferenceMatrix> {
    PreferenceMatrix::from_fn(size, probability)
        .map_err(|error| Error::configuration("--size", error.to_string()))
}
