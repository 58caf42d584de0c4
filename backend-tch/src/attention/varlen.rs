//! The varlen kernel of CUDA devices: all sequences of a batch, whatever their lengths, in one call.
//!
//! Two calls serve a batch: one for what each sequence sees of itself, one for what it sees of a shared
//! prompt. Sequences lie in the rows of the operands, `[rows, heads, size]`, one after another; the
//! kernel's table of log-sum-exps is padded:
//!
//! ```text
//! queries        | sequence 0 | sequence 1      | ...     query_starts = [0, 3, 8, ...]
//! log-sum-exps   [sequences, heads, longest]              padded_rows[query] = sequence * longest + row
//! ```

use std::ffi::{CStr, c_char};

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::tensors::TorchResult;

/// The kernel pads the log-sum-exps of a sequence to a multiple of this.
const LOG_SUM_EXP_ALIGNMENT: usize = 32;

/// Rows of queries, and for each sequence of them the rows of the keys that they see.
#[derive(Debug)]
pub(super) struct Sequences {
    count: i64,
    /// Row of each sequence's first query, and the end of the last; i32.
    query_starts: Tensor,
    /// Row of each sequence's first key, i32, and one number more.
    key_starts: Tensor,
    /// Keys of each sequence, i32. Without them the keys follow each other as the queries do.
    key_lengths: Option<Tensor>,
    longest_queries: i64,
    longest_keys: i64,
    /// Whether query `j` of a sequence sees keys `0..=j` only.
    causal: bool,
    /// The row of each query's log-sum-exp in the kernel's padded table.
    padded_rows: Tensor,
}

impl Sequences {
    /// Sequences whose keys follow each other: `lengths` counts the queries and keys of each.
    pub(super) fn packed(
        lengths: &[(usize, usize)],
        causal: bool,
        device: Device,
    ) -> TorchResult<Self> {
        let queries: Vec<usize> = lengths.iter().map(|&(queries, _)| queries).collect();
        let keys: Vec<usize> = lengths.iter().map(|&(_, keys)| keys).collect();
        let key_starts = numbers(starts(&keys), device)?;
        Self::new(&queries, key_starts, None, &keys, causal, device)
    }

    /// Sequences whose keys are anywhere: `keys` has the first row and the length of each.
    pub(super) fn scattered(
        queries: &[usize],
        keys: &[std::ops::Range<usize>],
        device: Device,
    ) -> TorchResult<Self> {
        let lengths: Vec<usize> = keys.iter().map(ExactSizeIterator::len).collect();
        let key_starts = keys.iter().map(|keys| keys.start).chain([0]);
        let key_starts = numbers(key_starts, device)?;
        let key_lengths = numbers(lengths.iter().copied(), device)?;
        Self::new(queries, key_starts, Some(key_lengths), &lengths, false, device)
    }

    fn new(
        queries: &[usize],
        key_starts: Tensor,
        key_lengths: Option<Tensor>,
        keys: &[usize],
        causal: bool,
        device: Device,
    ) -> TorchResult<Self> {
        let longest = |lengths: &[usize]| lengths.iter().copied().max().unwrap_or_default();
        let padded = longest(queries).next_multiple_of(LOG_SUM_EXP_ALIGNMENT);
        let padded_rows: Vec<i64> = (queries.iter().enumerate())
            .flat_map(|(sequence, &length)| (0..length).map(move |row| sequence * padded + row))
            .map(|row| row as i64)
            .collect();
        Ok(Self {
            count: queries.len() as i64,
            query_starts: numbers(starts(queries), device)?,
            key_starts,
            key_lengths,
            longest_queries: longest(queries) as i64,
            longest_keys: longest(keys) as i64,
            causal,
            padded_rows: Tensor::f_from_slice(&padded_rows)?.f_to_device(device)?,
        })
    }

    /// Output `[queries, heads, size]`, in the operands' dtype, and log-sum-exp
    /// `[queries, heads]`, f32. All operands are `[rows, heads, size]`.
    pub(super) fn forward(
        &self,
        [queries, keys, values]: [&Tensor; 3],
        scale: f64,
    ) -> TorchResult<(Tensor, Tensor)> {
        let (output, padded) = self.forward_padded([queries, keys, values], scale)?;
        let heads = padded.size()[1];
        let rows = padded.f_permute([0, 2, 1])?.f_reshape([-1, heads])?;
        Ok((output, rows.f_index_select(0, &self.padded_rows)?))
    }

    /// The output, and the log-sum-exps as the kernel lays them out:
    /// `[sequences, heads, queries of the longest and some more]`.
    pub(super) fn forward_padded(
        &self,
        operands: [&Tensor; 3],
        scale: f64,
    ) -> TorchResult<(Tensor, Tensor)> {
        let [queries, keys, values] = operands.map(|x| x.f_unsqueeze(0));
        let (output, padded) = self.run([&queries?, &keys?, &values?], scale)?;
        Ok((output.f_squeeze_dim(0)?, padded))
    }

    fn run(&self, operands: [&Tensor; 3], scale: f64) -> TorchResult<(Tensor, Tensor)> {
        let [queries, keys, values] = operands.map(Tensor::as_ptr);
        let mut results = [std::ptr::null_mut(); 2];
        // SAFETY: the tensors live as long as the call. The function stores two new tensors, which are
        // taken over below, or returns a message and stores nothing.
        let message = unsafe {
            sppo_varlen_attention(
                results.as_mut_ptr(),
                queries,
                keys,
                values,
                self.query_starts.as_ptr(),
                self.key_starts.as_ptr(),
                self.key_lengths.as_ref().map_or(std::ptr::null(), Tensor::as_ptr),
                self.longest_queries,
                self.longest_keys,
                self.causal,
                scale,
            )
        };
        if !message.is_null() {
            // SAFETY: a message is a C string from `malloc`, ours to free.
            let text = unsafe {
                let text = CStr::from_ptr(message).to_string_lossy().into_owned();
                libc::free(message.cast());
                text
            };
            return Err(TchError::Torch(text).into());
        }
        // SAFETY: both are new tensors that nothing else refers to.
        Ok(unsafe { (Tensor::from_ptr(results[0]), Tensor::from_ptr(results[1])) })
    }

    /// Gradients of queries, keys and values, from the whole output and log-sum-exp of the queries, of
    /// which these sequences may be a part.
    pub(super) fn backward(
        &self,
        [queries, keys, values]: [&Tensor; 3],
        [output, log_sum_exp]: [&Tensor; 2],
        gradient: &Tensor,
        scale: f64,
    ) -> TorchResult<[Tensor; 3]> {
        let batch = |x: &Tensor| x.f_unsqueeze(0);
        let device = queries.device();
        let unused = Tensor::f_zeros([], (Kind::Int64, device))?;
        let (of_queries, of_keys, of_values, _) = Tensor::f_internal_efficient_attention_backward(
            &batch(gradient)?,
            &batch(queries)?,
            &batch(keys)?,
            &batch(values)?,
            None,
            &batch(output)?,
            Some(&self.query_starts),
            Some(&self.key_starts),
            self.longest_queries,
            self.longest_keys,
            &self.pad(log_sum_exp)?,
            0.0,
            &unused,
            &unused,
            i64::from(self.causal),
            false,
            scale,
            None,
            None,
            false,
        )?;
        Ok([of_queries.f_squeeze_dim(0)?, of_keys.f_squeeze_dim(0)?, of_values.f_squeeze_dim(0)?])
    }

    /// Log-sum-exps in the kernel's padded table, `[sequences, heads, queries]`. Padding has no weight.
    fn pad(&self, log_sum_exp: &Tensor) -> TorchResult<Tensor> {
        let heads = log_sum_exp.size()[1];
        let padded = (self.longest_queries as usize).next_multiple_of(LOG_SUM_EXP_ALIGNMENT) as i64;
        let options = (Kind::Float, log_sum_exp.device());
        let mut rows = Tensor::f_full([self.count * padded, heads], f64::INFINITY, options)?;
        let _ = rows.f_index_copy_(0, &self.padded_rows, log_sum_exp)?;
        Ok(rows.f_view([self.count, padded, heads])?.f_permute([0, 2, 1])?.f_contiguous()?)
    }
}

/// Starts of consecutive parts of these lengths, and the end of the last one.
fn starts(lengths: &[usize]) -> impl Iterator<Item = usize> + '_ {
    std::iter::once(0).chain(lengths.iter().scan(0, |end, length| {
        *end += length;
        Some(*end)
    }))
}

fn numbers(values: impl Iterator<Item = usize>, device: Device) -> TorchResult<Tensor> {
    let values: Vec<i32> = values.map(|value| i32::try_from(value).unwrap_or(i32::MAX)).collect();
    Ok(Tensor::f_from_slice(&values)?.f_to_device(device)?)
}

unsafe extern "C" {
    fn sppo_varlen_attention(
        results: *mut *mut C_tensor,
        queries: *const C_tensor,
        keys: *const C_tensor,
        values: *const C_tensor,
        query_starts: *const C_tensor,
        key_starts: *const C_tensor,
        key_lengths: *const C_tensor,
        longest_queries: i64,
        longest_keys: i64,
        causal: bool,
        scale: f64,
    ) -> *mut c_char;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other() {
        assert_eq!(starts(&[3, 1, 5]).collect::<Vec<_>>(), [0, 3, 4, 9]);
    }

    /// The kernel is CUDA's alone; that its refusal arrives shows that the call itself is right.
    #[test]
    fn what_the_kernel_refuses_is_an_error() {
        let x = Tensor::f_zeros([5, 2, 8], (Kind::Float, Device::Cpu)).unwrap();
        let sequences = Sequences::packed(&[(2, 2), (3, 3)], true, Device::Cpu).unwrap();
        let error = sequences.forward([&x, &x, &x], 1.0).unwrap_err();
        let error = sppo_model::ModelError::from(error).to_string();
        assert!(error.contains("_efficient_attention_forward"), "{error}");
        assert!(!error.contains("frame #"), "{error}");
    }

    #[test]
    fn padding_of_log_sum_exps_has_no_weight() {
        let sequences = Sequences::packed(&[(2, 2), (33, 1)], false, Device::Cpu).unwrap();
        let rows = Tensor::f_arange(35, (Kind::Float, Device::Cpu)).unwrap().unsqueeze(1);
        let padded = sequences.pad(&rows).unwrap();
        assert_eq!(padded.size(), [2, 1, 64]);
        let value = |sequence, row| padded.double_value(&[sequence, 0, row]);
        assert_eq!(
            [value(0, 1), value(0, 2), value(1, 0), value(1, 32)],
            [1., f64::INFINITY, 2., 34.]
        );
    }
}
