//! Attention over a packed batch on CUDA devices, in as few kernels as there are.

use sppo_model::ops::{AttentionSegment, AttentionShape};
use tch::{Device, Kind, Tensor};

use crate::attention::{PartOutput, joined, merge};
use crate::ragged_attention::Sequences;
use crate::tensors::{TorchResult, index};

/// How a batch's segments attend; the same for all layers with the same window.
pub(crate) struct PackedPlan {
    segments: Vec<AttentionSegment>,
    window: Option<usize>,
    parts: Option<PackedParts>,
}

/// What the kernels attend over.
pub(crate) struct PackedParts {
    /// Every segment over its own rows.
    own: Sequences,
    prompts: Option<PromptPart>,
}

/// The segments that see a prompt which another segment holds.
struct PromptPart {
    /// Rows of their queries, and of the prompts' keys; one sequence per prompt.
    query_rows: Tensor,
    key_rows: Tensor,
    sequences: Sequences,
}

/// Operands `[rows, heads, size]`, keys and values repeated for the heads that share them.
struct Operands {
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl PackedPlan {
    pub(crate) fn new(
        segments: &[AttentionSegment],
        window: Option<usize>,
        device: Device,
    ) -> TorchResult<Self> {
        let parts = PackedParts::new(segments, window, device)?;
        Ok(Self { segments: segments.to_vec(), window, parts })
    }

    pub(crate) fn is_for(&self, segments: &[AttentionSegment], window: Option<usize>) -> bool {
        self.window == window && self.segments == segments
    }

    /// `None` where the segments do not fill the batch row after row, or a query may not see all that
    /// is before it.
    pub(crate) fn parts(&self) -> Option<&PackedParts> {
        self.parts.as_ref()
    }
}

impl PackedParts {
    fn new(
        segments: &[AttentionSegment],
        window: Option<usize>,
        device: Device,
    ) -> TorchResult<Option<Self>> {
        let joined = joined(segments);
        let mut end = 0;
        for segment in &joined {
            let seen = segment.prefix.len() + segment.own.len();
            let follows = segment.queries.start == end && segment.queries == segment.own;
            if !follows || segment.own.is_empty() || window.is_some_and(|window| seen > window) {
                return Ok(None);
            }
            end = segment.queries.end;
        }
        let lengths: Vec<_> =
            joined.iter().map(|segment| (segment.own.len(), segment.own.len())).collect();
        Ok(Some(Self {
            own: Sequences::packed(&lengths, true, device)?,
            prompts: PromptPart::new(&joined, device)?,
        }))
    }

    /// Output `[rows, query heads * size]` and log-sum-exp `[rows, query heads]`.
    pub(crate) fn forward(
        &self,
        operands: [&Tensor; 3],
        shape: &AttentionShape,
    ) -> TorchResult<(Tensor, Tensor)> {
        let scale = f64::from(shape.scale);
        let operands = Operands::new(operands, shape)?;
        let (mut output, mut log_sum_exp) = self.own.forward(operands.all(), scale)?;
        if let Some(prompts) = &self.prompts {
            let rows = &prompts.query_rows;
            let own = PartOutput {
                output: output.f_index_select(0, rows)?,
                log_sum_exp: log_sum_exp.f_index_select(0, rows)?,
            };
            let (of_prompt, of_prompt_log_sum_exp) =
                prompts.sequences.forward(operands.select(prompts)?.all(), scale)?;
            let of_prompt = PartOutput { output: of_prompt, log_sum_exp: of_prompt_log_sum_exp };
            let whole = merge(&own, &of_prompt)?;
            let whole_output = whole.output.f_to_kind(output.f_kind()?)?;
            let _ = output.f_index_copy_(0, rows, &whole_output)?;
            let _ = log_sum_exp.f_index_copy_(0, rows, &whole.log_sum_exp)?;
        }
        Ok((output.f_reshape(flat_size(&output))?, log_sum_exp))
    }

    /// Gradients of queries, keys and values, each `[rows, heads * size]`.
    pub(crate) fn backward(
        &self,
        operands: [&Tensor; 3],
        [output, log_sum_exp]: [&Tensor; 2],
        gradient: &Tensor,
        shape: &AttentionShape,
    ) -> TorchResult<[Tensor; 3]> {
        let scale = f64::from(shape.scale);
        let operands = Operands::new(operands, shape)?;
        let by_heads = |x: &Tensor| x.f_reshape(operands.queries.size());
        let (output, gradient) = (by_heads(output)?, by_heads(gradient)?);
        let [mut of_queries, of_keys, of_values] =
            self.own.backward(operands.all(), [&output, log_sum_exp], &gradient, scale)?;
        // Several segments add to the keys of a prompt.
        let mut of_keys = sum_of_shared(&of_keys, shape)?;
        let mut of_values = sum_of_shared(&of_values, shape)?;
        if let Some(prompts) = &self.prompts {
            let rows = &prompts.query_rows;
            let whole = [&output.f_index_select(0, rows)?, &log_sum_exp.f_index_select(0, rows)?];
            let gradient = gradient.f_index_select(0, rows)?;
            let [of_prompt_queries, of_prompt_keys, of_prompt_values] = prompts
                .sequences
                .backward(operands.select(prompts)?.all(), whole, &gradient, scale)?;
            let _ = of_queries.f_index_add_(0, rows, &of_prompt_queries)?;
            let rows = &prompts.key_rows;
            let _ = of_keys.f_index_add_(0, rows, &sum_of_shared(&of_prompt_keys, shape)?)?;
            let _ = of_values.f_index_add_(0, rows, &sum_of_shared(&of_prompt_values, shape)?)?;
        }
        let of_queries = of_queries.f_reshape(flat_size(&of_queries))?;
        Ok([of_queries, of_keys, of_values])
    }
}

impl PromptPart {
    fn new(segments: &[AttentionSegment], device: Device) -> TorchResult<Option<Self>> {
        let mut lengths: Vec<(usize, usize)> = Vec::new();
        let (mut query_rows, mut key_rows): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        let mut last = 0..0;
        for segment in segments.iter().filter(|segment| !segment.prefix.is_empty()) {
            query_rows.extend(segment.queries.clone().map(|row| row as u32));
            match lengths.last_mut() {
                Some((queries, _)) if segment.prefix == last => *queries += segment.queries.len(),
                _ => {
                    lengths.push((segment.queries.len(), segment.prefix.len()));
                    key_rows.extend(segment.prefix.clone().map(|row| row as u32));
                    last = segment.prefix.clone();
                }
            }
        }
        if lengths.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            query_rows: index(&query_rows, device)?,
            key_rows: index(&key_rows, device)?,
            sequences: Sequences::packed(&lengths, false, device)?,
        }))
    }
}

impl Operands {
    fn new([queries, keys, values]: [&Tensor; 3], shape: &AttentionShape) -> TorchResult<Self> {
        let (heads, size) = (shape.query_heads as i64, shape.head_size as i64);
        let shared = shape.key_value_heads as i64;
        let repeat = |x: &Tensor| -> TorchResult<Tensor> {
            let groups = heads / shared.max(1);
            let x = x.f_view([-1, shared, 1, size])?;
            let x = x.f_expand([x.size()[0], shared, groups, size], false)?;
            Ok(x.f_reshape([-1, heads, size])?)
        };
        Ok(Self {
            queries: queries.f_view([-1, heads, size])?,
            keys: repeat(keys)?,
            values: repeat(values)?,
        })
    }

    fn select(&self, part: &PromptPart) -> TorchResult<Self> {
        Ok(Self {
            queries: self.queries.f_index_select(0, &part.query_rows)?,
            keys: self.keys.f_index_select(0, &part.key_rows)?,
            values: self.values.f_index_select(0, &part.key_rows)?,
        })
    }

    fn all(&self) -> [&Tensor; 3] {
        [&self.queries, &self.keys, &self.values]
    }
}

/// `[rows, heads * size]` of `[rows, heads, size]`.
fn flat_size(x: &Tensor) -> [i64; 2] {
    let size = x.size();
    [size[0], size[1..].iter().product()]
}

/// Gradients of repeated keys or values `[rows, query heads, size]`, added up in f32 over the heads that
/// share them: `[rows, key-value heads * size]`.
fn sum_of_shared(gradient: &Tensor, shape: &AttentionShape) -> TorchResult<Tensor> {
    let (shared, size) = (shape.key_value_heads as i64, shape.head_size as i64);
    let groups = shape.query_heads as i64 / shared.max(1);
    let gradient = gradient.f_view([-1, shared, groups, size])?;
    let sum = gradient.f_sum_dim_intlist([2].as_slice(), false, Kind::Float)?;
    Ok(sum.f_view([-1, shared * size])?)
}
