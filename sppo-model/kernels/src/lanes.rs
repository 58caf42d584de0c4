//! Eight numbers in a register, for the few loops that the compiler's own vectors do not suffice for: where it
//! combines numbers of different rows, a product of matrices takes twice the time.

use super::vector::multiply_add;

/// Numbers of one register.
pub(crate) const LANES: usize = 8;

/// Eight numbers, computed alike.
pub(crate) trait Lanes: Copy {
    /// Whether [`multiply_add`](Self::multiply_add) rounds once.
    const FUSED: bool;

    /// Zeros.
    fn zero() -> Self;

    /// The same number eight times.
    fn splat(value: f32) -> Self;

    /// The numbers at an address.
    ///
    /// # Safety
    /// Eight numbers can be read there.
    unsafe fn load(address: *const f32) -> Self;

    /// Writes the numbers to an address.
    ///
    /// # Safety
    /// Eight numbers can be written there.
    unsafe fn store(self, address: *mut f32);

    /// `self * factor + summand`, each as [`multiply_add`] rounds it.
    fn multiply_add(self, factor: Self, summand: Self) -> Self;

    /// `self + other`.
    fn add(self, other: Self) -> Self;

    /// Rows and columns of a square exchanged.
    fn transpose(rows: [Self; LANES]) -> [Self; LANES];
}

/// The registers of processors without AVX2.
pub(crate) type Portable = Plain<{ cfg!(target_arch = "aarch64") }>;

/// Plain numbers, which the compiler puts into registers as it can.
#[derive(Clone, Copy)]
pub(crate) struct Plain<const FUSED: bool>([f32; LANES]);

impl<const FUSED: bool> Lanes for Plain<FUSED> {
    const FUSED: bool = FUSED;

    #[inline(always)]
    fn zero() -> Self {
        Self([0.0; LANES])
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(address: *const f32) -> Self {
        // SAFETY: the caller's promise; an array has the alignment of its numbers.
        Self(unsafe { address.cast::<[f32; LANES]>().read() })
    }

    #[inline(always)]
    unsafe fn store(self, address: *mut f32) {
        // SAFETY: as above.
        unsafe { address.cast::<[f32; LANES]>().write(self.0) };
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, summand: Self) -> Self {
        Self(std::array::from_fn(|lane| {
            multiply_add::<FUSED>(self.0[lane], factor.0[lane], summand.0[lane])
        }))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] + other.0[lane]))
    }

    #[inline(always)]
    fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        std::array::from_fn(|column| Self(std::array::from_fn(|row| rows[row].0[column])))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_permute2f128_ps,
        _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps,
        _mm256_unpacklo_ps,
    };

    use super::{LANES, Lanes};

    /// A register of AVX2. Only functions that are compiled for AVX2 may use it: those of
    /// [`vectorised`](crate::vector::vectorised) where `FUSED` holds.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256);

    // SAFETY of all intrinsics below: by the rule above, the processor has AVX2 and fused multiply-add.
    impl Lanes for Avx2 {
        const FUSED: bool = true;

        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm256_setzero_ps() })
        }

        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm256_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(address: *const f32) -> Self {
            // SAFETY: see above, and the caller's promise.
            Self(unsafe { _mm256_loadu_ps(address) })
        }

        #[inline(always)]
        unsafe fn store(self, address: *mut f32) {
            // SAFETY: see above, and the caller's promise.
            unsafe { _mm256_storeu_ps(address, self.0) };
        }

        #[inline(always)]
        fn multiply_add(self, factor: Self, summand: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, summand.0) })
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
            let [a, b, c, d, e, f, g, h] = rows.map(|row| row.0);
            // SAFETY: see above.
            unsafe {
                // Of each half register: two numbers of two rows, then four of four, then all of one column.
                let pairs = [(a, b), (c, d), (e, f), (g, h)];
                let low = pairs.map(|(a, b)| _mm256_unpacklo_ps(a, b));
                let high = pairs.map(|(a, b)| _mm256_unpackhi_ps(a, b));
                let fours = |first: __m256, second: __m256| {
                    [
                        _mm256_shuffle_ps::<0b01_00_01_00>(first, second),
                        _mm256_shuffle_ps::<0b11_10_11_10>(first, second),
                    ]
                };
                let [upper_0, upper_1] = fours(low[0], low[1]);
                let [upper_2, upper_3] = fours(high[0], high[1]);
                let [lower_0, lower_1] = fours(low[2], low[3]);
                let [lower_2, lower_3] = fours(high[2], high[3]);
                let both = [
                    (upper_0, lower_0),
                    (upper_1, lower_1),
                    (upper_2, lower_2),
                    (upper_3, lower_3),
                ];
                let first = both.map(|(upper, lower)| _mm256_permute2f128_ps::<0x20>(upper, lower));
                let last = both.map(|(upper, lower)| _mm256_permute2f128_ps::<0x31>(upper, lower));
                std::array::from_fn(|column| {
                    Self(if column < 4 { first[column] } else { last[column - 4] })
                })
            }
        }
    }
}

/// Calls a function that is generic over [`Lanes`] with those of the processor that `FUSED` stands for, its
/// first generic argument.
macro_rules! with_lanes {
    ($fused:ident, $function:ident::<_ $(, $generic:tt)*>($($argument:expr),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        let result = if $fused {
            $function::<$crate::lanes::Avx2 $(, $generic)*>($($argument),*)
        } else {
            $function::<$crate::lanes::Portable $(, $generic)*>($($argument),*)
        };
        #[cfg(not(target_arch = "x86_64"))]
        let result = $function::<$crate::lanes::Plain<$fused> $(, $generic)*>($($argument),*);
        result
    }};
}
pub(crate) use with_lanes;
