//! Attention of one query per response over the key-value cache on CUDA devices, in two kernels.
//!
//! The query heads that share keys stand in the kernel as queries of one sequence: so keys are read once
//! for all of them, and where they lie in the cache.

use std::ops::Range;

use sppo_model::ops::{AttentionShape, CachedRow};
use tch::{Device, Tensor};

use crate::attention::{PartOutput, merge};
use crate::cached_attention::{prompts, visible};
use crate::ragged_attention::Sequences;
use crate::tensors::TorchResult;

/// What a step's rows see; the same for all layers with the same window.
pub(crate) struct RaggedDecodingPlan {
    rows: Vec<CachedRow>,
    window: Option<usize>,
    groups: usize,
    own: Sequences,
    prompts: Option<Sequences>,
}

impl RaggedDecodingPlan {
    pub(crate) fn is_for(&self, rows: &[CachedRow], shape: &AttentionShape) -> bool {
        self.window == shape.window && self.groups == groups(shape) && self.rows == rows
    }

    /// `None` where some rows see a prompt and others do not.
    pub(crate) fn new(
        rows: &[CachedRow],
        shape: &AttentionShape,
        device: Device,
    ) -> TorchResult<Option<Self>> {
        let groups = groups(shape);
        let seen: Vec<CachedRow> = rows.iter().map(|row| visible(row, shape.window)).collect();
        let runs = prompts(&seen);
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
            rows: rows.to_vec(),
            window: shape.window,
            groups,
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
        let (groups, shared) = (self.groups as i64, shape.key_value_heads as i64);
        let size = shape.head_size as i64;
        let scale = f64::from(shape.scale);
        let by_heads = |x: &Tensor| x.f_view([-1, shared, size]);
        let by_groups = queries.f_view([-1, shared, groups, size])?.f_permute([0, 2, 1, 3])?;
        let operands =
            [&by_groups.f_reshape([-1, shared, size])?, &by_heads(keys)?, &by_heads(values)?];
        let (output, log_sum_exp) = self.own.forward(operands, scale)?;
        let own = PartOutput { output, log_sum_exp };
        let whole = match &self.prompts {
            Some(prompts) => {
                let (output, log_sum_exp) = prompts.forward(operands, scale)?;
                merge(&own, &PartOutput { output, log_sum_exp })?
            }
            None => own,
        };
        let by_row = whole.output.f_view([-1, groups, shared, size])?.f_permute([0, 2, 1, 3])?;
        Ok(by_row.f_reshape(queries.size())?)
    }
}

fn groups(shape: &AttentionShape) -> usize {
    shape.query_heads / shape.key_value_heads.max(1)
}
