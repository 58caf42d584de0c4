//! Eight numbers in a register, for the few loops that the compiler's own vectors do not suffice for: where it
//! combines numbers of different rows, a product of matrices takes twice the time.

use super::vector::multiply_add;

/// Numbers of one register.
pub(crate) const LANES: usize = 8;

/// Eight numbers, computed alike.
pub(crate) trait Lanes: Copy {
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
}

/// Plain numbers, for processors without AVX2.
#[derive(Clone, Copy)]
pub(crate) struct Plain<const FUSED: bool>([f32; LANES]);

impl<const FUSED: bool> Lanes for Plain<FUSED> {
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
}

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };

    use super::Lanes;

    /// A register of AVX2. Only functions that are compiled for AVX2 may use it: those of
    /// [`vectorised`](crate::kernels::vector::vectorised) where `FUSED` holds.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256);

    // SAFETY of all intrinsics below: by the rule above, the processor has AVX2 and fused multiply-add.
    impl Lanes for Avx2 {
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
    }
}

/// Calls a function that is generic over [`Lanes`] with those of the processor that `FUSED` stands for, its
/// first generic argument.
macro_rules! with_lanes {
    ($fused:ident, $function:ident::<_ $(, $generic:tt)*>($($argument:expr),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        let result = if $fused {
            $function::<$crate::kernels::lanes::Avx2 $(, $generic)*>($($argument),*)
        } else {
            $function::<$crate::kernels::lanes::Plain<false> $(, $generic)*>($($argument),*)
        };
        #[cfg(not(target_arch = "x86_64"))]
        let result = $function::<$crate::kernels::lanes::Plain<$fused> $(, $generic)*>($($argument),*);
        result
    }};
}
pub(crate) use with_lanes;
