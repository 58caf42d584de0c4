//! Blocks of 256 values in groups, whose scales and minima are integers too.

use half::f16;

/// Values of a group.
const GROUP: usize = 32;
const GROUPS: usize = 8;
/// The largest 4-bit integer.
const LARGEST: f32 = 15.0;
/// The largest 6-bit scale or minimum.
const LARGEST_SCALE: f32 = 63.0;
/// Scales that are tried for a group beside the plain one.
const TRIALS: u8 = 20;

/// `{ f16 scale; f16 minimum; u8 packed[12]; u8 nibbles[128] }`; a value is its integer times the group's
/// scale, less the group's minimum.
pub(super) fn q4_k(values: &[f32; 256]) -> [u8; 144] {
    let (groups, _) = values.as_chunks::<GROUP>();
    let mut scales = [0.0; GROUPS];
    let mut minima = [0.0; GROUPS];
    for (index, group) in groups.iter().enumerate() {
        [scales[index], minima[index]] = fit(group);
    }
    let (scale, scales) = integers(&scales);
    let (minimum, minima) = integers(&minima);
    let mut block = [0; 144];
    block[..2].copy_from_slice(&scale.to_le_bytes());
    block[2..4].copy_from_slice(&minimum.to_le_bytes());
    block[4..16].copy_from_slice(&packed(&scales, &minima));
    let mut rounded = [[0; GROUP]; GROUPS];
    for (index, group) in groups.iter().enumerate() {
        let step = scale.to_f32() * f32::from(scales[index]);
        let offset = minimum.to_f32() * f32::from(minima[index]);
        if step != 0.0 {
            rounded[index] = group.map(|value| clamped((value + offset) / step));
        }
    }
    for (index, byte) in block[16..].iter_mut().enumerate() {
        let (pair, value) = (index / GROUP, index % GROUP);
        *byte = rounded[2 * pair][value] | rounded[2 * pair + 1][value] << 4;
    }
    block
}

/// Integers of 6 bits for non-negative numbers, and the factor that makes the numbers of them.
fn integers(numbers: &[f32; GROUPS]) -> (f16, [u8; GROUPS]) {
    let largest = numbers.iter().copied().fold(0.0_f32, f32::max);
    let inverse = if largest > 0.0 { LARGEST_SCALE / largest } else { 0.0 };
    let integer = |number: f32| (inverse * number).round_ties_even().min(LARGEST_SCALE) as u8;
    (f16::from_f32(largest / LARGEST_SCALE), numbers.map(integer))
}

/// Scales and minima: the first four of each have bytes of their own, whose upper two bits are those of the
/// last four.
fn packed(scales: &[u8; GROUPS], minima: &[u8; GROUPS]) -> [u8; 12] {
    let mut packed = [0; 12];
    (0..4).for_each(|index| {
        let (scale, minimum) = (scales[index + 4], minima[index + 4]);
        packed[index] = scales[index] | scale >> 4 << 6;
        packed[index + 4] = minima[index] | minimum >> 4 << 6;
        packed[index + 8] = scale & 15 | minimum << 4;
    });
    packed
}

fn clamped(value: f32) -> u8 {
    value.round_ties_even().clamp(0.0, LARGEST) as u8
}

/// A group's integers with the scale and the minimum that make values of them, and its error.
struct Fit {
    scale: f32,
    /// At most 0.
    minimum: f32,
    error: f32,
}

/// The scale and the negative minimum of a group: of several scales, each with the integers that it leads
/// to and the least squares of these, the one with the smallest error. Large values count for more.
fn fit(group: &[f32; GROUP]) -> [f32; 2] {
    let square_sum = group.iter().fold(0.0, |sum, value| sum + value * value);
    let typical = (square_sum / GROUP as f32).sqrt();
    let weights = group.map(|value| typical + value.abs());
    let most = group.iter().copied().fold(group[0], f32::max);
    let least = group.iter().copied().fold(group[0], f32::min).min(0.0);
    if most == least {
        return [0.0, -least];
    }
    let step = LARGEST / (most - least);
    let plain = group.map(|value| clamped(step * (value - least)));
    let scale = 1.0 / step;
    let error = error(group, &weights, &plain, scale, least);
    let mut best = Fit { scale, minimum: least, error };
    for trial in 0..=TRIALS {
        let step = (-1.0 + 0.1 * f32::from(trial) + LARGEST) / (most - best.minimum);
        let rounded = group.map(|value| clamped(step * (value - best.minimum)));
        if let Some(found) = least_squares(group, &weights, &rounded)
            && found.error < best.error
        {
            best = found;
        }
    }
    [best.scale, -best.minimum]
}

/// The weighted squares of what the integers leave of the values.
fn error(
    group: &[f32; GROUP],
    weights: &[f32; GROUP],
    rounded: &[u8; GROUP],
    scale: f32,
    minimum: f32,
) -> f32 {
    (0..GROUP).fold(0.0, |sum, index| {
        let rest = scale * f32::from(rounded[index]) + minimum - group[index];
        sum + weights[index] * (rest * rest)
    })
}

/// The scale and minimum with the least error for given integers; `None` where these are all alike.
fn least_squares(
    group: &[f32; GROUP],
    weights: &[f32; GROUP],
    rounded: &[u8; GROUP],
) -> Option<Fit> {
    let mut sums = [0.0_f32; 5];
    for ((&weight, &value), &integer) in weights.iter().zip(group).zip(rounded) {
        let integer = f32::from(integer);
        let terms = [
            weight,
            weight * value,
            weight * integer,
            weight * integer * integer,
            weight * integer * value,
        ];
        sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
    }
    let [weight, value, integer, square, product] = sums;
    let determinant = weight * square - integer * integer;
    if determinant <= 0.0 {
        return None;
    }
    let mut scale = (weight * product - value * integer) / determinant;
    let mut minimum = (square * value - integer * product) / determinant;
    if minimum > 0.0 {
        minimum = 0.0;
        scale = product / square;
    }
    let error = error(group, weights, rounded, scale, minimum);
    Some(Fit { scale, minimum, error })
}
