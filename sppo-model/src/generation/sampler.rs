//! Reproducible sampling of tokens from logits.
//!
//! Random numbers come from a counter-based generator: the key is (seed, stream, prompt id, sample) and
//! the counter begins with the token's position in the response. A token therefore depends on the
//! request alone, never on the rest of the batch.
//!
//! Sampling is an exponential race (Gumbel-max): token `i` of weight `w_i` gets `e_i / w_i`, where `e_i`
//! is a standard exponential variate, and the smallest wins, which is token `i` with the probability
//! `w_i / sum(w)`. Every token has its own random number, so logits that differ only by rounding, as
//! those of two backends do, give the same token unless two tokens tie within rounding. (With one
//! uniform number on the cumulative weights, a rounding early in the vocabulary shifts all later tokens.)

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use sppo_plugin::SamplingParameters;

use crate::error::{ModelError, Result};
use crate::ops::{DeviceSampling, SampledToken, not_finite};

/// Key of the random numbers of one response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleKey {
    /// The run's seed.
    pub seed: u64,
    /// Separates independent uses of one seed.
    pub stream: u64,
    /// The prompt.
    pub prompt: u64,
    /// Number of the response among those to the prompt.
    pub sample: u64,
}

impl SampleKey {
    /// The random numbers for the token at `position` of the response.
    fn exponentials(&self, position: u64) -> Exponentials {
        let mut key = [0; 32];
        let words = [self.seed, self.stream, self.prompt, self.sample];
        for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let mut generator = ChaCha8Rng::from_seed(key);
        generator.set_word_pos(WORDS_PER_POSITION * u128::from(position));
        Exponentials(generator)
    }
}

/// More random words than any vocabulary takes for one token.
const WORDS_PER_POSITION: u128 = 1 << 32;

/// Standard exponential variates.
struct Exponentials(ChaCha8Rng);

impl Exponentials {
    /// The next variate, 0 or more.
    fn next(&mut self) -> f64 {
        let uniform = ((self.0.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        -uniform.ln()
    }

    /// An index, with a probability proportional to its weight; `None` where all weights are 0.
    fn sample(&mut self, weights: impl IntoIterator<Item = f64>) -> Option<usize> {
        let mut least = (f64::INFINITY, None);
        for (index, weight) in weights.into_iter().enumerate() {
            // Also for zero weights, so that every token always uses the same random number.
            let quotient = self.next() / weight;
            if quotient < least.0 {
                least = (quotient, Some(index));
            }
        }
        least.1
    }
}

/// One token to sample.
#[derive(Clone, Copy, Debug)]
pub struct SampleRequest<'a> {
    /// The logits of the whole vocabulary.
    pub logits: &'a [f32],
    /// Key of the response's random numbers.
    pub key: SampleKey,
    /// The token's position in the response.
    pub position: usize,
}

/// A sampler of tokens with one set of parameters.
#[derive(Clone, Debug)]
pub struct Sampler {
    parameters: SamplingParameters,
    stop_tokens: Vec<u32>,
}

impl Sampler {
    /// A sampler; `stop_tokens` are not sampled before `min_new_tokens`.
    ///
    /// # Errors
    /// When a parameter is out of range.
    pub fn new(parameters: &SamplingParameters, stop_tokens: &[u32]) -> Result<Self> {
        parameters
            .check()
            .map_err(|refusal| ModelError::Input(refusal.within("sampling").to_string()))?;
        Ok(Self { parameters: parameters.clone(), stop_tokens: stop_tokens.to_vec() })
    }

    /// The parameters.
    #[must_use]
    pub fn parameters(&self) -> &SamplingParameters {
        &self.parameters
    }

    /// Whether this token ends a response.
    #[must_use]
    pub fn is_stop_token(&self, token: u32) -> bool {
        self.stop_tokens.contains(&token)
    }

    /// Samples one token for each request, in parallel.
    ///
    /// # Errors
    /// When logits are not finite.
    pub fn sample_all(&self, requests: &[SampleRequest<'_>]) -> Result<Vec<SampledToken>> {
        requests.par_iter().map(|request| self.sample(request)).collect()
    }

    /// Samples one token.
    ///
    /// # Errors
    /// When the logits are not finite.
    pub fn sample(&self, request: &SampleRequest<'_>) -> Result<SampledToken> {
        let temperature = self.parameters.temperature;
        let logits = request.logits;
        let all = Weights::new(logits, 1.0);
        if !(all.total.is_finite() && all.total > 0.0) {
            return Err(not_finite());
        }
        let bans_stop = self.bans_stop(request.position);
        let exponentials = || request.key.exponentials(request.position as u64);
        let token = if temperature == 1.0 && !self.truncates() && !bans_stop {
            all.sample(exponentials())
        } else {
            let mut allowed = logits.to_vec();
            if bans_stop {
                self.ban_stop_tokens(&mut allowed)?;
            }
            if temperature == 0.0 {
                argmax(&allowed)
            } else {
                if self.truncates() {
                    allowed = self.truncated(&allowed);
                }
                Weights::new(&allowed, temperature).sample(exponentials())
            }
        };
        let logit = f64::from(logits.get(token).copied().unwrap_or(f32::NAN));
        let log_prob = (logit - f64::from(all.maximum) - all.total.ln()) as f32;
        Ok(SampledToken { token: token as u32, log_prob })
    }

    /// The inputs with which a device samples the same tokens; `rows` are the key and the position of
    /// each row of logits. `None` under `min_p`, which devices do not know.
    #[must_use]
    pub fn for_device(
        &self,
        rows: &[(SampleKey, usize)],
        vocabulary: usize,
    ) -> Option<DeviceSampling> {
        if self.parameters.min_p > 0.0 {
            return None;
        }
        let exponentials: Vec<[Vec<f64>; 2]> = (rows.par_iter())
            .map(|(key, position)| {
                let mut exponentials = key.exponentials(*position as u64);
                [vocabulary.div_ceil(BLOCK), BLOCK]
                    .map(|count| (0..count).map(|_| exponentials.next()).collect())
            })
            .collect();
        let rows_without_stop = (rows.iter().enumerate())
            .filter(|(_, (_, position))| self.bans_stop(*position))
            .map(|(row, _)| row as u32);
        Some(DeviceSampling {
            parameters: self.parameters.clone(),
            stop_tokens: self.stop_tokens.clone(),
            rows_without_stop: rows_without_stop.collect(),
            block_exponentials: exponentials
                .iter()
                .flat_map(|[blocks, _]| blocks)
                .copied()
                .collect(),
            token_exponentials: exponentials
                .iter()
                .flat_map(|[_, tokens]| tokens)
                .copied()
                .collect(),
        })
    }

    fn truncates(&self) -> bool {
        let SamplingParameters { top_p, top_k, min_p, .. } = self.parameters;
        top_p < 1.0 || top_k > 0 || min_p > 0.0
    }

    /// The logits, those of tokens that are not kept at minus infinity.
    fn truncated(&self, logits: &[f32]) -> Vec<f32> {
        let SamplingParameters { temperature, top_p, top_k, min_p, .. } = self.parameters;
        let mut truncated = vec![f32::NEG_INFINITY; logits.len()];
        for (weight, token) in Weights::new(logits, temperature).nucleus(top_k, top_p) {
            // The largest weight is 1.
            if f64::from(weight) >= min_p {
                truncated[token] = logits[token];
            }
        }
        truncated
    }

    fn bans_stop(&self, position: usize) -> bool {
        position < self.parameters.min_new_tokens && !self.stop_tokens.is_empty()
    }

    fn ban_stop_tokens(&self, logits: &mut [f32]) -> Result<()> {
        for &token in &self.stop_tokens {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        if logits.iter().all(|&logit| logit == f32::NEG_INFINITY) {
            return Err(ModelError::Input("sampling: every token is an end token".into()));
        }
        Ok(())
    }
}

/// The index of the largest value; the lowest wins ties.
fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = index;
        }
    }
    best
}

/// Weights that share one partial sum.
const BLOCK: usize = DeviceSampling::BLOCK;

/// The weights `exp((logit - maximum) / temperature)` of all tokens, summed by blocks.
struct Weights<'a> {
    logits: &'a [f32],
    maximum: f32,
    inverse_temperature: f32,
    block_sums: Vec<f64>,
    total: f64,
}

impl<'a> Weights<'a> {
    fn new(logits: &'a [f32], temperature: f64) -> Self {
        let inverse_temperature = (1.0 / temperature) as f32;
        let mut weights =
            Self { logits, maximum: 0.0, inverse_temperature, block_sums: Vec::new(), total: 0.0 };
        weights.sum_blocks();
        weights
    }

    fn sum_blocks(&mut self) {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2")]
            fn with_avx2(weights: &mut Weights<'_>) {
                weights.sum_all_blocks();
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has the instructions that the function is compiled for.
                return unsafe { with_avx2(self) };
            }
        }
        self.sum_all_blocks();
    }

    /// As [`Self::sum_blocks`], with the instructions of the caller. No sum is fused with a product, so these do not
    /// change a number.
    #[inline(always)]
    fn sum_all_blocks(&mut self) {
        self.maximum = maximum(self.logits);
        for block in self.logits.chunks(BLOCK) {
            self.block_sums.push(self.block_sum(block));
        }
        self.total = self.block_sums.iter().sum();
    }

    #[inline(always)]
    fn weight(&self, logit: f32) -> f32 {
        exp((logit - self.maximum) * self.inverse_temperature)
    }

    #[inline(always)]
    fn block_sum(&self, block: &[f32]) -> f64 {
        // Independent partial sums let the compiler use vector registers.
        let mut lanes = [0.0_f32; 16];
        let chunks = block.chunks_exact(lanes.len());
        let mut rest = 0.0;
        for &logit in chunks.remainder() {
            rest += self.weight(logit);
        }
        for chunk in chunks {
            for (lane, &logit) in lanes.iter_mut().zip(chunk) {
                *lane += self.weight(logit);
            }
        }
        lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + f64::from(rest)
    }

    /// Samples a block by its sum, and then a token of that block: the distribution of a race of all
    /// tokens, with fewer random numbers.
    fn sample(&self, mut exponentials: Exponentials) -> usize {
        let block = exponentials.sample(self.block_sums.iter().copied()).unwrap_or_default();
        let start = block * BLOCK;
        let weights = self.logits.iter().skip(start).take(BLOCK);
        let weights = weights.map(|&logit| f64::from(self.weight(logit)));
        start + exponentials.sample(weights).unwrap_or_default()
    }

    /// The `top_k` heaviest tokens (0 is all), and of these the heaviest that hold `top_p` of their
    /// weight together. Equal weights go by index.
    fn nucleus(&self, top_k: usize, top_p: f64) -> Vec<(f32, usize)> {
        // All tokens below this weight together hold less than 1 - top_p, so none is needed.
        let negligible = match top_k {
            0 => (1.0 - top_p) * self.total / self.logits.len() as f64,
            _ => 0.0,
        };
        let mut kept: Vec<(f32, usize)> = (self.logits.iter().enumerate())
            .map(|(index, &logit)| (self.weight(logit), index))
            .filter(|&(weight, _)| weight > 0.0 && f64::from(weight) >= negligible)
            .collect();
        let heavier = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if top_k > 0 && top_k < kept.len() {
            kept.select_nth_unstable_by(top_k - 1, heavier);
            kept.truncate(top_k);
        }
        if top_p < 1.0 {
            kept.sort_unstable_by(heavier);
            let total = match top_k {
                0 => self.total,
                _ => kept.iter().map(|&(weight, _)| f64::from(weight)).sum(),
            };
            let mut held = 0.0;
            let needed = kept.iter().position(|&(weight, _)| {
                held += f64::from(weight);
                held >= top_p * total
            });
            kept.truncate(needed.map_or(kept.len(), |last| last + 1));
        }
        kept
    }
}

#[inline(always)]
fn maximum(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = values.chunks_exact(lanes.len());
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.into_iter().fold(rest, f32::max)
}

/// `e^x` for `x <= 0` to about one unit in the last place, in a form that compilers vectorise.
/// Below -87 it is 0; NaN stays NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < -87.0 { -87.0 } else { x };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let power = rounded - ROUND;
    let r = clamped - power * LN_2_HIGH - power * LN_2_LOW;
    // Taylor series on |r| <= ln(2) / 2, where the first dropped term is below 6e-9.
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    let exponent = (rounded.to_bits() << 23).wrapping_add(127 << 23);
    let result = series * f32::from_bits(exponent);
    if x < -87.0 { 0.0 } else { result }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: SampleKey = SampleKey { seed: 1, stream: 2, prompt: 3, sample: 4 };

    fn sampler(parameters: SamplingParameters) -> Sampler {
        Sampler::new(&parameters, &[0]).unwrap()
    }

    fn frequencies(sampler: &Sampler, logits: &[f32], draws: usize) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for prompt in 0..draws as u64 {
            let key = SampleKey { prompt, ..KEY };
            let sampled = sampler.sample(&SampleRequest { logits, key, position: 0 }).unwrap();
            counts[sampled.token as usize] += 1.0 / draws as f64;
        }
        counts
    }

    #[test]
    fn exp_is_accurate_to_the_last_place() {
        for step in 0..870_000 {
            let x = -(step as f32) * 1e-4;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 2e-7, "{x}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn random_numbers_depend_on_every_part_of_the_key() {
        let keys = [
            KEY,
            SampleKey { seed: 9, ..KEY },
            SampleKey { stream: 9, ..KEY },
            SampleKey { prompt: 9, ..KEY },
            SampleKey { sample: 9, ..KEY },
        ];
        let numbers: std::collections::HashSet<u64> = keys
            .iter()
            .flat_map(|key| (0..100).map(|position| key.exponentials(position).next().to_bits()))
            .collect();
        assert_eq!(numbers.len(), 500);
        let mean =
            (0..4000).map(|position| KEY.exponentials(position).next()).sum::<f64>() / 4000.0;
        assert!((mean - 1.0).abs() < 0.05, "{mean}");
    }

    #[test]
    fn draws_follow_the_tempered_distribution_and_report_the_plain_one() {
        let logits: Vec<f32> = [0.1_f32, 0.2, 0.3, 0.4].map(f32::ln).to_vec();
        let plain = sampler(SamplingParameters::default());
        let warm = sampler(SamplingParameters { temperature: 0.5, ..Default::default() });
        for (sampler, expected) in [(&plain, [0.1, 0.2, 0.3, 0.4]), (&warm, [1., 4., 9., 16.])] {
            let total: f64 = expected.iter().sum();
            for (actual, expected) in frequencies(sampler, &logits, 20_000).iter().zip(expected) {
                assert!((actual - expected / total).abs() < 0.015, "{actual} {expected}");
            }
            let sampled =
                sampler.sample(&SampleRequest { logits: &logits, key: KEY, position: 0 }).unwrap();
            assert!((sampled.log_prob - logits[sampled.token as usize]).abs() < 1e-6);
        }
    }

    #[test]
    fn truncation_keeps_the_fewest_heaviest_tokens() {
        let logits: Vec<f32> = [0.1_f32, 0.4, 0.15, 0.35].map(f32::ln).to_vec();
        let support = |top_k, top_p| -> Vec<usize> {
            let parameters = SamplingParameters { top_k, top_p, ..Default::default() };
            let drawn = frequencies(&sampler(parameters), &logits, 2000);
            (0..4).filter(|&token| drawn[token] > 0.0).collect()
        };
        assert_eq!(support(0, 0.39), [1]);
        assert_eq!(support(0, 0.7), [1, 3]);
        assert_eq!(support(0, 0.8), [1, 2, 3]);
        assert_eq!(support(3, 1.0), [1, 2, 3]);
        // After top-k the remaining weights are 0.4 and 0.35 of 0.75: one suffices for half.
        assert_eq!(support(2, 0.5), [1]);
        assert_eq!(support(9, 0.999), [0, 1, 2, 3]);
    }

    /// Tokens that are left after top-k, top-p and min-p, one after the other, each on the softmax of what
    /// the one before has left, as transformers' warpers do it.
    fn left_by_warpers(logits: &[f32], parameters: &SamplingParameters) -> Vec<usize> {
        let SamplingParameters { temperature, top_k, top_p, min_p, .. } = *parameters;
        let mut left: Vec<(usize, f64)> = (logits.iter().enumerate())
            .map(|(token, &logit)| (token, (f64::from(logit) / temperature).exp()))
            .collect();
        left.sort_by(|a, b| b.1.total_cmp(&a.1));
        if top_k > 0 {
            left.truncate(top_k);
        }
        let total: f64 = left.iter().map(|(_, weight)| weight).sum();
        let mut held = 0.0;
        let needed = left.iter().take_while(|(_, weight)| {
            let is_needed = held < top_p * total;
            held += weight;
            is_needed
        });
        left.truncate(needed.count());
        let total: f64 = left.iter().map(|(_, weight)| weight).sum();
        let least = min_p * left[0].1 / total;
        let mut left: Vec<usize> = (left.iter())
            .filter(|(_, weight)| weight / total >= least)
            .map(|(token, _)| *token)
            .collect();
        left.sort_unstable();
        left
    }

    #[test]
    fn min_p_keeps_what_it_keeps_by_itself_and_after_top_k_and_top_p() {
        let logits: Vec<f32> = (0..300).map(|token| (token as f32 * 0.731).sin() * 6.0).collect();
        let mut sizes = Vec::new();
        for (temperature, top_k, top_p, min_p) in [
            (1.0, 0, 1.0, 0.1),
            (1.0, 0, 1.0, 0.9),
            (0.5, 0, 1.0, 0.1),
            (2.0, 0, 1.0, 0.03),
            (1.0, 7, 1.0, 0.2),
            (1.0, 200, 1.0, 0.2),
            (1.5, 0, 0.5, 0.3),
            (1.5, 0, 0.95, 0.3),
            (0.8, 40, 0.9, 0.4),
        ] {
            let parameters =
                SamplingParameters { temperature, top_k, top_p, min_p, ..Default::default() };
            let truncated = sampler(parameters.clone()).truncated(&logits);
            let kept: Vec<usize> =
                (0..logits.len()).filter(|&token| truncated[token] == logits[token]).collect();
            assert_eq!(kept, left_by_warpers(&logits, &parameters), "{parameters:?}");
            sizes.push(kept.len());
        }
        assert!(sizes.iter().all(|&size| (1..300).contains(&size)), "{sizes:?}");
        assert!(sizes[1] < sizes[0] && sizes[2] < sizes[0] && sizes[3] > sizes[0], "{sizes:?}");
    }

    #[test]
    fn without_min_p_the_samples_are_those_of_before_it() {
        let logits = long_row();
        for (parameters, expected) in [
            (SamplingParameters::default(), [458, 324, 561, 221, 281, 393, 365, 357]),
            (
                SamplingParameters { top_p: 0.8, ..Default::default() },
                [458, 324, 521, 221, 281, 393, 365, 357],
            ),
            (
                SamplingParameters { temperature: 0.7, top_k: 40, ..Default::default() },
                [311, 281, 595, 221, 8, 180, 494, 453],
            ),
        ] {
            let sampler = sampler(parameters);
            let sampled = (0..8).map(|position| {
                let request = SampleRequest { logits: &logits, key: KEY, position };
                sampler.sample(&request).unwrap().token
            });
            assert_eq!(sampled.collect::<Vec<_>>(), expected);
        }
    }

    /// Three blocks of tokens, the last of them short.
    fn long_row() -> Vec<f32> {
        (0..600).map(|token| ((token * 37) % 101) as f32 / 20.0).collect()
    }

    #[test]
    fn tokens_of_all_blocks_are_drawn_by_their_weights() {
        let logits = long_row();
        let drawn = frequencies(&sampler(SamplingParameters::default()), &logits, 60_000);
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let squares: f64 = (logits.iter().zip(&drawn))
            .map(|(&logit, drawn)| {
                let expected = f64::from(logit).exp() / total;
                60_000.0 * (drawn - expected).powi(2) / expected
            })
            .sum();
        // Chi-squared with 599 degrees of freedom: 599 +- 35.
        assert!((450.0..750.0).contains(&squares), "{squares}");
    }

    #[test]
    fn rounding_of_the_logits_changes_hardly_any_draw() {
        let logits = long_row();
        let rounded: Vec<f32> =
            (logits.iter().enumerate()).map(|(token, x)| x + (token % 7) as f32 * 1e-5).collect();
        for parameters in
            [SamplingParameters::default(), SamplingParameters { top_p: 0.9, ..Default::default() }]
        {
            let sampler = sampler(parameters);
            let token = |logits, position| {
                sampler.sample(&SampleRequest { logits, key: KEY, position }).unwrap().token
            };
            let other = (0..5000)
                .filter(|&position| token(&logits, position) != token(&rounded, position))
                .count();
            assert!(other <= 3, "{other} of 5000 draws");
        }
    }

    #[test]
    fn stop_tokens_are_banned_early_and_greedy_takes_the_first_of_equals() {
        let logits = [5.0, 1.0, 3.0, 3.0];
        let parameters =
            SamplingParameters { temperature: 0.0, min_new_tokens: 2, ..Default::default() };
        let sampler = sampler(parameters);
        let at = |position| {
            sampler.sample(&SampleRequest { logits: &logits, key: KEY, position }).unwrap().token
        };
        assert_eq!([at(0), at(1), at(2)], [2, 2, 0]);
    }

    #[test]
    fn damaged_logits_and_parameters_out_of_range_are_refused() {
        let plain = sampler(SamplingParameters::default());
        for bad in [f32::NAN, f32::INFINITY] {
            let logits = [0.0, bad, 1.0];
            assert!(
                plain.sample(&SampleRequest { logits: &logits, key: KEY, position: 0 }).is_err()
            );
        }
        for parameters in [
            SamplingParameters { temperature: -1.0, ..Default::default() },
            SamplingParameters { temperature: f64::NAN, ..Default::default() },
            SamplingParameters { top_p: 0.0, ..Default::default() },
            SamplingParameters { top_p: 1.5, ..Default::default() },
            SamplingParameters { min_p: 1.0, ..Default::default() },
            SamplingParameters { max_new_tokens: 0, ..Default::default() },
        ] {
            assert!(Sampler::new(&parameters, &[]).is_err());
        }
    }
}
