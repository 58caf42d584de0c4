//! Rows of a tile in registers of any width. A sum is the same to the bit in all of them that fuse multiplication and
//! addition.

use super::lanes::{LANES, Lanes};

/// Columns of a panel, which every kind of tile covers.
pub(crate) const TILE_COLUMNS: usize = 2 * LANES;
/// Rows that a tile covers at most.
const MOST_ROWS: usize = 14;
/// Columns that a tile covers at most.
pub(super) const MOST_COLUMNS: usize = 2 * TILE_COLUMNS;

/// The sums of a tile, row by row; of smaller tiles the first rows and columns.
pub(crate) type TileSums = [[f32; MOST_COLUMNS]; MOST_ROWS];

/// Sums before any tile.
pub(crate) const NO_SUMS: TileSums = [[0.0; MOST_COLUMNS]; MOST_ROWS];

/// A row of a tile, in one or two registers.
pub(crate) trait TileRow: Copy {
    /// Numbers of the row.
    const COLUMNS: usize;

    /// Whether products are rounded only once they are added.
    const FUSED: bool;

    /// Half of such a row, or no less than a register.
    type Half: TileRow;

    /// The longest row of which so many sums fit: the wider, the more work there is for each factor that is loaded.
    type Wide: TileRow;

    /// Rows of a tile whose sums fill the registers, with room for a row of the operand and a factor.
    const ROWS: usize;

    /// Zeros.
    fn zero() -> Self;

    /// The numbers at an address.
    ///
    /// # Safety
    /// `COLUMNS` numbers can be read there.
    unsafe fn load(address: *const f32) -> Self;

    /// Writes the numbers to an address.
    ///
    /// # Safety
    /// `COLUMNS` numbers can be written there.
    unsafe fn store(self, address: *mut f32);

    /// `self + other`.
    fn add(self, other: Self) -> Self;

    /// `self + factor row`, rounded as [`multiply_add`](super::vector::multiply_add) does.
    fn add_product(self, factor: f32, row: Self) -> Self;
}

impl<L: Lanes> TileRow for L {
    const COLUMNS: usize = LANES;
    const FUSED: bool = <L as Lanes>::FUSED;
    const ROWS: usize = 6;
    type Half = Self;
    type Wide = Twice<Self>;

    #[inline(always)]
    fn zero() -> Self {
        L::zero()
    }

    #[inline(always)]
    unsafe fn load(address: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { L::load(address) }
    }

    #[inline(always)]
    unsafe fn store(self, address: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { L::store(self, address) };
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        L::add(self, other)
    }

    #[inline(always)]
    fn add_product(self, factor: f32, row: Self) -> Self {
        L::splat(factor).multiply_add(row, self)
    }
}

/// Two registers side by side.
#[derive(Clone, Copy)]
pub(crate) struct Twice<T>(T, T);

impl<T: TileRow> TileRow for Twice<T> {
    const COLUMNS: usize = 2 * T::COLUMNS;
    const FUSED: bool = T::FUSED;
    const ROWS: usize = T::ROWS;
    type Half = T;
    type Wide = Self;

    #[inline(always)]
    fn zero() -> Self {
        Self(T::zero(), T::zero())
    }

    #[inline(always)]
    unsafe fn load(address: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(T::load(address), T::load(address.add(T::COLUMNS))) }
    }

    #[inline(always)]
    unsafe fn store(self, address: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            self.0.store(address);
            self.1.store(address.add(T::COLUMNS));
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(self.0.add(other.0), self.1.add(other.1))
    }

    #[inline(always)]
    fn add_product(self, factor: f32, row: Self) -> Self {
        Self(self.0.add_product(factor, row.0), self.1.add_product(factor, row.1))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_storeu_ps,
    };

    use super::{MOST_ROWS, TILE_COLUMNS, TileRow, Twice};
    use crate::lanes::Avx2;

    /// A register of AVX-512. Only functions that are compiled for it may use it: those of
    /// [`tiled`](crate::tile_row::tiled) that stand for it.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    // SAFETY of all intrinsics below: by the rule above, the processor has AVX-512.
    impl TileRow for Avx512 {
        const COLUMNS: usize = TILE_COLUMNS;
        const FUSED: bool = true;
        const ROWS: usize = MOST_ROWS;
        type Half = Avx2;
        type Wide = Twice<Self>;

        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn load(address: *const f32) -> Self {
            // SAFETY: see above, and the caller's promise.
            Self(unsafe { _mm512_loadu_ps(address) })
        }

        #[inline(always)]
        unsafe fn store(self, address: *mut f32) {
            // SAFETY: see above, and the caller's promise.
            unsafe { _mm512_storeu_ps(address, self.0) };
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn add_product(self, factor: f32, row: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_fmadd_ps(_mm512_set1_ps(factor), row.0, self.0) })
        }
    }
}

/// Compiles a function for each kind of register that products use, and picks the widest at run time. In its body
/// the type `$row` is a [`TileRow`] of [`TILE_COLUMNS`] numbers.
macro_rules! tiled {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident<$row:ident>($($argument:ident: $type:ty),* $(,)?)
        $(-> $result:ty)? $body:block) => {
        $(#[$attribute])*
        $visibility fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body<$row: $crate::tile_row::TileRow>($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                use std::arch::is_x86_feature_detected;

                #[target_feature(enable = "avx512f")]
                fn with_avx512($($argument: $type),*) $(-> $result)? {
                    body::<$crate::tile_row::Avx512>($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn with_avx2($($argument: $type),*) $(-> $result)? {
                    body::<$crate::tile_row::Twice<$crate::lanes::Avx2>>($($argument),*)
                }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the processor has the instructions that the function is compiled for.
                    return unsafe { with_avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: as above.
                    return unsafe { with_avx2($($argument),*) };
                }
            }
            body::<$crate::tile_row::Twice<$crate::lanes::Portable>>($($argument),*)
        }
    };
}
pub(crate) use tiled;
