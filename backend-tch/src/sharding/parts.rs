//! The parts of a weight, one for each rank.

use tch::Tensor;

use crate::tensors::TorchResult;

/// Numbers whose multiple a part begins at. A kernel computes the last few of its numbers, and those at odd
/// addresses, with other instructions, which may round otherwise; so a part is worth the same whether it is a
/// tensor of its own or lies within the whole.
const GRAIN: i64 = 64;

/// Numbers of a weight, in row-major order, that one rank updates; none where the weight is small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    start: i64,
    length: i64,
}

impl Part {
    /// Part `number` of `parts` of so many numbers.
    pub(super) fn new(count: i64, number: usize, parts: usize) -> Self {
        let (number, parts) = (number as i64, parts.max(1) as i64);
        let longest = (count + parts - 1) / parts;
        let longest = if parts == 1 { count } else { (longest + GRAIN - 1) / GRAIN * GRAIN };
        let start = (number * longest).min(count);
        Self { start, length: longest.min(count - start) }
    }

    pub(crate) fn length(self) -> i64 {
        self.length
    }

    /// This part of a whole tensor, flat, in the same memory.
    pub(crate) fn of(self, whole: &Tensor) -> TorchResult<Tensor> {
        Ok(whole.f_view(-1)?.f_narrow(0, self.start, self.length)?)
    }

    /// This part of all values.
    pub(crate) fn of_values(self, values: &[f32]) -> &[f32] {
        let start = self.start as usize;
        values.get(start..start + self.length as usize).unwrap_or_default()
    }
}

/// The division of a weight among ranks, and what each keeps of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    pub(super) count: i64,
    pub(super) parts: usize,
    /// The part that this rank updates, where ranks divide updates. Of the optimiser's state it keeps this.
    pub(crate) own: Option<Part>,
    /// Whether it keeps this part alone of the f32 values, too.
    pub(crate) divide_values: bool,
    /// Whether it keeps this part alone of the gradient, too.
    pub(crate) divide_gradients: bool,
}

impl Shares {
    /// A weight of so many numbers that is not divided.
    pub(crate) fn whole(count: i64) -> Self {
        Self { count, parts: 1, own: None, divide_values: false, divide_gradients: false }
    }

    /// All parts, in the order of ranks.
    pub(crate) fn all(&self) -> impl Iterator<Item = Part> + use<> {
        let Self { count, parts, .. } = *self;
        (0..parts).map(move |number| Part::new(count, number, parts))
    }

    /// The parts that this rank updates.
    pub(crate) fn updated_parts(&self) -> impl Iterator<Item = Part> + use<> {
        let own = self.own;
        self.all().filter(move |part| own.is_none_or(|own| own == *part)).take(match own {
            Some(_) => 1,
            None => self.parts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_weight_once_and_begin_at_even_places() {
        for (count, parts) in [(0, 3), (1, 4), (64, 2), (4096, 3), (4097, 4), (1_000_003, 7)] {
            let shares = Shares { parts, ..Shares::whole(count) };
            let mut end = 0;
            for part in shares.all() {
                assert_eq!(part.start, end, "{count} in {parts}");
                assert!(part.length == 0 || part.start % GRAIN == 0, "{count} in {parts}");
                end += part.length;
            }
            assert_eq!(end, count);
            assert_eq!(shares.all().count(), parts);
        }
        assert_eq!(Shares::whole(7).all().collect::<Vec<_>>(), [Part { start: 0, length: 7 }]);
    }
}
