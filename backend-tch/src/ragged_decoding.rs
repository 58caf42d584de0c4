//! Attention of one query per response over the key-value cache on CUDA devices, in two kernels.
//!
//! The query heads that share keys stand in the kernel as queries of one sequence: so keys are read once
//! for all of them, and where they lie in the cache.

use std::ops::Range;

use sppo_model::ops::{AttentionShape, CachedRow};
use tch::{Device, Tensor};

use crate::cached_attention::{prompts, visible};
use crate::ragged_attention::Sequences;
use crate::tensors::TorchResult;

/// What a step's rows see; the same for all layers with the same window.
pub(crate) struct RaggedDecodingPlan {
    rows: Vec<CachedRow>,
    window: Option<usize>,
    parts: Option<DecodingParts>,
}

/// What the kernels attend over.
pub(crate) struct DecodingParts {
    own: Sequences,
    prompts: Option<Sequences>,
}

impl RaggedDecodingPlan {
    pub(crate) fn new(
        rows: &[CachedRow],
        shape: &AttentionShape,
        device: Device,
    ) -> TorchResult<Self> {
        let seen: Vec<CachedRow> = rows.iter().map(|row| visible(row, shape.window)).collect();
        let parts = DecodingParts::new(&seen, groups(shape), device)?;
        Ok(Self { rows: rows.to_vec(), window: shape.window, parts })
    }

    pub(crate) fn is_for(&self, rows: &[CachedRow], window: Option<usize>) -> bool {
        self.window == window && self.rows == rows
    }

    /// `None` where some rows see a prompt and others do not.
    pub(crate) fn parts(&self) -> Option<&DecodingParts> {
        self.parts.as_ref()
    }
}

impl DecodingParts {
    fn new(seen: &[CachedRow], groups: usize, device: Device) -> TorchResult<Option<Self>> {
        let runs = prompts(seen);
        let in_runs: usize = runs.iter().map(|(rows, _)| rows.len()).sum();
        if seen.is_empty() || (in_runs != 0 && in_runs != seen.len()) {
            return Ok(None);
        }
        let own: Vec<Range<usize>> = seen.iter().map(|row| row.own.clone()).collect();
        let of_prompts = || {
            let (runs, prefixes): (Vec<_>, Vec<_>) =
                runs.iter().map(|(rows, prefix)| (rows.len() * groups, prefix.clone())).unzip();
            Sequences::scattered(&runs, &prefixes, device)
        };
        Ok(Some(Self {
            own: Sequences::scattered(&vec![groups; seen.len()], &own, device)?,
            prompts: (in_runs > 0).then(of_prompts).transpose()?,
        }))
    }

    /// `[rows, query heads * size]`; keys and values are a layer of the cache.
    pub(crate) fn attend(
        &self,
        queries: &Tensor,
        [keys, values]: [&Tensor; 2],
        shape: &AttentionShape,
    ) -> TorchResult<Tensor> {
        let (groups, shared) = (groups(shape) as i64, shape.key_value_heads as i64);
        let size = shape.head_size as i64;
        let scale = f64::from(shape.scale);
        let by_heads = |x: &Tensor| x.f_view([-1, shared, size]);
        let by_groups = queries.f_view([-1, shared, groups, size])?.f_permute([0, 2, 1, 3])?;
        let operands =
            [&by_groups.f_reshape([-1, shared, size])?, &by_heads(keys)?, &by_heads(values)?];
        let (own, padded) = self.own.forward_padded(operands, scale)?;
        let whole = match &self.prompts {
            Some(prompts) => {
                // Both parts as [rows, groups, shared heads].
                let of_own = padded.f_narrow(2, 0, groups)?.f_permute([0, 2, 1])?;
                let (of_prompt, log_sum_exp) = prompts.forward(operands, scale)?;
                let of_both = of_own.f_sub(&log_sum_exp.f_view([-1, groups, shared])?)?;
                // The own part's share of the sum of exponentials.
                let share =
                    of_both.f_sigmoid()?.f_to_kind(own.f_kind()?)?.f_reshape([-1, shared, 1])?;
                of_prompt.f_lerp_tensor(&own, &share)?
            }
            None => own,
        };
        let by_row = whole.f_view([-1, groups, shared, size])?.f_permute([0, 2, 1, 3])?;
        Ok(by_row.f_reshape(queries.size())?)
    }
}

fn groups(shape: &AttentionShape) -> usize {
    shape.query_heads / shape.key_value_heads.max(1)
}
