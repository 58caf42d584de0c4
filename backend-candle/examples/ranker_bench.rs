//! Times a ranker of PairRM's size with random weights; 20 pairs are those of one prompt with five answers.
//!
//!     cargo run --release -p sppo-backend-candle --example ranker_bench \
//!         [tokens per pair] [pairs at once] [pairs] [directory for the weights] [backend] [its settings]
//!
//! Another backend than candle is one that `sppo plugin add` added; settings are JSON.

use std::path::PathBuf;
use std::time::Instant;

use sppo_backend_candle as _;
use sppo_core::plugins::PluginRegistry;
use sppo_core::plugins::PluginSearch;
use sppo_model::synthetic::{synthetic_ranker_sequence, write_synthetic_ranker};
use sppo_plugin::ModelSpec;

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let mut arguments = std::env::args().skip(1);
    let tokens = arguments.next().map_or(Ok(585), |tokens| tokens.parse())?;
    let at_once = arguments.next().map_or(Ok(3), |pairs| pairs.parse())?;
    let pairs = arguments.next().map_or(Ok(20), |pairs| pairs.parse())?;
    let path = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let path = path.join("full-size-ranker");
    if !path.join("model.safetensors").is_file() {
        std::fs::create_dir_all(&path)?;
        write_synthetic_ranker(&path)?;
    }
    let name = arguments.next().unwrap_or_else(|| "candle".into());
    let settings = arguments.next().map_or(Ok(serde_json::json!({})), |text| text.parse())?;
    let plugins = PluginRegistry::discover(&PluginSearch::default())?;
    let backend = plugins.create_backend(&name, settings)?;
    let started = Instant::now();
    let mut scorer = backend.load_scorer(&ModelSpec::new(path))?;
    println!("loaded in {:.1} s", started.elapsed().as_secs_f64());

    let sequences: Vec<Vec<u32>> =
        (0..pairs).map(|pair| synthetic_ranker_sequence(pair, tokens)).collect();
    scorer.score(&sequences[..1])?;
    // Measured on both sides of each round: machines that others use too change from minute to minute.
    let rate = || backend.matrix_product_rate(at_once * tokens, 1024, 4096);
    let mut before = rate()?;
    for _ in 0..5 {
        let started = Instant::now();
        for batch in sequences.chunks(at_once) {
            scorer.score(batch)?;
        }
        let seconds = started.elapsed().as_secs_f64();
        let speed = pairs as f64 * flops(tokens) / seconds / 1e9;
        let after = rate()?;
        println!(
            "{seconds:.1} s for {pairs} pairs of {tokens} tokens: {speed:.0} GFLOP/s, {:.0} % of the \
             {before:.0} and {after:.0} of matrix products alone before and after",
            200.0 * speed / (before + after)
        );
        before = after;
    }
    Ok(())
}

/// Products of a pair, one multiplication and one addition each: the layers' matrices, and the scores of
/// contents and of 512 positions. The last layer is needed for three tokens only.
fn flops(tokens: usize) -> f64 {
    let tokens = tokens as f64;
    let (keys_and_values, others) = (2.0 * 1024.0 * 1024.0, 10.0 * 1024.0 * 1024.0);
    let layer = |queries: f64| {
        let attention = 1024.0 * (2.0 * queries * tokens + 512.0 * (queries + tokens));
        tokens * keys_and_values + queries * others + attention
    };
    2.0 * (23.0 * layer(tokens) + layer(3.0))
}
