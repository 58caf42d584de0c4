//! Files that hold weights by name, whatever their format.

use std::fmt::Debug;
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use super::quantized_matrix::QuantizedMatrix;
use crate::error::{ModelError, Result};

/// One or several files of named tensors.
pub trait WeightFile: Debug {
    /// The shape of a tensor, outermost dimension first; `None` where there is no such tensor.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// The row-major values of a tensor, converted to f32.
    ///
    /// # Errors
    /// When there is no such tensor or its number format is not supported.
    fn values(&self, name: &str) -> Result<Vec<f32>>;

    /// A matrix in the blocks in which the file stores it; `None` where these hold one number each, or the tensor
    /// is no matrix. Dimensions before the last are rows, one after the other.
    ///
    /// # Errors
    /// When there is no such tensor, or a value is infinite or not a number.
    fn quantized(&self, name: &str) -> Result<Option<QuantizedMatrix>> {
        let _ = name;
        Ok(None)
    }

    /// Size of what [`Self::quantized`] returns, in bytes.
    fn quantized_bytes(&self, name: &str) -> Option<u64> {
        let _ = name;
        None
    }

    /// The names of all tensors, in no particular order.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;

    /// Whether a tensor is stored in bf16 and can be kept so.
    fn is_bf16(&self, name: &str) -> bool;

    /// The files.
    fn paths(&self) -> Vec<&Path>;

    /// Names that the file gives to tensors beside those under which it stores them: name and stored name.
    fn shared_names(&self) -> Box<dyn Iterator<Item = (&str, &str)> + '_> {
        Box::new(std::iter::empty())
    }

    /// Whether two tensors are stored in the same bytes.
    fn are_alike(&self, one: &str, other: &str) -> bool {
        one == other
    }
}

impl<F: WeightFile + ?Sized> WeightFile for &F {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        (**self).shape(name)
    }

    fn values(&self, name: &str) -> Result<Vec<f32>> {
        (**self).values(name)
    }

    fn quantized(&self, name: &str) -> Result<Option<QuantizedMatrix>> {
        (**self).quantized(name)
    }

    fn quantized_bytes(&self, name: &str) -> Option<u64> {
        (**self).quantized_bytes(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        (**self).names()
    }

    fn is_bf16(&self, name: &str) -> bool {
        (**self).is_bf16(name)
    }

    fn paths(&self) -> Vec<&Path> {
        (**self).paths()
    }

    fn shared_names(&self) -> Box<dyn Iterator<Item = (&str, &str)> + '_> {
        (**self).shared_names()
    }

    fn are_alike(&self, one: &str, other: &str) -> bool {
        (**self).are_alike(one, other)
    }
}

/// The place of a weight in a [`WeightFile`]: a whole tensor, or some rows of one that holds several
/// weights one after the other (`qkv_proj`, for instance).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSource {
    /// The stored tensor.
    pub tensor: String,
    /// Rows of its last dimension, which those before it count one after the other; `None` is all.
    pub rows: Option<Range<usize>>,
}

impl WeightSource {
    /// A tensor that is the weight.
    pub fn whole(tensor: impl Into<String>) -> Self {
        Self { tensor: tensor.into(), rows: None }
    }

    /// Some rows of a tensor.
    pub fn rows(tensor: impl Into<String>, rows: Range<usize>) -> Self {
        Self { tensor: tensor.into(), rows: Some(rows) }
    }

    /// The weight's shape; `None` where the tensor is missing or has fewer rows.
    #[must_use]
    pub fn shape(&self, file: &dyn WeightFile) -> Option<Vec<usize>> {
        let stored = file.shape(&self.tensor)?;
        let Some(rows) = &self.rows else { return Some(stored.to_vec()) };
        let (&row, outer) = stored.split_last()?;
        let count: usize = outer.iter().product();
        (rows.end <= count).then(|| vec![rows.len(), row])
    }

    /// The weight's row-major values.
    ///
    /// # Errors
    /// As [`WeightFile::values`], or when the tensor has fewer rows.
    pub fn values(&self, file: &dyn WeightFile) -> Result<Vec<f32>> {
        let values = file.values(&self.tensor)?;
        let Some(rows) = &self.rows else { return Ok(values) };
        let row = file.shape(&self.tensor).and_then(|shape| shape.last()).copied().unwrap_or(0);
        let part = values.get(rows.start * row..rows.end * row);
        part.map(<[f32]>::to_vec).ok_or_else(|| self.too_short(rows))
    }

    /// The weight in the blocks in which the file stores it; `None` where it has none.
    ///
    /// # Errors
    /// As [`WeightFile::quantized`], or when the tensor has fewer rows.
    pub fn quantized(&self, file: &dyn WeightFile) -> Result<Option<QuantizedMatrix>> {
        let Some(whole) = file.quantized(&self.tensor)? else { return Ok(None) };
        let Some(rows) = &self.rows else { return Ok(Some(whole)) };
        whole.rows(rows.clone()).map(Some).ok_or_else(|| self.too_short(rows))
    }

    /// Size of what [`Self::quantized`] returns, in bytes.
    #[must_use]
    pub fn quantized_bytes(&self, file: &dyn WeightFile) -> Option<u64> {
        let whole = file.quantized_bytes(&self.tensor)?;
        let Some(rows) = &self.rows else { return Some(whole) };
        let outer = file.shape(&self.tensor)?.split_last()?.1.iter().product::<usize>();
        Some(whole / outer.max(1) as u64 * rows.len() as u64)
    }

    fn too_short(&self, rows: &Range<usize>) -> ModelError {
        let Self { tensor, .. } = self;
        ModelError::Input(format!("the tensor `{tensor}` has fewer than {} rows", rows.end))
    }
}

/// Refuses a tensor that holds a value which is infinite or not a number: whatever were computed with it
/// would be none either. `path` is the file, for errors.
pub(crate) fn check_finite(path: &Path, name: &str, values: &[f32]) -> Result<()> {
    const CHUNK: usize = 1 << 16;
    // without an early end, which would keep the loop from being vectorised
    let holds_other =
        |chunk: &[f32]| chunk.iter().fold(false, |found, value| found | !value.is_finite());
    if !values.par_chunks(CHUNK).any(holds_other) {
        return Ok(());
    }
    let count = values.iter().filter(|value| !value.is_finite()).count();
    let first = values.iter().find(|value| !value.is_finite()).copied().unwrap_or(f32::NAN);
    Err(ModelError::file(
        path,
        format!(
            "tensor `{name}` is damaged: {count} of its {} values are infinite or not a number, the \
             first {first}",
            values.len()
        ),
    )
    .with_hint("download or save the model again; if training made it, go back to an earlier checkpoint"))
}
