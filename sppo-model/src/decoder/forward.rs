//! The decoder, top to bottom.

use std::sync::Arc;

use super::packing::PackedBatch;
use super::rotary::Rotary;
use super::weights::{DecoderWeights, FeedForward, GatedBlock, LayerWeights, Projection};
use super::{DecoderConfig, Experts};
use crate::error::Result;
use crate::ops::{
    AttentionSegment, AttentionShape, CachedRow, Graph, Ops, ParameterId, Position,
    RotaryFrequencies, Variable,
};

/// A decoder's shape and where its weights lie in the parameter store.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: Arc<DecoderConfig>,
    weights: Arc<DecoderWeights>,
    /// Of each layer.
    frequencies: Arc<[Option<Arc<RotaryFrequencies>>]>,
    recompute_layers: bool,
}

/// Source of the keys and values of attention.
pub enum AttentionSource<'a, O: Ops> {
    /// In the batch itself.
    Packed {
        /// Rows that see each other.
        segments: Arc<[AttentionSegment]>,
        /// Rows of the keys and values that segments refer to, if not just the batch's own.
        key_value_rows: Option<Arc<[u32]>>,
    },
    /// In the batch itself, and they are written to a cache for later.
    Prefill {
        /// Rows that see each other.
        segments: Arc<[AttentionSegment]>,
        /// The cache to write to.
        cache: &'a mut O::Cache,
        /// The slot of each row.
        slots: &'a [u32],
    },
    /// In the cache, after the rows' own were written to it.
    Decode {
        /// The cache to write to and read from.
        cache: &'a mut O::Cache,
        /// The slot of each row.
        slots: &'a [u32],
        /// Slots that each row sees.
        rows: &'a [CachedRow],
    },
}

type Value<O> = Variable<<O as Ops>::Tensor>;

impl Decoder {
    /// A decoder over weights that were loaded for this configuration.
    #[must_use]
    pub fn new(config: DecoderConfig, weights: DecoderWeights) -> Self {
        let frequencies = layer_frequencies(&config);
        let (config, weights) = (Arc::new(config), Arc::new(weights));
        Self { config, weights, frequencies, recompute_layers: false }
    }

    /// Sets whether training keeps only the input of each layer, and runs layers again for their
    /// gradients (gradient checkpointing).
    pub fn recompute_layers(&mut self, recompute: bool) {
        self.recompute_layers = recompute;
    }

    /// The embedding table, where it is not the head as well, so that it enters no product.
    pub(crate) fn untied_embedding(&self) -> Option<ParameterId> {
        let DecoderWeights { embedding, head, .. } = *self.weights;
        (embedding != head).then_some(embedding)
    }

    /// The shape and settings.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Log-probability of each target of a packed batch, in order.
    ///
    /// # Errors
    /// When the tensor library fails; so for every function below.
    pub fn token_log_probs<O: Ops>(
        &self,
        graph: &mut Graph<'_, O>,
        batch: &PackedBatch,
    ) -> Result<Vec<f32>> {
        if batch.targets.is_empty() {
            return Ok(Vec::new());
        }
        let hidden = self.predicting_states(graph, batch)?;
        let cap = self.config.logit_soft_cap.map(|cap| cap as f32);
        graph.token_log_probs(hidden, self.weights.head, &batch.targets, cap)
    }

    /// The hidden states that the head of a packed batch looks at, after the final norm:
    /// `[predicting rows, features]`.
    pub fn predicting_states<O: Ops>(
        &self,
        graph: &mut Graph<'_, O>,
        batch: &PackedBatch,
    ) -> Result<Value<O>> {
        let mut source = AttentionSource::Packed {
            segments: batch.segments.clone(),
            key_value_rows: batch.key_value_rows.clone(),
        };
        let hidden = self.hidden_states(graph, &batch.tokens, &batch.positions, &mut source)?;
        let hidden = graph.select_rows(&hidden, &batch.predicting_rows)?;
        self.norm(graph, &hidden, Some(self.weights.final_norm))
    }

    /// Logits after the given rows, `[rows, vocabulary]`; after all rows if none are given.
    pub fn logits<O: Ops>(
        &self,
        graph: &mut Graph<'_, O>,
        tokens: &Arc<[u32]>,
        positions: &Arc<[Position]>,
        source: &mut AttentionSource<'_, O>,
        rows: Option<&Arc<[u32]>>,
    ) -> Result<O::Tensor> {
        let mut hidden = self.hidden_states(graph, tokens, positions, source)?;
        if let Some(rows) = rows {
            hidden = graph.select_rows(&hidden, rows)?;
        }
        let hidden = self.norm(graph, &hidden, Some(self.weights.final_norm))?;
        let cap = self.config.logit_soft_cap.map(|cap| cap as f32);
        graph.logits(&hidden, self.weights.head, cap)
    }

    /// The residual stream after the last layer, before the final norm.
    fn hidden_states<O: Ops>(
        &self,
        graph: &mut Graph<'_, O>,
        tokens: &Arc<[u32]>,
        positions: &Arc<[Position]>,
        source: &mut AttentionSource<'_, O>,
    ) -> Result<Value<O>> {
        let mut residual = graph.embedding(self.weights.embedding, tokens)?;
        if let Some(factor) = self.config.embedding_scale {
            residual = graph.scale(&residual, factor as f32)?;
        }
        for index in 0..self.weights.layers.len() {
            residual = match source {
                AttentionSource::Packed { segments, key_value_rows } if self.recompute_layers => {
                    let (decoder, positions) = (self.clone(), positions.clone());
                    let (segments, key_value_rows) = (segments.clone(), key_value_rows.clone());
                    graph.recomputed(&residual, move |graph, residual| {
                        let mut source = AttentionSource::Packed {
                            segments: segments.clone(),
                            key_value_rows: key_value_rows.clone(),
                        };
                        decoder.layer(graph, index, residual, &positions, &mut source)
                    })?
                }
                _ => self.layer(graph, index, &residual, positions, source)?,
            };
        }
        Ok(residual)
    }

    /// One layer; a norm that its placement leaves out is the identity.
    ///
    /// ```text
    /// x = residual + after(attention(before(residual)))
    /// output = x + after(down(activation(gate(before(x))) * up(before(x))))
    /// ```
    fn layer<O: Ops>(
        &self,
        graph: &mut Graph<'_, O>,
        index: usize,
        residual: &Value<O>,
        positions: &Arc<[Position]>,
        source: &mut AttentionSource<'_, O>,
    ) -> Result<Value<O>> {
        let layer = &self.weights.layers[index];
        let attended = self.attention_block(graph, index, layer, residual, positions, source)?;
        let residual = graph.add(residual, &attended)?;
        drop(attended);
        let transformed = self.feed_forward_block(graph, index, layer, &residual)?;
        graph.add(&residual, &transformed)
    }

    fn attention_block<O: Ops>(
        &self,
        graph: &mut Graph<'_, O>,
        index: usize,
        layer: &LayerWeights,
        residual: &Value<O>,
        positions: &Arc<[Position]>,
        source: &mut AttentionSource<'_, O>,
    ) -> Result<Value<O>> {
        let x = self.norm(graph, residual, layer.before_attention_norm)?;
        let [mut queries, mut keys, values] =
            project_all(graph, &x, [layer.query, layer.key, layer.value])?;
        drop(x);
        if let Some([query_norm, key_norm]) = layer.query_key_norms {
            queries = self.norm(graph, &queries, Some(query_norm))?;
            keys = self.norm(graph, &keys, Some(key_norm))?;
        }
        if let Some(Some(frequencies)) = self.frequencies.get(index) {
            queries = graph.rotary(&queries, positions, frequencies)?;
            keys = graph.rotary(&keys, positions, frequencies)?;
        }
        let attended = self.attend(graph, index, [&queries, &keys, &values], source)?;
        let output = project(graph, &attended, layer.attention_output)?;
        self.norm(graph, &output, layer.after_attention_norm)
    }

    fn attend<O: Ops>(
        &self,
        graph: &mut Graph<'_, O>,
        layer: usize,
        operands: [&Value<O>; 3],
        source: &mut AttentionSource<'_, O>,
    ) -> Result<Value<O>> {
        let shape = self.attention_shape(layer);
        let [queries, keys, values] = operands;
        match source {
            AttentionSource::Packed { segments, key_value_rows: None } => {
                graph.attention(operands, &shape, segments)
            }
            AttentionSource::Packed { segments, key_value_rows: Some(rows) } => {
                let (keys, values) =
                    (graph.select_rows(keys, rows)?, graph.select_rows(values, rows)?);
                graph.attention([queries, &keys, &values], &shape, segments)
            }
            AttentionSource::Prefill { segments, cache, slots } => {
                graph.ops().cache_write(cache, layer, keys.value(), values.value(), slots)?;
                graph.attention(operands, &shape, segments)
            }
            AttentionSource::Decode { cache, slots, rows } => {
                graph.ops().cache_write(cache, layer, keys.value(), values.value(), slots)?;
                graph.cached_attention(queries, cache, layer, &shape, rows)
            }
        }
    }

    fn attention_shape(&self, layer: usize) -> AttentionShape {
        AttentionShape {
            query_heads: self.config.attention_heads,
            key_value_heads: self.config.key_value_heads,
            head_size: self.config.head_size,
            scale: self.config.attention_scale as f32,
            soft_cap: self.config.attention_soft_cap.map(|cap| cap as f32),
            window: self.config.attention_windows.get(layer).copied().flatten(),
        }
    }

    fn feed_forward_block<O: Ops>(
        &self,
        graph: &mut Graph<'_, O>,
        index: usize,
        layer: &LayerWeights,
        residual: &Value<O>,
    ) -> Result<Value<O>> {
        let x = self.norm(graph, residual, layer.before_feed_forward_norm)?;
        let output = match (&layer.feed_forward, self.config.experts_of(index)) {
            (FeedForward::Experts { router, experts }, Some(Experts { routing, .. })) => {
                let logits = graph.linear(&x, *router, None)?;
                graph.mixture(&x, &logits, *routing, |graph, expert, x| {
                    self.gated_block(graph, &experts[expert], x.clone())
                })?
            }
            (FeedForward::Dense(block), _) => self.gated_block(graph, block, x)?,
            // the layer's weights were requested by the same configuration
            (FeedForward::Experts { .. }, None) => x,
        };
        self.norm(graph, &output, layer.after_feed_forward_norm)
    }

    fn gated_block<O: Ops>(
        &self,
        graph: &mut Graph<'_, O>,
        block: &GatedBlock,
        x: Value<O>,
    ) -> Result<Value<O>> {
        let [gate, up] = project_all(graph, &x, [block.gate, block.up])?;
        drop(x);
        let activated = graph.gated_activation(&gate, &up, self.config.activation)?;
        drop((gate, up));
        project(graph, &activated, block.down)
    }

    /// The normalised `x`, or `x` itself where the layer has no norm there.
    fn norm<O: Ops>(
        &self,
        graph: &mut Graph<'_, O>,
        x: &Value<O>,
        weight: Option<ParameterId>,
    ) -> Result<Value<O>> {
        let Some(weight) = weight else { return Ok(x.clone()) };
        let offset = if self.config.norm_weight_offset { 1.0 } else { 0.0 };
        graph.rms_norm(x, weight, self.config.norm_epsilon as f32, offset)
    }
}

/// The rotary frequencies of each layer; equal ones are the same.
fn layer_frequencies(config: &DecoderConfig) -> Arc<[Option<Arc<RotaryFrequencies>>]> {
    let mut made: Vec<(&Rotary, Arc<RotaryFrequencies>)> = Vec::new();
    for rotary in config.rotary.iter().flatten() {
        if made.iter().all(|(known, _)| *known != rotary) {
            made.push((rotary, Arc::new(rotary.frequencies(config.head_size))));
        }
    }
    let find = |rotary: &Rotary| {
        made.iter().find(|(known, _)| *known == rotary).map(|(_, found)| Arc::clone(found))
    };
    config.rotary.iter().map(|rotary| rotary.as_ref().and_then(find)).collect()
}

fn project<O: Ops>(
    graph: &mut Graph<'_, O>,
    x: &Value<O>,
    projection: Projection,
) -> Result<Value<O>> {
    let projected = graph.linear(x, projection.weight, projection.bias)?;
    adapt(graph, x, projection, projected)
}

/// `x` by each projection.
fn project_all<O: Ops, const N: usize>(
    graph: &mut Graph<'_, O>,
    x: &Value<O>,
    projections: [Projection; N],
) -> Result<[Value<O>; N]> {
    let weights = projections.map(|projection| (projection.weight, projection.bias));
    let mut all = graph.linears(x, weights)?;
    for (projected, projection) in all.iter_mut().zip(projections) {
        *projected = adapt(graph, x, projection, projected.clone())?;
    }
    Ok(all)
}

/// `projected`, with the change that the projection's adapter makes, if any.
fn adapt<O: Ops>(
    graph: &mut Graph<'_, O>,
    x: &Value<O>,
    projection: Projection,
    projected: Value<O>,
) -> Result<Value<O>> {
    let Some(adapter) = projection.adapter.filter(|_| graph.uses_adapters()) else {
        return Ok(projected);
    };
    let kept = graph.dropout(x, adapter.dropout, adapter.number)?;
    let low_rank = graph.linear(&kept, adapter.a, None)?;
    let low_rank = graph.scale(&low_rank, adapter.scale)?;
    let change = graph.linear(&low_rank, adapter.b, None)?;
    graph.add(&projected, &change)
}
