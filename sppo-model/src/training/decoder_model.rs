//! A decoder with its weights on an op set: sampled from, scored and trained by tokens alone.

use std::ops::Range;
use std::path::Path;

use sppo_plugin::{
    GeneratedResponse, GenerationRequest, LoraSettings, Optimizer, Progress, SequenceBatch,
    StepReport, StepSettings,
};

use super::optimizer::Training;
use super::state_file::{StateLayout, StateSource, StateWriter, StoredState};
use crate::decoder::{
    AdapterSource, Decoder, DecoderConfig, DecoderWeights, FrozenWeight, FrozenWeightSource,
    InputLimits, PackedBatch, TensorSource,
};
use crate::error::{ModelError, Result};
use crate::generation::{self, GenerationLimits};
use crate::ops::random::mix;
use crate::ops::{AdapterUse, Graph, Ops, ParameterId, ParameterStore, Tape};

/// A decoder with its weights, without any text.
pub struct DecoderModel<O: Ops> {
    ops: O,
    decoder: Decoder,
    parameters: ParameterStore<O>,
    limits: GenerationLimits,
    pending: Option<PendingBackward<O>>,
    training: Option<Training>,
    lora: Option<LoraSettings>,
    /// Number of the next forward pass of this step, among those of all replicas.
    pass: u64,
    passes: PassNumbers,
}

/// Numbers of the forward passes of a step: those of replica `first` of `stride`.
#[derive(Clone, Copy)]
struct PassNumbers {
    first: u64,
    stride: u64,
}

/// A forward pass that waits for its coefficients.
struct PendingBackward<O: Ops> {
    tape: Option<Tape<O>>,
    responses: Vec<Range<usize>>,
}

impl<O: Ops> DecoderModel<O> {
    /// Loads the weights that the configuration calls for from `tensor`.
    ///
    /// # Errors
    /// When the configuration contradicts itself, a weight is missing or has another shape, or memory
    /// runs out.
    pub fn load(ops: O, config: &DecoderConfig, tensor: &mut TensorSource<'_>) -> Result<Self> {
        let (weights, parameters) = DecoderWeights::load(&ops, config, tensor, true)?;
        Ok(Self::new(ops, config, weights, parameters, None))
    }

    /// As [`Self::load`], with weights that are never trained.
    ///
    /// # Errors
    /// As there.
    pub fn load_frozen(
        ops: O,
        config: &DecoderConfig,
        tensor: &mut TensorSource<'_>,
    ) -> Result<Self> {
        let (weights, parameters) = DecoderWeights::load(&ops, config, tensor, false)?;
        Ok(Self::new(ops, config, weights, parameters, None))
    }

    /// As [`Self::load`], with weights that stay as they are and adapters that are trained.
    ///
    /// # Errors
    /// As there, or when the settings are invalid or the adapters' values do not fit.
    pub fn load_adapted(
        ops: O,
        config: &DecoderConfig,
        tensor: &mut TensorSource<'_>,
        settings: &LoraSettings,
        adapters: &mut AdapterSource<'_>,
    ) -> Result<Self> {
        let dense = &mut |name: &str| {
            let (shape, values) = tensor(name)?;
            Ok(FrozenWeight::Dense(shape, values))
        };
        Self::load_adapted_frozen(ops, config, dense, settings, adapters)
    }

    /// As [`Self::load_adapted`], with weights of which some may stay in their blocks.
    ///
    /// # Errors
    /// As there, or when the op set keeps no blocks.
    pub fn load_adapted_frozen(
        ops: O,
        config: &DecoderConfig,
        weight: &mut FrozenWeightSource<'_>,
        settings: &LoraSettings,
        adapters: &mut AdapterSource<'_>,
    ) -> Result<Self> {
        let (mut weights, mut parameters) = DecoderWeights::load_frozen(&ops, config, weight)?;
        weights.adapt(&ops, config, &mut parameters, settings, adapters)?;
        Ok(Self::new(ops, config, weights, parameters, Some(settings.clone())))
    }

    fn new(
        ops: O,
        config: &DecoderConfig,
        weights: DecoderWeights,
        parameters: ParameterStore<O>,
        lora: Option<LoraSettings>,
    ) -> Self {
        Self {
            ops,
            decoder: Decoder::new(config.clone(), weights),
            parameters,
            limits: GenerationLimits::default(),
            pending: None,
            training: None,
            lora,
            pass: 0,
            passes: PassNumbers { first: 0, stride: 1 },
        }
    }

    /// Sets how much generation may do at once.
    #[must_use]
    pub fn with_generation_limits(mut self, limits: GenerationLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets whether training keeps only the input of each layer, and runs layers again for their gradients
    /// (gradient checkpointing): less memory for more time, and the same gradients.
    pub fn recompute_activations(&mut self, recompute: bool) {
        self.decoder.recompute_layers(recompute);
    }

    /// The op set.
    #[must_use]
    pub fn ops(&self) -> &O {
        &self.ops
    }

    /// The model's shape and settings.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        self.decoder.config()
    }

    /// The weights, by name.
    #[must_use]
    pub fn parameters(&self) -> &ParameterStore<O> {
        &self.parameters
    }

    /// The op set, and the weights to be changed.
    pub(crate) fn parts_mut(&mut self) -> (&O, &mut ParameterStore<O>) {
        (&self.ops, &mut self.parameters)
    }

    /// Numbers the forward passes of a step from now on as those of replica `first` of `stride`, so that
    /// dropout differs between replicas.
    pub(crate) fn number_passes(&mut self, first: u64, stride: u64) {
        self.passes = PassNumbers { first, stride };
        self.pass = first;
    }

    /// The settings of the adapters, if there are any.
    #[must_use]
    pub fn lora(&self) -> Option<&LoraSettings> {
        self.lora.as_ref()
    }

    /// Name, shape and row-major values of every trained weight, downloaded one at a time: of all, or
    /// of the adapters where there are any.
    pub fn tensors(&self) -> impl Iterator<Item = Result<(String, Vec<usize>, Vec<f32>)>> {
        self.parameters.entries().iter().filter(|entry| entry.trainable).map(|entry| {
            let values = self.ops.parameter_values(&entry.value)?;
            Ok((entry.name.clone(), entry.shape.clone(), values))
        })
    }

    /// Samples responses; see [`generation::generate`].
    ///
    /// # Errors
    /// As there.
    pub fn generate(
        &mut self,
        request: &GenerationRequest,
        stop_tokens: &[u32],
        progress: &dyn Progress,
    ) -> Result<Vec<GeneratedResponse>> {
        let table = self.decoder.untied_embedding().map(ParameterId::index);
        for (index, entry) in self.parameters.entries_mut().iter_mut().enumerate() {
            if table != Some(index) {
                self.ops.prepare_for_decoding(&mut entry.value)?;
            }
        }
        let responses = generation::generate(
            &self.ops,
            &self.decoder,
            &self.parameters,
            request,
            stop_tokens,
            &self.limits,
            progress,
        );
        for entry in self.parameters.entries_mut() {
            self.ops.end_decoding(&mut entry.value)?;
        }
        responses
    }

    /// Log-probability of every response token, one list per response; nothing is kept.
    ///
    /// # Errors
    /// When a sequence does not fit the model, or the computation fails.
    pub fn token_log_probs(&self, batch: &SequenceBatch) -> Result<Vec<Vec<f32>>> {
        self.token_log_probs_with(AdapterUse::On, batch)
    }

    /// As [`Self::token_log_probs`], of the model that the adapters were made for.
    ///
    /// # Errors
    /// As there.
    pub fn token_log_probs_without_adapters(&self, batch: &SequenceBatch) -> Result<Vec<Vec<f32>>> {
        self.token_log_probs_with(AdapterUse::Off, batch)
    }

    fn token_log_probs_with(
        &self,
        adapters: AdapterUse,
        batch: &SequenceBatch,
    ) -> Result<Vec<Vec<f32>>> {
        let batch = self.pack(batch)?;
        let mut graph = Graph::inference(&self.ops, &self.parameters).with_adapters(adapters);
        let log_probs = self.decoder.token_log_probs(&mut graph, &batch)?;
        let list = |range: &Range<usize>| log_probs.get(range.clone()).map(<[f32]>::to_vec);
        batch.responses.iter().map(list).collect::<Option<_>>().ok_or_else(short_answer)
    }

    /// Log-probabilities of these tokens as the one after each sequence, sequence after sequence. Beginnings
    /// that neighbours share are computed once.
    ///
    /// # Errors
    /// When a sequence does not fit the model, or the computation fails.
    pub fn next_token_log_probs(
        &self,
        sequences: &[Vec<u32>],
        next_tokens: &[u32],
    ) -> Result<Vec<f32>> {
        let limits = InputLimits::of(self.decoder.config());
        let batch = PackedBatch::from_questions(sequences, next_tokens, limits)?;
        let mut graph = Graph::inference(&self.ops, &self.parameters);
        self.decoder.token_log_probs(&mut graph, &batch)
    }

    /// Summed log-probability of each response, keeping what [`Self::backward`] needs.
    ///
    /// # Errors
    /// As [`Self::token_log_probs`].
    pub fn forward(&mut self, batch: &SequenceBatch) -> Result<Vec<f64>> {
        self.pending = None;
        let batch = self.pack(batch)?;
        let dropout_seed = self.dropout_seed();
        self.pass += self.passes.stride;
        let mut graph = Graph::recording(&self.ops, &self.parameters)
            .with_adapters(AdapterUse::Training { dropout_seed });
        let log_probs = self.decoder.token_log_probs(&mut graph, &batch)?;
        let tape = graph.into_tape().filter(|_| !batch.responses.is_empty());
        let sum = |range: &Range<usize>| {
            Some(log_probs.get(range.clone())?.iter().map(|&log_prob| f64::from(log_prob)).sum())
        };
        let sums = batch.responses.iter().map(sum).collect::<Option<_>>();
        self.pending = Some(PendingBackward { tape, responses: batch.responses });
        sums.ok_or_else(short_answer)
    }

    /// Adds `sum_i coefficients[i] * grad log pi(y_i | x_i)` of the last forward to the gradient.
    ///
    /// # Errors
    /// When there was no forward, the number of coefficients is not that of its responses, or the
    /// computation fails.
    pub fn backward(&mut self, coefficients: &[f64]) -> Result<()> {
        let pending = self
            .pending
            .take()
            .ok_or_else(|| ModelError::Input("backward without a forward pass before it".into()))?;
        if pending.responses.len() != coefficients.len() {
            return Err(ModelError::Input(format!(
                "{} coefficients for {} responses",
                coefficients.len(),
                pending.responses.len()
            )));
        }
        let Some(tape) = pending.tape else { return Ok(()) };
        let per_token: Vec<f32> = (pending.responses.iter().zip(coefficients))
            .flat_map(|(range, &coefficient)| range.clone().map(move |_| coefficient as f32))
            .collect();
        tape.backward(&self.ops, &mut self.parameters, &per_token)
    }

    /// Starts training afresh: gradients and optimiser state are cleared.
    ///
    /// # Errors
    /// When the tensor library fails.
    pub fn begin_training(&mut self, optimizer: &Optimizer) -> Result<()> {
        self.pending = None;
        self.pass = self.passes.first;
        self.training = Some(Training::begin(&self.ops, &mut self.parameters, optimizer)?);
        Ok(())
    }

    /// Ends training: gradients and optimiser state are given up.
    ///
    /// # Errors
    /// When the tensor library fails.
    pub fn end_training(&mut self) -> Result<()> {
        (self.pending, self.training) = (None, None);
        Training::end(&self.ops, &mut self.parameters)
    }

    /// Applies the accumulated gradient and clears it.
    ///
    /// # Errors
    /// When training was not begun, or the gradient is not finite (the weights are then unchanged).
    pub fn step(&mut self, settings: &StepSettings) -> Result<StepReport> {
        let training = self.training.as_mut().ok_or_else(not_training)?;
        self.pass = self.passes.first;
        training.step(&self.ops, &mut self.parameters, settings)
    }

    /// Writes the optimiser's state to a safetensors file.
    ///
    /// # Errors
    /// When training was not begun or the file cannot be written.
    pub fn save_optimizer_state(&self, file: &Path) -> Result<()> {
        let entries = self.parameters.entries();
        self.optimizer_state_writer()?
            .write(&mut |weight| self.ops.optimizer_state(&entries[weight].value), file)
    }

    /// What the optimiser's state consists of, to be written without it.
    pub(crate) fn optimizer_state_writer(&self) -> Result<StateWriter> {
        let training = self.training.clone().ok_or_else(not_training)?;
        let weights = self.parameters.entries().iter().map(|entry| StateLayout {
            name: entry.name.clone(),
            shape: entry.shape.clone(),
            count: self.ops.optimizer_state_count(&entry.value),
        });
        Ok(StateWriter { training, weights: weights.collect() })
    }

    /// Reads back what [`Self::save_optimizer_state`] wrote; call after [`Self::begin_training`].
    ///
    /// # Errors
    /// When training was not begun or the file does not belong to this model and optimiser.
    pub fn load_optimizer_state(&mut self, file: &Path) -> Result<()> {
        let stored = self.open_optimizer_state(file)?;
        self.take_optimizer_state(stored.steps(), &mut |weight| stored.of_weight(weight))
    }

    /// Opens what [`Self::save_optimizer_state`] wrote.
    pub(crate) fn open_optimizer_state(&self, file: &Path) -> Result<StoredState> {
        let training = self.training.as_ref().ok_or_else(not_training)?;
        let entries = self.parameters.entries().iter();
        let weights = entries.map(|entry| (entry.name.clone(), entry.shape.clone()));
        let stored = StoredState::open(file, weights)?;
        stored.require_optimizer_of(training)?;
        Ok(stored)
    }

    /// Takes the optimiser's state of `steps` steps that `source` reads for each weight.
    pub(crate) fn take_optimizer_state(
        &mut self,
        steps: u64,
        source: &mut StateSource<'_>,
    ) -> Result<()> {
        let training = self.training.as_mut().ok_or_else(not_training)?;
        training.take_state(&self.ops, &mut self.parameters, steps, source)
    }

    /// The same for the same pass of the same step, also after resuming.
    fn dropout_seed(&self) -> u64 {
        let seed = self.lora.as_ref().map_or(0, |settings| settings.seed);
        let step = self.training.as_ref().map_or(0, Training::steps);
        mix(mix(seed, step), self.pass)
    }

    fn pack(&self, batch: &SequenceBatch) -> Result<PackedBatch> {
        PackedBatch::from_sequences(batch, InputLimits::of(self.decoder.config()))
    }
}

fn not_training() -> ModelError {
    ModelError::Input("training was not begun".into())
}

fn short_answer() -> ModelError {
    ModelError::Backend("fewer log-probabilities came back than were asked for".into())
}
