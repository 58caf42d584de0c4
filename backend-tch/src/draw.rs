//! Draws tokens on the device: the exponential race (Gumbel-max) of [`sppo_model::generation::Sampler`] as
//! tensor operations.

use sppo_model::ops::{DeviceSampling, SampledToken, not_finite};
use sppo_plugin::SamplingParameters;
use tch::{Kind, Tensor};

use crate::tensors::{TorchResult, dimensions, index};

/// One token for each row of logits, f32 `[rows, vocabulary]`.
pub(crate) fn draw(logits: &Tensor, draw: &DeviceSampling) -> TorchResult<Vec<SampledToken>> {
    let total = logits.f_logsumexp([1], true)?;
    let mut allowed = logits.shallow_clone();
    if !draw.rows_without_stop.is_empty() {
        allowed = without_end_tokens(&allowed, draw)?;
    }
    let SamplingParameters { temperature, top_k, top_p, .. } = draw.parameters;
    let tokens = if temperature == 0.0 {
        allowed.f_argmax(1, true)?
    } else {
        if top_p < 1.0 || top_k > 0 {
            allowed = nucleus(&allowed, temperature, top_k, top_p)?;
        }
        winners(&weights(&allowed, temperature)?, draw)?
    };
    let log_probs = logits.f_gather(1, &tokens, false)?.f_sub(&total)?;
    let results = [tokens.f_to_kind(Kind::Double)?, log_probs.f_to_kind(Kind::Double)?];
    let results = Vec::<f64>::try_from(&Tensor::f_cat(&results, 1)?.f_reshape([-1])?)?;
    let draws = results.chunks_exact(2).map(|result| match result[1].is_finite() {
        true => Ok(SampledToken { token: result[0] as u32, log_prob: result[1] as f32 }),
        false => Err(not_finite().into()),
    });
    draws.collect()
}

/// Logits that are minus infinity for end tokens in the rows that may not end yet.
fn without_end_tokens(logits: &Tensor, draw: &DeviceSampling) -> TorchResult<Tensor> {
    let rows = index(&draw.rows_without_stop, logits.device())?;
    let ends = index(&draw.stop_tokens, logits.device())?;
    let allowed = logits.f_index_select(0, &rows)?.f_index_fill(1, &ends, f64::NEG_INFINITY)?;
    Ok(logits.f_index_copy(0, &rows, &allowed)?)
}

/// `exp((logit - maximum) / temperature)`.
fn weights(logits: &Tensor, temperature: f64) -> TorchResult<Tensor> {
    let mut weights = logits.f_sub(&logits.f_amax([1].as_slice(), true)?)?;
    let _ = weights.f_mul_scalar_(1.0 / temperature)?;
    Ok(weights.f_exp_()?)
}

/// The logits of the `top_k` heaviest tokens (0 is all), and of these of the heaviest that hold `top_p` of
/// their weight together; the others are minus infinity.
fn nucleus(logits: &Tensor, temperature: f64, top_k: usize, top_p: f64) -> TorchResult<Tensor> {
    let (sorted, order) = logits.f_sort_stable(true, 1, true)?;
    let (_, vocabulary) = dimensions(logits)?;
    let kept = match top_k {
        0 => vocabulary,
        top_k => vocabulary.min(top_k as i64),
    };
    let (sorted, order) = (sorted.f_narrow(1, 0, kept)?, order.f_narrow(1, 0, kept)?);
    let weights = weights(&sorted, temperature)?.f_to_kind(Kind::Double)?;
    let held = weights.f_cumsum(1, Kind::Double)?;
    let needed = held.f_narrow(1, kept - 1, 1)?.f_mul_scalar(top_p)?;
    let beyond = held.f_sub(&weights)?.f_ge_tensor(&needed)?;
    let sorted = match top_p < 1.0 {
        true => sorted.f_masked_fill(&beyond, f64::NEG_INFINITY)?,
        false => sorted,
    };
    Ok(logits.f_full_like(f64::NEG_INFINITY)?.f_scatter(1, &order, &sorted)?)
}

/// The token that arrives first in each row, `[rows, 1]`.
fn winners(weights: &Tensor, draw: &DeviceSampling) -> TorchResult<Tensor> {
    let (rows, vocabulary) = dimensions(weights)?;
    let block = DeviceSampling::BLOCK as i64;
    let padding = (vocabulary as usize).next_multiple_of(DeviceSampling::BLOCK) as i64 - vocabulary;
    let blocks = weights.f_constant_pad_nd([0, padding])?.f_view([rows, -1, block])?;
    let sums = blocks.f_sum_dim_intlist([2].as_slice(), false, Kind::Double)?;
    let first_blocks = first(&sums, &draw.block_exponentials)?;
    let chosen = first_blocks.f_unsqueeze(2)?.f_expand([rows, 1, block], false)?;
    let tokens = blocks.f_gather(1, &chosen, false)?.f_squeeze_dim(1)?;
    let first_tokens = first(&tokens.f_to_kind(Kind::Double)?, &draw.token_exponentials)?;
    Ok(first_blocks.f_mul_scalar(block)?.f_add(&first_tokens)?)
}

/// Index of the weight that arrives first in each row, `[rows, 1]`.
fn first(weights: &Tensor, times: &[f64]) -> TorchResult<Tensor> {
    let times = Tensor::f_from_slice(times)?.f_view(weights.size().as_slice())?;
    let arrivals = times.f_to_device(weights.device())?.f_div(weights)?;
    // A weight of 0 never arrives, not even at the time 0.
    let never = weights.f_eq(0.0)?;
    Ok(arrivals.f_masked_fill(&never, f64::INFINITY)?.f_argmin(1, true)?)
}

#[cfg(test)]
mod tests {
    use sppo_model::generation::{SampleKey, SampleRequest, Sampler};

    use super::*;

    /// Rows of three blocks, the last one short, with ties.
    fn rows() -> Vec<Vec<f32>> {
        let logit = |row: usize, token: usize| ((token * 37 + row * 11) % 101) as f32 / 15.0;
        (0..40).map(|row| (0..600).map(|token| logit(row, token)).collect()).collect()
    }

    /// Key and position of each row's draw.
    fn keys_and_positions() -> Vec<(SampleKey, usize)> {
        let key = |prompt| SampleKey { seed: 1, stream: 2, prompt, sample: 3 };
        (0..40).map(|row| (key(row), (row % 7) as usize)).collect()
    }

    #[test]
    fn a_device_draws_what_the_host_draws() {
        let (rows, keys) = (rows(), keys_and_positions());
        let logits = Tensor::f_from_slice(&rows.concat()).unwrap().view([40, 600]);
        let plain = SamplingParameters::default();
        for parameters in [
            plain.clone(),
            SamplingParameters { temperature: 0.0, min_new_tokens: 4, ..plain.clone() },
            SamplingParameters { temperature: 0.7, min_new_tokens: 4, ..plain.clone() },
            SamplingParameters { top_p: 0.8, ..plain.clone() },
            SamplingParameters { top_k: 5, ..plain.clone() },
            SamplingParameters { temperature: 1.3, top_k: 50, top_p: 0.6, ..plain },
        ] {
            // The largest logits are among those banned.
            let sampler = Sampler::new(&parameters, &[0, 30, 71, 598]).unwrap();
            let requests: Vec<_> = (rows.iter().zip(&keys))
                .map(|(logits, &(key, position))| SampleRequest { logits, key, position })
                .collect();
            let expected = sampler.sample_all(&requests).unwrap();
            let actual = draw(&logits, &sampler.for_device(&keys, 600).unwrap()).unwrap();
            for (expected, actual) in expected.iter().zip(&actual) {
                assert_eq!(expected.token, actual.token, "{parameters:?}");
                assert!((expected.log_prob - actual.log_prob).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn damaged_logits_are_refused() {
        let sampler = Sampler::new(&SamplingParameters::default(), &[0]).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let mut row = rows().remove(0);
            row[3] = bad;
            let logits = Tensor::f_from_slice(&row).unwrap().view([1, 600]);
            let inputs = sampler.for_device(&keys_and_positions()[..1], 600).unwrap();
            assert!(draw(&logits, &inputs).is_err());
        }
    }
}
