//! Rotary frequencies and their scaling for long contexts.

use std::f64::consts::TAU;

use super::{DecoderConfig, RotaryScaling};
use crate::ops::RotaryFrequencies;

/// The frequencies of a decoder: `base^(-2 i / head_size)`, scaled as the configuration says.
#[must_use]
pub fn rotary_frequencies(config: &DecoderConfig) -> RotaryFrequencies {
    let frequency = |pair: usize| {
        let plain = config.rotary_base.powf(-2.0 * pair as f64 / config.head_size as f64);
        scaled(plain, &config.rotary_scaling) as f32
    };
    RotaryFrequencies { frequencies: (0..config.head_size / 2).map(frequency).collect() }
}

fn scaled(frequency: f64, scaling: &RotaryScaling) -> f64 {
    match *scaling {
        RotaryScaling::Unscaled => frequency,
        RotaryScaling::Linear { factor } => frequency / factor,
        RotaryScaling::Llama3 {
            factor,
            low_frequency_factor,
            high_frequency_factor,
            original_context,
        } => {
            // Full rotations of the pair within the original context decide how far it is scaled.
            let rotations = original_context * frequency / TAU;
            let kept =
                (rotations - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
            let kept = kept.clamp(0.0, 1.0);
            kept * frequency + (1.0 - kept) * frequency / factor
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let scaling = RotaryScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 32.0,
        };
        assert_eq!(scaled(1.0, &scaling), 1.0);
        assert_eq!(scaled(0.01, &scaling), 0.01 / 8.0);
        // Wavelength 12.8: 2.5 rotations, half way between 1 and 4.
        let frequency = TAU / 12.8;
        let expected = 0.5 * frequency + 0.5 * frequency / 8.0;
        assert!((scaled(frequency, &scaling) - expected).abs() < 1e-15);
        assert_eq!(scaled(0.5, &RotaryScaling::Linear { factor: 4.0 }), 0.125);
    }
}
