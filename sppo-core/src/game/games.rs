//! Games: built-in ones, and those in CSV files.

use std::path::Path;

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

const TOLERANCE: f64 = 1e-9;

/// Reads a square matrix of probabilities: one row per line, values separated by commas, empty lines and
/// lines that begin with `#` ignored. Requires `P[i][j] + P[j][i] = 1`.
///
/// # Errors
/// When the file cannot be read or a line is malformed; the error names the line.
pub fn read_matrix(path: &Path) -> Result<PreferenceMatrix> {
    let text =
        std::fs::read_to_string(path).map_err(|error| Error::input(path, error.to_string()))?;
    let mut lines = Vec::new();
    let mut values = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = index as u64 + 1;
        let row = parse_row(path, number, line)?;
        values.push(row);
        lines.push(number);
    }
    let size = values.len();
    if size < 2 {
        return Err(Error::input(
            path,
            format!("a game needs at least two rows, this file has {size}"),
        ));
    }
    for (row, &line) in values.iter().zip(&lines) {
        if row.len() != size {
            let message = format!("{} values in a game of {size} rows", row.len());
            return Err(at_line(path, line, message));
        }
    }
    let matrix = PreferenceMatrix::new(size, values.concat())
        .map_err(|error| Error::input(path, error.to_string()))?;
    for (first, &line) in lines.iter().enumerate() {
        for second in 0..size {
            let sum = matrix.get(first, second) + matrix.get(second, first);
            if (sum - 1.0).abs() > TOLERANCE {
                let message = format!(
                    "P({first} beats {second}) and P({second} beats {first}) sum to {sum}, not 1"
                );
                return Err(at_line(path, line, message));
            }
        }
    }
    Ok(matrix)
}

fn parse_row(path: &Path, line: u64, text: &str) -> Result<Vec<f64>> {
    text.split(',')
        .map(|value| {
            let value = value.trim();
            value.parse().map_err(|_| at_line(path, line, format!("`{value}` is not a number")))
        })
        .collect()
}

fn at_line(path: &Path, line: u64, message: String) -> Error {
    Error::Input { path: path.to_path_buf(), line: Some(line), message, hint: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<PreferenceMatrix> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("game.csv");
        std::fs::write(&path, text).unwrap();
        read_matrix(&path)
    }

    #[test]
    fn a_matrix_is_read_and_a_faulty_line_is_named() {
        let game = read("# rock beats scissors\n0.5, 0.9\n\n0.1, 0.5\n").unwrap();
        assert_eq!(game.get(0, 1), 0.9);
        let message = |text| read(text).unwrap_err().to_string();
        assert!(message("0.5,0.9\n0.1,half\n").ends_with("game.csv:2: `half` is not a number"));
        assert!(message("0.5,0.9\n0.1\n").contains("game.csv:2: 1 values in a game of 2 rows"));
        assert!(
            message("0.5,0.9\n0.2,0.5\n").contains(":1: P(0 beats 1) and P(1 beats 0) sum to 1.1")
        );
        assert!(message("0.5,1.9\n-0.9,0.5\n").contains("not a probability"));
        assert!(message("0.5\n").contains("at least two rows"));
    }
}
