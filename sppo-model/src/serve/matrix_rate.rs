//! How fast a tensor library multiplies matrices: the yardstick of `sppo bench`.

use std::time::Instant;

use crate::error::{ModelError, Result};

/// How long products are repeated.
const SECONDS: f64 = 1.0;

/// GFLOP/s of the median of many runs of `product`, which multiplies `[rows, inner] x [inner, columns]`
/// and returns when that is done. The fastest would say what the machine does when nobody else is on it,
/// which is not what work that lasts for minutes can be held to.
///
/// # Errors
/// When a dimension is 0 or the product fails.
pub fn measure_matrix_products(
    [rows, inner, columns]: [usize; 3],
    mut product: impl FnMut() -> Result<()>,
) -> Result<f64> {
    if rows == 0 || inner == 0 || columns == 0 {
        return Err(ModelError::Input("a matrix product of no elements has no rate".into()));
    }
    let flops = 2.0 * rows as f64 * inner as f64 * columns as f64;
    product()?;
    let begin = Instant::now();
    let mut seconds = Vec::new();
    while begin.elapsed().as_secs_f64() < SECONDS {
        let start = Instant::now();
        product()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
    Ok(flops / median / 1e9)
}
