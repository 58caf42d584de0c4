//! The innermost loop of all products: a tile of sums that stay in the processor's registers.
//!
//! Each sum is one chain of multiply-adds in the order of the depth.

use std::marker::PhantomData;
use std::ops::Range;

use super::tile_row::{MOST_COLUMNS, TileRow, TileSums};

/// The left operand of a product.
#[derive(Clone, Copy)]
pub(crate) enum Left<'a> {
    /// Row-major: rows are `stride` apart.
    Rows { values: &'a [f32], stride: usize },
    /// The transpose of a row-major matrix whose rows are `stride` apart.
    Columns { values: &'a [f32], stride: usize },
}

/// The right operand, row-major: rows are `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
}

/// `0..rows` in tiles of nearly equal height: a low one has too few independent sums to be efficient.
pub(crate) fn tiles<T: TileRow>(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let mut row = 0;
    std::iter::from_fn(move || {
        let left_over = rows - row;
        let height = left_over.div_ceil(left_over.div_ceil(T::ROWS).max(1));
        row += height;
        (height > 0).then_some(row - height..row)
    })
}

/// Sums of one tile: rows of the left operand by the first `T::COLUMNS` columns of the right one, over the depth.
/// They are written over the first rows of `sums`.
#[inline(always)]
pub(crate) fn tile_sums<T: TileRow>(
    left: Left,
    right: Right,
    rows: Range<usize>,
    depth: usize,
    sums: &mut TileSums,
) {
    assert!(rows.len() <= sums.len(), "a tile higher than any");
    let target = TileTarget {
        pointer: sums.as_mut_ptr().cast(),
        stride: MOST_COLUMNS,
        columns: T::COLUMNS,
        adds: false,
    };
    // SAFETY: the target has room for the largest tile.
    unsafe { write_tile::<T>(left, right, rows, depth, Ahead::NOTHING, target) };
}

/// The place of a tile in a row-major matrix.
#[derive(Clone, Copy)]
pub(crate) struct TileTarget {
    pub(crate) pointer: *mut f32,
    pub(crate) stride: usize,
    /// Columns that are written, `T::COLUMNS` at most.
    pub(crate) columns: usize,
    /// Whether the sums are added to the old numbers; otherwise they replace them.
    pub(crate) adds: bool,
}

/// Writes or adds the sums of one tile, as [`tile_sums`] defines them. Meanwhile lines are fetched `ahead`.
///
/// # Safety
/// The target has the tile's rows and columns, and no other thread accesses them at the same time. Where sums are
/// added, there are numbers.
#[inline(always)]
pub(crate) unsafe fn write_tile<T: TileRow>(
    left: Left,
    right: Right,
    rows: Range<usize>,
    depth: usize,
    ahead: Ahead,
    target: TileTarget,
) {
    let height = rows.len();
    let operands = TileOperands::new(left, right, rows, depth, T::COLUMNS);
    let is_packed = operands.is_packed();
    macro_rules! of_height {
        ($($height:literal)*) => {
            // SAFETY: the caller's promise.
            unsafe {
                match (height, is_packed) {
                    $(
                        ($height, true) if const { $height <= T::ROWS } => {
                            sums_of_height::<T, $height, true>(operands, ahead, target);
                        }
                        ($height, false) if const { $height <= T::ROWS } => {
                            sums_of_height::<T, $height, false>(operands, ahead, target);
                        }
                    )*
                    _ => unreachable!("a tile higher than any"),
                }
            }
        };
    }
    of_height!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

/// The operands of a tile, from its first number on: `left(r, k)` lies at `r row_stride + k depth_stride`.
/// All that a tile reads lies within the slices that it was made of.
#[derive(Clone, Copy)]
struct TileOperands<'a> {
    left: *const f32,
    row_stride: usize,
    depth_stride: usize,
    right: *const f32,
    right_stride: usize,
    depth: usize,
    rows: usize,
    columns: usize,
    borrow: PhantomData<&'a [f32]>,
}

impl<'a> TileOperands<'a> {
    #[inline(always)]
    fn new(
        left: Left<'a>,
        right: Right<'a>,
        rows: Range<usize>,
        depth: usize,
        columns: usize,
    ) -> Self {
        let (values, row_stride, depth_stride) = match left {
            Left::Rows { values, stride } => (values, stride, 1),
            Left::Columns { values, stride } => (values, 1, stride),
        };
        let values = &values[rows.start * row_stride..];
        let last = depth.saturating_sub(1);
        let left_end = (rows.len() - 1) * row_stride + last * depth_stride;
        let right_end = last * right.stride + columns;
        assert!(
            depth == 0 || left_end < values.len() && right_end <= right.values.len(),
            "operands are smaller than their product"
        );
        Self {
            left: values.as_ptr(),
            row_stride,
            depth_stride,
            right: right.values.as_ptr(),
            right_stride: right.stride,
            depth,
            rows: rows.len(),
            columns,
            borrow: PhantomData,
        }
    }

    /// Whether both operands lie in one piece.
    #[inline(always)]
    fn is_packed(&self) -> bool {
        self.row_stride == 1 && self.depth_stride == self.rows && self.right_stride == self.columns
    }

    #[inline(always)]
    fn strides<T: TileRow, const R: usize, const PACKED: bool>(&self) -> [usize; 3] {
        if PACKED {
            [1, R, T::COLUMNS]
        } else {
            [self.row_stride, self.depth_stride, self.right_stride]
        }
    }

    /// Adds the products of a step of the depth, counted from the present one.
    ///
    /// # Safety
    /// There is such a step.
    #[inline(always)]
    unsafe fn add_step<T: TileRow, const R: usize, const PACKED: bool>(
        &self,
        step: usize,
        sums: &mut [T; R],
    ) {
        let [row_stride, depth_stride, right_stride] = self.strides::<T, R, PACKED>();
        // SAFETY: the caller's promise.
        let row = unsafe { T::load(self.right.add(step * right_stride)) };
        for (r, sum) in sums.iter_mut().enumerate() {
            // SAFETY: as above.
            let factor = unsafe { *self.left.add(step * depth_stride + r * row_stride) };
            *sum = sum.add_product(factor, row);
        }
    }

    /// Goes on by so many steps.
    #[inline(always)]
    fn advance<T: TileRow, const R: usize, const PACKED: bool>(&mut self, steps: usize) {
        let [_, depth_stride, right_stride] = self.strides::<T, R, PACKED>();
        self.left = self.left.wrapping_add(steps * depth_stride);
        self.right = self.right.wrapping_add(steps * right_stride);
    }
}

/// The sums of `R` rows. Where `PACKED`, all addresses of a few steps are at known distances: those of many rows with
/// a stride would not fit into the processor's registers.
///
/// # Safety
/// As for [`write_tile`].
#[inline(always)]
unsafe fn sums_of_height<T: TileRow, const R: usize, const PACKED: bool>(
    mut operands: TileOperands,
    mut ahead: Ahead,
    target: TileTarget,
) {
    /// Steps without a test in between.
    const STEPS: usize = 4;
    /// Steps between two looks ahead.
    const STRETCH: usize = 2 * STEPS;
    assert!(R == operands.rows && T::COLUMNS == operands.columns, "a tile of another size");
    for r in 0..R {
        prefetch_near(target.pointer.wrapping_add(r * target.stride));
    }
    let mut sums = [T::zero(); R];
    let depth = operands.depth;
    let stretch = if ahead.is_done() { depth.max(1) } else { STRETCH };
    for start in (0..depth).step_by(stretch) {
        if !ahead.is_done() {
            ahead.fetch(stretch);
        }
        let mut left_over = stretch.min(depth - start);
        while left_over >= STEPS {
            for step in 0..STEPS {
                // SAFETY: the operands were made for tiles of this size, and reach up to the depth.
                unsafe { operands.add_step::<T, R, PACKED>(step, &mut sums) };
            }
            operands.advance::<T, R, PACKED>(STEPS);
            left_over -= STEPS;
        }
        for _ in 0..left_over {
            // SAFETY: as above.
            unsafe { operands.add_step::<T, R, PACKED>(0, &mut sums) };
            operands.advance::<T, R, PACKED>(1);
        }
    }
    for (r, sum) in sums.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { put(sum, target.pointer.add(r * target.stride), target) };
    }
}

/// Writes or adds one row of a tile.
///
/// # Safety
/// As for [`write_tile`]; the address is that of the row.
#[inline(always)]
unsafe fn put<T: TileRow>(sum: T, address: *mut f32, target: TileTarget) {
    if target.columns == T::COLUMNS {
        // SAFETY: the caller's promise.
        unsafe {
            let sum = if target.adds { T::load(address).add(sum) } else { sum };
            sum.store(address);
        }
        return;
    }
    let mut sums = [0.0; MOST_COLUMNS];
    // SAFETY: the array has room for the longest row, and for the rest see the caller's promise.
    unsafe {
        sum.store(sums.as_mut_ptr());
        for (column, &sum) in sums[..target.columns].iter().enumerate() {
            let element = address.add(column);
            element.write(if target.adds { element.read() + sum } else { sum });
        }
    }
}

/// Memory that will be read soon, of which a line is fetched every few steps of the depth: in one go, lines would wait
/// for each other.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    line: *const u8,
    end: *const u8,
    every: usize,
    /// Steps since the last line.
    steps: usize,
}

impl Ahead {
    /// Bytes of a cache line.
    const LINE: usize = 64;

    /// No such memory.
    pub(crate) const NOTHING: Self =
        Self { line: std::ptr::null(), end: std::ptr::null(), every: 1, steps: 0 };

    /// The share of these bytes that one of some tiles fetches: a line per step in all of them together.
    #[inline(always)]
    pub(crate) fn share(bytes: &[u8], tile: usize, tiles: usize) -> Self {
        let share = bytes.len().div_ceil(tiles).next_multiple_of(Self::LINE);
        let [line, end] =
            [tile, tile + 1].map(|tile| bytes.as_ptr().wrapping_add(bytes.len().min(tile * share)));
        Self { line, end, every: tiles, steps: 0 }
    }

    #[inline(always)]
    fn is_done(&self) -> bool {
        self.line >= self.end
    }

    /// Asks for the lines of the next so many steps; the last of them may lie after the share, where none need exist.
    #[inline(always)]
    fn fetch(&mut self, steps: usize) {
        self.steps += steps;
        while self.steps >= self.every {
            self.steps -= self.every;
            prefetch(self.line.cast());
            self.line = self.line.wrapping_add(Self::LINE);
        }
    }
}

/// Asks for the cache line of an address, to be there at once.
#[inline(always)]
fn prefetch_near(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as below.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for the cache line of an address, which need not exist.
#[inline(always)]
pub(crate) fn prefetch(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction, and it changes no memory and fails at none.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch(address.cast(), _MM_HINT_T1);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::lanes::{Avx2, Plain};
    use crate::test_support::random;
    use crate::tile_row::{Avx512, NO_SUMS, TILE_COLUMNS, Twice};

    #[target_feature(enable = "avx2,fma")]
    fn in_avx2(left: Left, right: Right, rows: usize, depth: usize, sums: &mut TileSums) {
        tile_sums::<Twice<Avx2>>(left, right, 0..rows, depth, sums);
    }

    #[target_feature(enable = "avx512f")]
    fn in_avx512(left: Left, right: Right, rows: usize, depth: usize, sums: &mut [TileSums; 2]) {
        tile_sums::<Avx512>(left, right, 0..rows, depth, &mut sums[0]);
        tile_sums::<Twice<Avx512>>(left, right, 0..rows, depth, &mut sums[1]);
    }

    /// A run that goes on on another processor goes on with the same numbers.
    #[test]
    fn sums_are_the_same_in_registers_of_any_width() {
        for (rows, depth) in [(1, 0), (1, 1), (3, 7), (6, 64), (5, 301)] {
            let a = random(rows * depth.max(1), 1);
            let stride = 2 * TILE_COLUMNS;
            let b = random(depth.max(1) * stride, 2);
            let right = Right { values: &b, stride };
            for left in [
                Left::Columns { values: &a, stride: rows },
                Left::Rows { values: &a, stride: depth.max(1) },
            ] {
                let mut plain = NO_SUMS;
                tile_sums::<Twice<Plain<true>>>(left, right, 0..rows, depth, &mut plain);
                let expected = plain.map(|row| row[..TILE_COLUMNS].to_vec());
                let check = |sums: &TileSums| {
                    for (sums, expected) in sums.iter().zip(&expected) {
                        assert_eq!(
                            sums[..TILE_COLUMNS],
                            expected[..],
                            "{rows} rows, depth {depth}"
                        );
                    }
                };
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    let mut sums = NO_SUMS;
                    // SAFETY: the processor has the instructions.
                    unsafe { in_avx2(left, right, rows, depth, &mut sums) };
                    check(&sums);
                }
                if is_x86_feature_detected!("avx512f") {
                    let mut sums = [NO_SUMS; 2];
                    // SAFETY: as above.
                    unsafe { in_avx512(left, right, rows, depth, &mut sums) };
                    check(&sums[0]);
                    check(&sums[1]);
                }
            }
        }
    }
}
