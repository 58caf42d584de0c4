//! Rotary embeddings (RoPE) and their scalings for long contexts.

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

use crate::ops::RotaryFrequencies;

/// The rotary embedding of a layer's queries and keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rotary {
    /// Base of the frequencies.
    pub base: f64,
    /// Features of each head that are rotated, its first ones; an even number.
    pub features: usize,
    /// Scaling of the frequencies.
    pub scaling: RotaryScaling,
}

/// Scaling of the rotary frequencies for long contexts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RotaryScaling {
    /// Plain frequencies.
    Unscaled,
    /// Every frequency is divided by the factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided, high ones kept, those between interpolated.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_frequency_factor` are divided.
        low_frequency_factor: f64,
        /// Wavelengths below `original_context / high_frequency_factor` are kept.
        high_frequency_factor: f64,
        /// The context length that the model was first trained with.
        original_context: f64,
    },
    /// YaRN (arXiv 2309.00071): the same by the number of a frequency, and what is rotated is scaled.
    Yarn {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Frequencies that turn more often than this in the original context are kept.
        fast_rotations: f64,
        /// Frequencies that turn less often than this in the original context are divided.
        slow_rotations: f64,
        /// The context length that the model was first trained with.
        original_context: f64,
        /// Whether the two numbers of frequencies between which divisors are interpolated are rounded
        /// away from each other.
        rounds_range: bool,
        /// Factor of all rotated features.
        attention_factor: f64,
    },
    /// LongRoPE (arXiv 2402.13753): every frequency has a divisor of its own, and another in sequences
    /// longer than the original context; what is rotated is scaled in all.
    LongRope {
        /// Divisors in sequences of up to the original context.
        short: Vec<f64>,
        /// Divisors in longer sequences.
        long: Vec<f64>,
        /// The context length that the model was first trained with.
        original_context: f64,
        /// Factor of all rotated features.
        attention_factor: f64,
    },
}

impl Rotary {
    /// Plain frequencies for all features of a head.
    #[must_use]
    pub fn plain(base: f64, head_size: usize) -> Self {
        Self { base, features: head_size, scaling: RotaryScaling::Unscaled }
    }

    /// The frequencies, `base^(-2 i / features)`, scaled, for heads of `head_size` features.
    #[must_use]
    pub fn frequencies(&self, head_size: usize) -> RotaryFrequencies {
        let all = |is_long: bool| {
            (0..self.features / 2).map(|pair| self.frequency(pair, is_long) as f32).collect()
        };
        RotaryFrequencies {
            head_size,
            frequencies: all(false),
            long_frequencies: self.longest_short_sequence().map(|_| all(true)),
            scale: self.attention_factor() as f32,
        }
    }

    /// The length in tokens above which a sequence takes other frequencies, if that makes a difference.
    #[must_use]
    pub fn longest_short_sequence(&self) -> Option<usize> {
        match &self.scaling {
            RotaryScaling::LongRope { original_context, .. } => Some(*original_context as usize),
            _ => None,
        }
    }

    fn attention_factor(&self) -> f64 {
        match self.scaling {
            RotaryScaling::Yarn { attention_factor, .. }
            | RotaryScaling::LongRope { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }

    /// The contradiction between these settings and the size of a head.
    pub(super) fn problem(&self, head_size: usize) -> Option<String> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        if !positive(self.base) {
            return Some(format!("the rotary base ({}) must be positive", self.base));
        }
        if self.features == 0 || self.features > head_size || !self.features.is_multiple_of(2) {
            return Some(format!(
                "{} features of heads of {head_size} cannot be rotated; an even number can, if there are \
                 as many",
                self.features
            ));
        }
        let factors = self.scaling.factors();
        if let Some((name, value)) = factors.into_iter().find(|&(_, value)| !positive(value)) {
            return Some(format!("the rope scaling's {name} ({value}) must be positive"));
        }
        match &self.scaling {
            RotaryScaling::Llama3 { low_frequency_factor, high_frequency_factor, .. }
                if high_frequency_factor <= low_frequency_factor =>
            {
                Some("the rope scaling needs low_freq_factor below high_freq_factor".into())
            }
            RotaryScaling::LongRope { short, long, .. } => {
                let pairs = self.features / 2;
                let sound = |divisors: &[f64]| {
                    divisors.len() == pairs && divisors.iter().copied().all(positive)
                };
                (!sound(short) || !sound(long)).then(|| {
                    format!(
                        "the rope scaling needs {pairs} positive numbers in short_factor and as many in \
                         long_factor; there are {} and {}",
                        short.len(),
                        long.len()
                    )
                })
            }
            _ => None,
        }
    }

    /// The divisor that the scaling gives to the plain frequency of a pair of features.
    pub(super) fn divisor(&self, pair: usize) -> f64 {
        self.base.powf(-2.0 * pair as f64 / self.features as f64) / self.frequency(pair, false)
    }

    /// The frequency of a pair of features in radians per position.
    fn frequency(&self, pair: usize, in_long_sequence: bool) -> f64 {
        let frequency = self.base.powf(-2.0 * pair as f64 / self.features as f64);
        match &self.scaling {
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
                let kept = (rotations - low_frequency_factor)
                    / (high_frequency_factor - low_frequency_factor);
                interpolated(frequency, *factor, kept)
            }
            RotaryScaling::Yarn { factor, .. } => {
                interpolated(frequency, *factor, 1.0 - self.yarn_ramp(pair))
            }
            RotaryScaling::LongRope { short, long, .. } => {
                let divisors = if in_long_sequence { long } else { short };
                divisors.get(pair).map_or(f64::NAN, |divisor| frequency / divisor)
            }
        }
    }

    /// The part, up to 1, of a pair's frequency that YaRN divides.
    fn yarn_ramp(&self, pair: usize) -> f64 {
        let RotaryScaling::Yarn {
            fast_rotations,
            slow_rotations,
            original_context,
            rounds_range,
            ..
        } = self.scaling
        else {
            return 0.0;
        };
        let features = self.features as f64;
        // The number of the pair that turns so often within the original context.
        let pair_of = |rotations: f64| {
            features * (original_context / (rotations * TAU)).ln() / (2.0 * self.base.ln())
        };
        let (mut low, mut high) = (pair_of(fast_rotations), pair_of(slow_rotations));
        if rounds_range {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(features - 1.0));
        if low == high {
            high += 0.001;
        }
        ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0)
    }
}

impl RotaryScaling {
    /// Every single number, by its name in `config.json`.
    fn factors(&self) -> Vec<(&'static str, f64)> {
        const CONTEXT: &str = "original_max_position_embeddings";
        match *self {
            Self::Unscaled => Vec::new(),
            Self::Linear { factor } => vec![("factor", factor)],
            Self::Llama3 {
                factor,
                low_frequency_factor,
                high_frequency_factor,
                original_context,
            } => vec![
                ("factor", factor),
                ("low_freq_factor", low_frequency_factor),
                ("high_freq_factor", high_frequency_factor),
                (CONTEXT, original_context),
            ],
            Self::Yarn {
                factor,
                fast_rotations,
                slow_rotations,
                original_context,
                attention_factor,
                ..
            } => vec![
                ("factor", factor),
                ("beta_fast", fast_rotations),
                ("beta_slow", slow_rotations),
                (CONTEXT, original_context),
                ("attention_factor", attention_factor),
            ],
            Self::LongRope { original_context, attention_factor, .. } => {
                vec![(CONTEXT, original_context), ("attention_factor", attention_factor)]
            }
        }
    }
}

/// The frequency where `kept`, of 0 to 1, of it is kept and the rest divided.
fn interpolated(frequency: f64, factor: f64, kept: f64) -> f64 {
    let kept = kept.clamp(0.0, 1.0);
    kept * frequency + (1.0 - kept) * frequency / factor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        // Wavelength 12.8 at the second of two pairs: 2.5 rotations, half way between 1 and 4.
        let frequency = TAU / 12.8;
        let rotary = |base: f64| Rotary {
            base,
            features: 4,
            scaling: RotaryScaling::Llama3 {
                factor: 8.0,
                low_frequency_factor: 1.0,
                high_frequency_factor: 4.0,
                original_context: 32.0,
            },
        };
        assert_eq!(rotary(1e4).frequency(0, false), 1.0);
        assert_eq!(rotary(1e4).frequency(1, false), 0.01 / 8.0);
        let expected = 0.5 * frequency + 0.5 * frequency / 8.0;
        let between = rotary(frequency.powi(-2)).frequency(1, false);
        assert!((between - expected).abs() < 1e-15);
        let linear = RotaryScaling::Linear { factor: 4.0 };
        let linear = Rotary { base: 4.0, features: 4, scaling: linear };
        assert_eq!(linear.frequency(1, true), 0.125);
    }

    #[test]
    fn longrope_divides_each_frequency_by_its_own_number() {
        let scaling = RotaryScaling::LongRope {
            short: vec![1.0, 2.0],
            long: vec![4.0, 8.0],
            original_context: 16.0,
            attention_factor: 1.5,
        };
        let rotary = Rotary { base: 1e4, features: 4, scaling };
        let frequencies = rotary.frequencies(6);
        assert_eq!(frequencies.frequencies, [1.0, 0.005]);
        assert_eq!(frequencies.long_frequencies, Some(vec![0.25, 0.00125]));
        assert_eq!((frequencies.head_size, frequencies.scale), (6, 1.5));
        assert!(rotary.problem(6).is_none() && rotary.problem(3).is_some());
        assert!(
            Rotary { features: 6, ..rotary }.problem(6).unwrap().contains("3 positive numbers")
        );
    }
}
