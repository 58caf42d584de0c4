//! The weights of a decoder: their Hugging Face names, their shapes, and loading them.

use std::collections::HashMap;

use sppo_plugin::LoraSettings;

use super::lora::{self, Adapter, AdapterSource};
use super::stored::StoredWeight;
use super::{DecoderConfig, QueryKeyNorm};
use crate::error::{ModelError, Result};
use crate::formats::QuantizedMatrix;
use crate::formats::peft::adapter_names;
use crate::ops::{Ops, ParameterId, ParameterStore};

/// Name of the table of token embeddings.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";

/// A linear map's parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Projection {
    pub(crate) weight: ParameterId,
    pub(crate) bias: Option<ParameterId>,
    pub(crate) adapter: Option<Adapter>,
}

/// The parameters of one layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerWeights {
    pub(crate) before_attention_norm: Option<ParameterId>,
    pub(crate) query: Projection,
    pub(crate) key: Projection,
    pub(crate) value: Projection,
    /// Norms of queries and keys.
    pub(crate) query_key_norms: Option<[ParameterId; 2]>,
    pub(crate) attention_output: Projection,
    pub(crate) after_attention_norm: Option<ParameterId>,
    pub(crate) before_feed_forward_norm: Option<ParameterId>,
    pub(crate) feed_forward: FeedForward,
    pub(crate) after_feed_forward_norm: Option<ParameterId>,
}

/// The feed-forward block of a layer.
#[derive(Clone, Debug)]
pub(crate) enum FeedForward {
    /// One that all tokens go through.
    Dense(GatedBlock),
    /// Several, of which each token goes through some.
    Experts {
        /// `[experts, hidden]`.
        router: ParameterId,
        experts: Vec<GatedBlock>,
    },
}

/// `down(activation(gate(x)) * up(x))`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GatedBlock {
    pub(crate) gate: Projection,
    pub(crate) up: Projection,
    pub(crate) down: Projection,
}

/// The parameters of a decoder.
#[derive(Clone, Debug)]
pub struct DecoderWeights {
    pub(crate) embedding: ParameterId,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) final_norm: ParameterId,
    /// The embedding itself when the head is tied.
    pub(crate) head: ParameterId,
}

/// The name and shape of one weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorLayout {
    /// The Hugging Face name, for instance `model.embed_tokens.weight`.
    pub name: String,
    /// Outermost dimension first; a projection is `[outputs, inputs]`.
    pub shape: Vec<usize>,
}

/// All weights of a model, in the order in which they are loaded and written.
#[must_use]
pub fn tensor_layout(config: &DecoderConfig) -> Vec<TensorLayout> {
    DecoderWeights::names_and_shapes(config)
        .into_iter()
        .map(|(name, shape)| TensorLayout { name, shape })
        .collect()
}

/// Reads a tensor of the checkpoint by name: its shape and its row-major values.
pub type TensorSource<'a> = dyn FnMut(&str) -> Result<(Vec<usize>, Vec<f32>)> + 'a;

/// A weight that is not trained, as it is read.
#[derive(Clone, Debug)]
pub enum FrozenWeight {
    /// Shape and row-major values.
    Dense(Vec<usize>, Vec<f32>),
    /// A matrix that stays in its blocks.
    Quantized(QuantizedMatrix),
}

/// Reads a weight that is not trained by name.
pub type FrozenWeightSource<'a> = dyn FnMut(&str) -> Result<FrozenWeight> + 'a;

/// Adds the weight of a name and shape to a store.
type LoadWeight<'a, O> =
    dyn FnMut(&mut ParameterStore<O>, String, &[usize]) -> Result<ParameterId> + 'a;

/// Receives a parameter's name and shape, and returns its id in the store.
type Request<'a> = dyn FnMut(String, &[usize]) -> Result<ParameterId> + 'a;

impl DecoderWeights {
    /// Loads every weight that the configuration calls for into a store, to be trained or not.
    ///
    /// # Errors
    /// When the configuration contradicts itself, or a weight cannot be read or has another shape.
    pub fn load<O: Ops>(
        ops: &O,
        config: &DecoderConfig,
        tensor: &mut TensorSource<'_>,
        trainable: bool,
    ) -> Result<(Self, ParameterStore<O>)> {
        Self::load_each(config, &mut |store, name, shape| {
            let (found, values) = tensor(&name)?;
            push_dense(ops, store, name, shape, (found, values), trainable)
        })
    }

    /// As [`Self::load`], weights that are not trained, of which some may be in blocks.
    ///
    /// # Errors
    /// As there, or when the op set keeps no blocks.
    pub fn load_frozen<O: Ops>(
        ops: &O,
        config: &DecoderConfig,
        weight: &mut FrozenWeightSource<'_>,
    ) -> Result<(Self, ParameterStore<O>)> {
        Self::load_each(config, &mut |store, name, shape| match weight(&name)? {
            FrozenWeight::Dense(found, values) => {
                push_dense(ops, store, name, shape, (found, values), false)
            }
            FrozenWeight::Quantized(matrix) if matrix.dimensions() == *shape => {
                store.push_quantized(ops, name, matrix)
            }
            FrozenWeight::Quantized(matrix) => Err(other_shape(&name, &matrix.dimensions(), shape)),
        })
    }

    fn load_each<O: Ops>(
        config: &DecoderConfig,
        load: &mut LoadWeight<'_, O>,
    ) -> Result<(Self, ParameterStore<O>)> {
        if let Some(problem) = config.problem() {
            return Err(ModelError::Unsupported(format!("the model's configuration: {problem}")));
        }
        let mut store = ParameterStore::default();
        let weights = Self::request(config, &mut |name, shape| load(&mut store, name, shape))?;
        Ok((weights, store))
    }

    /// Adds adapters to the modules that the settings name, with values from `source` or fresh. Projections
    /// that are stored as one module share its `A`, and each has its rows of `B`.
    ///
    /// # Errors
    /// When the settings are invalid, or given values do not have the adapter's shape.
    pub(crate) fn adapt<O: Ops>(
        &mut self,
        ops: &O,
        config: &DecoderConfig,
        store: &mut ParameterStore<O>,
        settings: &LoraSettings,
        source: &mut AdapterSource<'_>,
    ) -> Result<()> {
        let modules = lora::adapted_modules(config, settings)?;
        let name =
            |projection: &Projection| store.entries()[projection.weight.index()].name.clone();
        let projections = self.layers.iter_mut().flat_map(LayerWeights::projections_mut);
        let mut projections: HashMap<String, (u64, &mut Projection)> = (0..)
            .zip(projections)
            .map(|(number, projection)| (name(projection), (number, projection)))
            .collect();
        for stored in modules {
            let Some((module, shape @ [output, input])) = stored.module() else { continue };
            let first =
                stored.weights.first().and_then(|first| projections.get(&first.layout.name));
            let Some(&(number, _)) = first else { continue };
            let fresh = || lora::fresh(settings, number, shape);
            let values = source(module, shape)?.unwrap_or_else(fresh);
            let rank = settings.rank;
            if values.a.len() != rank * input || values.b.len() != output * rank {
                return Err(ModelError::Input(format!(
                    "the adapter of `{module}` does not have the rank {rank}"
                )));
            }
            let [a, _] = adapter_names(module);
            let a = store.push(ops, a, vec![rank, input], values.a, true)?;
            for StoredWeight { layout, rows } in &stored.weights {
                let Some((_, projection)) = projections.get_mut(&layout.name) else { continue };
                let [_, b] = adapter_names(layout.name.trim_end_matches(".weight"));
                let values = values.b[rows.start * rank..rows.end * rank].to_vec();
                let b = store.push(ops, b, vec![rows.len(), rank], values, true)?;
                let (scale, dropout) = (settings.scale() as f32, settings.dropout as f32);
                projection.adapter = Some(Adapter { a, b, scale, dropout, number });
            }
        }
        Ok(())
    }

    /// Name and shape of every weight that the configuration calls for, in the order of loading.
    #[must_use]
    pub fn names_and_shapes(config: &DecoderConfig) -> Vec<(String, Vec<usize>)> {
        let mut weights = Vec::new();
        let listed = Self::request(config, &mut |name, shape| {
            weights.push((name, shape.to_vec()));
            Ok(ParameterId::nth(weights.len() - 1))
        });
        debug_assert!(listed.is_ok(), "listing cannot fail");
        weights
    }

    /// The layout: asks for every parameter in the order of the forward pass.
    fn request(config: &DecoderConfig, request: &mut Request<'_>) -> Result<Self> {
        let table = [config.vocabulary_size, config.hidden_size];
        let embedding = request(EMBEDDING.into(), &table)?;
        let layers = (0..config.layer_count)
            .map(|layer| LayerWeights::request(config, layer, request))
            .collect::<Result<_>>()?;
        let final_norm = request("model.norm.weight".into(), &[config.hidden_size])?;
        let head = match config.tied_head {
            true => embedding,
            false => request("lm_head.weight".into(), &table)?,
        };
        Ok(Self { embedding, layers, final_norm, head })
    }
}

/// Adds a weight that was read as `found` to a store.
fn push_dense<O: Ops>(
    ops: &O,
    store: &mut ParameterStore<O>,
    name: String,
    shape: &[usize],
    (found, values): (Vec<usize>, Vec<f32>),
    trainable: bool,
) -> Result<ParameterId> {
    if found != shape || values.len() != shape.iter().product::<usize>() {
        return Err(other_shape(&name, &found, shape));
    }
    if name == EMBEDDING {
        return store.push_table(ops, name, shape.to_vec(), values, trainable);
    }
    store.push(ops, name, shape.to_vec(), values, trainable)
}

fn other_shape(name: &str, found: &[usize], shape: &[usize]) -> ModelError {
    ModelError::Input(format!(
        "the weight `{name}` has the shape {found:?}, but the model's configuration calls for {shape:?}"
    ))
}

impl LayerWeights {
    /// The projections that may be adapted: those of experts are not.
    fn projections_mut(&mut self) -> Vec<&mut Projection> {
        let mut projections =
            vec![&mut self.query, &mut self.key, &mut self.value, &mut self.attention_output];
        if let FeedForward::Dense(GatedBlock { gate, up, down }) = &mut self.feed_forward {
            projections.extend([gate, up, down]);
        }
        projections
    }

    /// Asks for the parameters of a layer.
    ///
    /// Norms by placement, in Hugging Face's names without `_layernorm` (`-` is none):
    ///
    /// |                  | before attention | after attention  | before feed-forward | after feed-forward |
    /// |------------------|------------------|------------------|---------------------|--------------------|
    /// | before           | `input`          | -                | `post_attention`    | -                  |
    /// | before and after | `input`          | `post_attention` | `pre_feedforward`   | `post_feedforward` |
    /// | after            | -                | `post_attention` | -                   | `post_feedforward` |
    fn request(config: &DecoderConfig, layer: usize, request: &mut Request<'_>) -> Result<Self> {
        let hidden = config.hidden_size;
        let (queries, keys) = (config.query_features(), config.key_features());
        let (bias, norms) = (config.attention_bias, config.norm_placement);
        let mut ask =
            |name: &str, shape: &[usize]| request(format!("model.layers.{layer}.{name}"), shape);
        let before_attention_norm = norm(&mut ask, "input", hidden, norms.is_before())?;
        let query = projection(&mut ask, "self_attn.q_proj", [queries, hidden], bias)?;
        let key = projection(&mut ask, "self_attn.k_proj", [keys, hidden], bias)?;
        let value = projection(&mut ask, "self_attn.v_proj", [keys, hidden], bias)?;
        let query_key_norms = match config.query_key_norm {
            QueryKeyNorm::Absent => None,
            QueryKeyNorm::PerHead => Some([config.head_size; 2]),
            QueryKeyNorm::AcrossHeads => Some([queries, keys]),
        };
        let query_key_norms = match query_key_norms {
            Some([queries, keys]) => Some([
                ask("self_attn.q_norm.weight", &[queries])?,
                ask("self_attn.k_norm.weight", &[keys])?,
            ]),
            None => None,
        };
        let attention_output = projection(&mut ask, "self_attn.o_proj", [hidden, queries], false)?;
        let after_attention_norm = norm(&mut ask, "post_attention", hidden, norms.is_after())?;
        let name = if norms.is_after() { "pre_feedforward" } else { "post_attention" };
        let before_feed_forward_norm = norm(&mut ask, name, hidden, norms.is_before())?;
        let feed_forward = FeedForward::request(config, layer, &mut ask)?;
        let after_feed_forward_norm = norm(&mut ask, "post_feedforward", hidden, norms.is_after())?;
        Ok(Self {
            before_attention_norm,
            query,
            key,
            value,
            query_key_norms,
            attention_output,
            after_attention_norm,
            before_feed_forward_norm,
            feed_forward,
            after_feed_forward_norm,
        })
    }
}

impl FeedForward {
    fn request(config: &DecoderConfig, layer: usize, ask: &mut Ask<'_>) -> Result<Self> {
        let hidden = config.hidden_size;
        let Some(experts) = config.experts_of(layer) else {
            return GatedBlock::request(ask, "mlp", [config.intermediate_size, hidden])
                .map(Self::Dense);
        };
        let count = experts.routing.expert_count;
        let router = ask("mlp.gate.weight", &[count, hidden])?;
        let shape = [experts.intermediate_size, hidden];
        let expert = |number| GatedBlock::request(ask, &format!("mlp.experts.{number}"), shape);
        Ok(Self::Experts { router, experts: (0..count).map(expert).collect::<Result<_>>()? })
    }
}

impl GatedBlock {
    fn request(ask: &mut Ask<'_>, block: &str, [inner, hidden]: [usize; 2]) -> Result<Self> {
        Ok(Self {
            gate: projection(ask, &format!("{block}.gate_proj"), [inner, hidden], false)?,
            up: projection(ask, &format!("{block}.up_proj"), [inner, hidden], false)?,
            down: projection(ask, &format!("{block}.down_proj"), [hidden, inner], false)?,
        })
    }
}

/// Asks for a parameter of the layer by its name and shape.
type Ask<'a> = dyn FnMut(&str, &[usize]) -> Result<ParameterId> + 'a;

fn norm(
    ask: &mut Ask<'_>,
    name: &str,
    features: usize,
    is_there: bool,
) -> Result<Option<ParameterId>> {
    is_there.then(|| ask(&format!("{name}_layernorm.weight"), &[features])).transpose()
}

fn projection(
    ask: &mut Ask<'_>,
    name: &str,
    [output, input]: [usize; 2],
    bias: bool,
) -> Result<Projection> {
    let weight = ask(&format!("{name}.weight"), &[output, input])?;
    let bias = match bias {
        true => Some(ask(&format!("{name}.bias"), &[output])?),
        false => None,
    };
    Ok(Projection { weight, bias, adapter: None })
}
