//! Times every op at the shapes of a 135M-parameter Llama: one training pass over two pairs of
//! responses with shared prompts, and one decoding step.
//!
//!     cargo run --release -p sppo-backend-candle --example ops_bench [threads] [only ops whose name has this]

use std::hint::black_box;
use std::ops::Range;
use std::time::Instant;

use candle_core::Tensor;
use sppo_backend_candle::{CandleOps, Parameter};
use sppo_model::ops::{
    Activation, AttentionSegment, AttentionShape, CachedRow, Ops, Position, RotaryFrequencies,
    UpdateRule,
};
use sppo_model::serve::keep_large_buffers;
use sppo_plugin::Optimizer;

type AnyError = Box<dyn std::error::Error>;

const HIDDEN: usize = 576;
const KEY_VALUE: usize = 192;
const INTERMEDIATE: usize = 1536;
const VOCABULARY: usize = 49152;
const LAYERS: usize = 30;
const PROMPT: usize = 46;
const RESPONSE: usize = 205;

fn main() -> Result<(), AnyError> {
    let threads = std::env::args().nth(1).map_or(Ok(0), |threads| threads.parse())?;
    keep_large_buffers();
    let ops = CandleOps::new(threads, 512 << 20)?;
    let only = std::env::args().nth(2).unwrap_or_default();
    let mut bench = Bench { ops, only, matrix: 0.0, other: 0.0 };
    bench.training()?;
    bench.decoding()?;
    Ok(())
}

struct Bench {
    ops: CandleOps,
    only: String,
    /// Seconds of a whole pass spent in matrix products, and in everything else.
    matrix: f64,
    other: f64,
}

/// Unit of an op's speed.
enum Work {
    /// Floating-point operations of matrix products.
    Flops(f64),
    /// Bytes read and written.
    Bytes(f64),
    /// Floating-point operations of something other than a plain matrix product.
    AttentionFlops(f64),
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }

    /// Times `run` and prints a line; `count` is how often a pass does it.
    fn time<R>(
        &mut self,
        name: &str,
        count: usize,
        work: Work,
        mut run: impl FnMut(&CandleOps) -> Result<R, sppo_model::ModelError>,
    ) -> Result<(), AnyError> {
        if !self.wants(name) {
            return Ok(());
        }
        black_box(run(&self.ops)?);
        let (mut best, mut total, mut repeats) = (f64::INFINITY, 0.0, 0);
        while repeats < 3 || (total < 0.25 && repeats < 200) {
            let start = Instant::now();
            black_box(run(&self.ops)?);
            let seconds = start.elapsed().as_secs_f64();
            best = best.min(seconds);
            total += seconds;
            repeats += 1;
        }
        let typical = total / f64::from(repeats);
        let (speed, unit) = match work {
            Work::Flops(flops) | Work::AttentionFlops(flops) => (flops / best / 1e9, "GFLOP/s"),
            Work::Bytes(bytes) => (bytes / best / 1e9, "GB/s"),
        };
        match work {
            Work::Flops(_) => self.matrix += best * count as f64,
            _ => self.other += best * count as f64,
        }
        println!(
            "{name:<34} best {:8.3} ms  mean {:8.3} ms  {speed:7.1} {unit:<8} x{count:<4} {:8.1} ms",
            best * 1e3,
            typical * 1e3,
            best * count as f64 * 1e3
        );
        Ok(())
    }

    fn activation(&self, rows: usize, columns: usize) -> Result<Tensor, AnyError> {
        Ok(self.ops.tensor(random(rows * columns, rows as u64), rows, columns)?)
    }

    fn weight(&self, rows: usize, columns: usize) -> Result<Parameter, AnyError> {
        let values = random(rows * columns, 7).iter().map(|value| 0.05 * value).collect();
        Ok(self.ops.parameter(values, &[rows, columns], true)?)
    }

    fn summary(&mut self, what: &str) {
        println!(
            "{what}: matrix products {:.0} ms, everything else {:.0} ms ({:.1} %), resident {} MiB\n",
            self.matrix * 1e3,
            self.other * 1e3,
            100.0 * self.other / (self.matrix + self.other),
            resident_mebibytes()
        );
        (self.matrix, self.other) = (0.0, 0.0);
    }

    fn training(&mut self) -> Result<(), AnyError> {
        let segments = packed_pairs(2);
        let rows = segments.last().map_or(0, |segment| segment.queries.end);
        println!("training, {rows} rows");
        for (name, inputs, outputs, count) in [
            ("q, o", HIDDEN, HIDDEN, 2),
            ("k, v", HIDDEN, KEY_VALUE, 2),
            ("gate, up", HIDDEN, INTERMEDIATE, 2),
            ("down", INTERMEDIATE, HIDDEN, 1),
        ] {
            let (x, y) = (self.activation(rows, inputs)?, self.activation(rows, outputs)?);
            let mut weight = self.weight(outputs, inputs)?;
            let flops = 2.0 * (rows * inputs * outputs) as f64;
            self.time(&format!("linear {name}"), count * LAYERS, Work::Flops(flops), |ops| {
                ops.linear(&x, &weight, None)
            })?;
            let name = format!("linear {name} backward");
            self.time(&name, count * LAYERS, Work::Flops(2.0 * flops), |ops| {
                ops.linear_backward(&x, &mut weight, None, &y)
            })?;
        }
        self.training_elementwise(rows)?;
        self.training_attention(&segments, rows)?;
        self.training_head()?;
        self.summary("training pass");
        self.update()
    }

    fn training_elementwise(&mut self, rows: usize) -> Result<(), AnyError> {
        let row = (rows * 4) as f64;
        let bytes =
            |features: usize, tensors: usize| Work::Bytes(row * (features * tensors) as f64);
        let (x, dy) = (self.activation(rows, HIDDEN)?, self.activation(rows, HIDDEN)?);
        let mut norm = self.ops.parameter(random(HIDDEN, 1), &[HIDDEN], true)?;
        self.time("rms_norm", 2 * LAYERS, bytes(HIDDEN, 2), |ops| {
            ops.rms_norm(&x, &norm, 1e-5, 0.0)
        })?;
        self.time("rms_norm backward", 2 * LAYERS, bytes(HIDDEN, 3), |ops| {
            ops.rms_norm_backward(&x, &mut norm, 1e-5, 0.0, &dy)
        })?;
        self.time("add", 4 * LAYERS, bytes(HIDDEN, 3), |ops| ops.add(&x, &dy))?;
        let positions: Vec<Position> =
            (0..rows as u32).map(|row| Position::of(row % 251)).collect();
        let frequencies = rotary_frequencies();
        for (name, columns) in [("q", HIDDEN), ("k", KEY_VALUE)] {
            let x = self.activation(rows, columns)?;
            self.time(&format!("rotary {name}"), 2 * LAYERS, bytes(columns, 2), |ops| {
                ops.rotary(&x, &positions, &frequencies)
            })?;
        }
        let (gate, up) =
            (self.activation(rows, INTERMEDIATE)?, self.activation(rows, INTERMEDIATE)?);
        self.time("gated silu", LAYERS, bytes(INTERMEDIATE, 3), |ops| {
            ops.gated_activation(&gate, &up, Activation::Silu)
        })?;
        self.time("gated silu backward", LAYERS, bytes(INTERMEDIATE, 5), |ops| {
            ops.gated_activation_backward(&gate, &up, Activation::Silu, &up)
        })
    }

    fn training_attention(
        &mut self,
        segments: &[AttentionSegment],
        rows: usize,
    ) -> Result<(), AnyError> {
        let shape = attention_shape();
        let (q, dy) = (self.activation(rows, HIDDEN)?, self.activation(rows, HIDDEN)?);
        let (k, v) = (self.activation(rows, KEY_VALUE)?, self.activation(rows, KEY_VALUE)?);
        let seen: usize = segments
            .iter()
            .map(|segment| {
                let count = segment.queries.len();
                count * segment.prefix.len() + count * (count + 1) / 2
            })
            .sum();
        let flops = 4.0 * (seen * HIDDEN) as f64;
        self.time("attention", LAYERS, Work::AttentionFlops(flops), |ops| {
            ops.attention(&q, &k, &v, &shape, segments)
        })?;
        let forward = self.ops.attention(&q, &k, &v, &shape, segments)?;
        self.time("attention backward", LAYERS, Work::AttentionFlops(2.5 * flops), |ops| {
            ops.attention_backward(&q, &k, &v, &forward, &shape, segments, &dy)
        })
    }

    fn training_head(&mut self) -> Result<(), AnyError> {
        let rows = 4 * RESPONSE;
        let hidden = self.activation(rows, HIDDEN)?;
        let mut head = self.weight(VOCABULARY, HIDDEN)?;
        let targets: Vec<u32> = (0..rows as u32).map(|row| row * 59 % VOCABULARY as u32).collect();
        let coefficients = random(rows, 3);
        let flops = 2.0 * (rows * HIDDEN * VOCABULARY) as f64;
        self.time("logits alone", 0, Work::Flops(flops), |ops| ops.logits(&hidden, &head, None))?;
        self.time("token_log_probs", 1, Work::Flops(flops), |ops| {
            ops.token_log_probs(&hidden, &head, &targets, None, false)
        })?;
        self.time("token_log_probs kept", 0, Work::Flops(flops), |ops| {
            ops.token_log_probs(&hidden, &head, &targets, None, true)
        })?;
        let (_, kept) = self.ops.token_log_probs(&hidden, &head, &targets, None, true)?;
        self.time("token_log_probs backward kept", 1, Work::Flops(2.0 * flops), |ops| {
            let kept = kept.clone();
            ops.token_log_probs_backward(&hidden, &mut head, &targets, None, kept, &coefficients)
        })
    }

    fn update(&mut self) -> Result<(), AnyError> {
        let mut weight = self.weight(VOCABULARY, HIDDEN)?;
        let gradient = self.activation(1, HIDDEN)?;
        self.ops.embedding_backward(&mut weight, &[0], &gradient)?;
        let count = (VOCABULARY * HIDDEN * 4) as f64;
        let rule = UpdateRule {
            optimizer: Optimizer::default(),
            learning_rate: 1e-6,
            gradient_scale: 1.0,
            step: 1,
        };
        self.time("gradient_square_sum, head", 1, Work::Bytes(count), |ops| {
            ops.gradient_square_sum(&weight)
        })?;
        self.time("RMSProp, head", 1, Work::Bytes(5.0 * count), |ops| {
            ops.update(&mut weight, &rule)
        })?;
        self.summary("update of the head (a fifth of the weights)");
        Ok(())
    }

    fn decoding(&mut self) -> Result<(), AnyError> {
        let (rows, context) = (40, 100);
        for prepared in [false, true] {
            println!("decoding, {rows} rows, {context} tokens before, prepared: {prepared}");
            for (name, inputs, outputs, count) in [
                ("q, o", HIDDEN, HIDDEN, 2 * LAYERS),
                ("k, v", HIDDEN, KEY_VALUE, 2 * LAYERS),
                ("gate, up", HIDDEN, INTERMEDIATE, 2 * LAYERS),
                ("down", INTERMEDIATE, HIDDEN, LAYERS),
                ("head", HIDDEN, VOCABULARY, 1),
            ] {
                let x = self.activation(rows, inputs)?;
                let flops = 2.0 * (rows * inputs * outputs) as f64;
                // As many weights as a pass uses, so that they do not stay in the cache.
                let mut weights = (0..count)
                    .map(|_| self.weight(outputs, inputs))
                    .collect::<Result<Vec<_>, _>>()?;
                if prepared {
                    for weight in &mut weights {
                        self.ops.prepare_for_decoding(weight)?;
                    }
                }
                let mut next = 0;
                self.time(&format!("linear {name}"), count, Work::Flops(flops), |ops| {
                    next = (next + 1) % count;
                    ops.linear(&x, &weights[next], None)
                })?;
            }
            self.decoding_rest(rows, context)?;
            self.summary("decoding step");
        }
        Ok(())
    }

    fn decoding_rest(&mut self, rows: usize, context: usize) -> Result<(), AnyError> {
        let slots = rows * context;
        // As many layers as a pass reads, so that they do not stay in the processor's cache.
        let mut cache = self.ops.cache(LAYERS, slots, KEY_VALUE)?;
        let keys = self.activation(slots, KEY_VALUE)?;
        let every: Vec<u32> = (0..slots as u32).collect();
        for layer in 0..LAYERS {
            self.ops.cache_write(&mut cache, layer, &keys, &keys, &every)?;
        }
        let cached: Vec<CachedRow> = (0..rows)
            .map(|row| {
                let prefix = row / 5 * 5 * context;
                let own = row * context + PROMPT;
                let own = vec![own..own + context - PROMPT];
                CachedRow { prefix: prefix..prefix + PROMPT, own }
            })
            .collect();
        let (q, k) = (self.activation(rows, HIDDEN)?, self.activation(rows, KEY_VALUE)?);
        let shape = attention_shape();
        let bytes = |features: usize| Work::Bytes((rows * features * 4) as f64);
        let mut layer = 0;
        self.time("cached attention", LAYERS, bytes(context * KEY_VALUE * 2), |ops| {
            layer = (layer + 1) % LAYERS;
            ops.cached_attention(&q, &cache, layer, &shape, &cached)
        })?;
        let written: Vec<u32> = (0..rows).map(|row| (row * context + context - 1) as u32).collect();
        self.time("cache write", LAYERS, bytes(KEY_VALUE * 4), |ops| {
            ops.cache_write(&mut cache, 0, &k, &k, &written)
        })?;
        let norm = self.ops.parameter(random(HIDDEN, 1), &[HIDDEN], false)?;
        self.time("rms_norm", 2 * LAYERS, bytes(HIDDEN * 2), |ops| {
            ops.rms_norm(&q, &norm, 1e-5, 0.0)
        })?;
        self.time("add", 2 * LAYERS, bytes(HIDDEN * 3), |ops| ops.add(&q, &q))?;
        let (positions, frequencies) = (vec![Position::of(99); rows], rotary_frequencies());
        self.time("rotary", 2 * LAYERS, bytes(HIDDEN * 2), |ops| {
            ops.rotary(&q, &positions, &frequencies)
        })?;
        let gate = self.activation(rows, INTERMEDIATE)?;
        self.time("gated silu", LAYERS, bytes(INTERMEDIATE * 3), |ops| {
            ops.gated_activation(&gate, &gate, Activation::Silu)
        })
    }
}

fn attention_shape() -> AttentionShape {
    AttentionShape {
        query_heads: 9,
        key_value_heads: 3,
        head_size: 64,
        scale: 0.125,
        soft_cap: None,
        window: None,
    }
}

fn rotary_frequencies() -> RotaryFrequencies {
    let frequency = |pair: i32| 100_000f32.powf(-pair as f32 / 32.0);
    RotaryFrequencies::of_heads((0..32).map(frequency).collect())
}

/// Prompts, each followed by two responses.
fn packed_pairs(pairs: usize) -> Vec<AttentionSegment> {
    let segment = |prefix: Range<usize>, start: usize, length: usize| AttentionSegment {
        queries: start..start + length,
        prefix,
        own: start..start + length,
    };
    (0..pairs)
        .map(|pair| pair * (PROMPT + 2 * RESPONSE))
        .flat_map(|start| {
            let prompt = start..start + PROMPT;
            [
                segment(0..0, start, PROMPT),
                segment(prompt.clone(), prompt.end, RESPONSE),
                segment(prompt.clone(), prompt.end + RESPONSE, RESPONSE),
            ]
        })
        .collect()
}

/// Reproducible numbers between -1 and 1.
fn random(length: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

/// Resident memory of this process; 0 where the system does not tell.
fn resident_mebibytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()));
    (pages.unwrap_or(0) * 4096) >> 20
}
