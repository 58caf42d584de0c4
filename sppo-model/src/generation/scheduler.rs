//! Continuous batching: each step prefills prompts, decodes all active rows, and retires finished ones.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use sppo_plugin::{
    FinishReason, GeneratedResponse, GenerationPrompt, GenerationRequest, PlannedSampling, Progress,
};

use super::sampler::{SampleKey, SampleRequest, Sampler};
use super::slots::{CachePlan, FreeSpans};
use crate::decoder::{AttentionSource, Decoder, DecoderConfig, InputLimits, PackedBatch};
use crate::error::{ModelError, Result};
use crate::ops::{CachedRow, Graph, Ops, ParameterStore, Position, SampledToken};

/// Limits of what generation computes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenerationLimits {
    /// Most responses that decode together.
    pub max_batch_size: usize,
    /// Most prompt tokens that are computed together (one longer prompt alone is allowed).
    pub prefill_tokens: usize,
    /// Most bytes of the key-value cache, at four bytes per number. With less, fewer rows decode
    /// together; one row and the longest prompt are always allowed.
    pub cache_bytes: usize,
}

impl Default for GenerationLimits {
    fn default() -> Self {
        Self { max_batch_size: 64, prefill_tokens: 2048, cache_bytes: 1 << 30 }
    }
}

/// Generates `samples_per_prompt` responses for each prompt: all of prompt 0, then of prompt 1, ...
/// Progress is reported in generated tokens, of the most that there can be.
///
/// # Errors
/// When a prompt is empty, unknown to the model or leaves no room in the context, when a sampling
/// parameter is out of range, when the user asks to stop, or when the computation fails.
pub fn generate<O: Ops>(
    ops: &O,
    decoder: &Decoder,
    parameters: &ParameterStore<O>,
    request: &GenerationRequest,
    stop_tokens: &[u32],
    limits: &GenerationLimits,
    progress: &dyn Progress,
) -> Result<Vec<GeneratedResponse>> {
    let sampler = Sampler::new(&request.sampling, stop_tokens)?;
    check_prompts(&request.prompts, decoder)?;
    if request.prompts.is_empty() || request.samples_per_prompt == 0 {
        return Ok(Vec::new());
    }
    let mut scheduler = Scheduler::new(ops, decoder, parameters, request, sampler, limits)?;
    while !scheduler.is_done() {
        if progress.is_cancelled() {
            return Err(ModelError::Cancelled);
        }
        scheduler.admit()?;
        scheduler.decode()?;
        progress.progress(scheduler.generated_tokens, scheduler.most_tokens());
    }
    scheduler.into_responses()
}

fn cache_plan(
    config: &DecoderConfig,
    limits: &GenerationLimits,
    prompt_lengths: &[usize],
    samples_per_prompt: usize,
    max_new_tokens: usize,
) -> CachePlan {
    let bytes_per_slot = 2 * 4 * config.layer_count * config.key_value_heads * config.head_size;
    // The last token of a response is never fed back, so it needs no slot.
    let row_slots = max_new_tokens.saturating_sub(1).min(config.context_length).max(1);
    // A row that starts again as a long sequence keeps its prompt in its own slots.
    let limit = InputLimits::of(config);
    let becomes_long =
        |&length: &usize| !limit.is_long(length) && limit.is_long(length + max_new_tokens);
    let row_slots =
        row_slots + prompt_lengths.iter().copied().filter(becomes_long).max().unwrap_or(0);
    let budget = limits.cache_bytes / bytes_per_slot.max(1);
    CachePlan::new(budget, limits.max_batch_size, row_slots, prompt_lengths, samples_per_prompt)
}

/// The division of the cache for a request of this size.
pub(crate) fn planned_cache(
    config: &DecoderConfig,
    limits: &GenerationLimits,
    sampling: &PlannedSampling,
) -> CachePlan {
    let lengths = vec![sampling.longest_prompt; sampling.prompts];
    let (samples, tokens) = (sampling.samples_per_prompt, sampling.max_new_tokens);
    cache_plan(config, limits, &lengths, samples, tokens)
}

fn check_prompts(prompts: &[GenerationPrompt], decoder: &Decoder) -> Result<()> {
    let config = decoder.config();
    let limits = InputLimits::of(config);
    for prompt in prompts {
        limits.check(&prompt.tokens, &|| format!("prompt {}", prompt.id))?;
        if prompt.tokens.len() >= limits.context_length {
            return Err(ModelError::Input(format!(
                "prompt {} is {} tokens long and leaves no room for an answer in the model's \
                 context of {}; shorten it or leave it out",
                prompt.id,
                prompt.tokens.len(),
                limits.context_length
            )));
        }
    }
    Ok(())
}

/// A prompt in the cache.
struct PromptState {
    /// Its index in the request.
    index: usize,
    slots: Range<usize>,
    /// Logits after its last token, until every sample has its first token.
    logits: Arc<[f32]>,
    started: usize,
    finished: usize,
}

/// A response that is being decoded.
struct Row {
    prompt: usize,
    sample: usize,
    /// Number of its span of cache slots.
    span: usize,
    /// Slots of its prompt, which it shares with other samples.
    prefix: Range<usize>,
    /// Tokens of its prompt in its own span, if it started again as a long sequence.
    own_prompt: usize,
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
}

impl Row {
    /// Tokens so far, those of the prompt included.
    fn length(&self) -> usize {
        self.prefix.len() + self.own_prompt + self.tokens.len()
    }
}

struct Scheduler<'a, O: Ops> {
    ops: &'a O,
    decoder: &'a Decoder,
    parameters: &'a ParameterStore<O>,
    request: &'a GenerationRequest,
    sampler: Sampler,
    prefill_tokens: usize,
    plan: CachePlan,
    cache: O::Cache,
    prompt_region: FreeSpans,
    free_spans: Vec<usize>,
    /// The next prompt to prefill.
    next_prompt: usize,
    /// Prompts in the cache, oldest first.
    prompts: VecDeque<PromptState>,
    rows: Vec<Row>,
    responses: Vec<Option<GeneratedResponse>>,
    finished: usize,
    generated_tokens: u64,
}

impl<'a, O: Ops> Scheduler<'a, O> {
    fn new(
        ops: &'a O,
        decoder: &'a Decoder,
        parameters: &'a ParameterStore<O>,
        request: &'a GenerationRequest,
        sampler: Sampler,
        limits: &GenerationLimits,
    ) -> Result<Self> {
        let config = decoder.config();
        let features = config.key_value_heads * config.head_size;
        let lengths: Vec<usize> =
            request.prompts.iter().map(|prompt| prompt.tokens.len()).collect();
        let samples = request.samples_per_prompt;
        let plan = cache_plan(config, limits, &lengths, samples, request.sampling.max_new_tokens);
        Ok(Self {
            ops,
            decoder,
            parameters,
            request,
            sampler,
            prefill_tokens: limits.prefill_tokens,
            plan,
            cache: ops.cache(config.layer_count, plan.slots(), features)?,
            prompt_region: plan.prompt_region(),
            free_spans: (0..plan.rows).rev().collect(),
            next_prompt: 0,
            prompts: VecDeque::new(),
            rows: Vec::new(),
            responses: (0..lengths.len() * samples).map(|_| None).collect(),
            finished: 0,
            generated_tokens: 0,
        })
    }

    fn is_done(&self) -> bool {
        self.finished == self.responses.len()
    }

    fn most_tokens(&self) -> u64 {
        self.responses.len() as u64 * self.request.sampling.max_new_tokens as u64
    }

    fn into_responses(self) -> Result<Vec<GeneratedResponse>> {
        self.responses
            .into_iter()
            .collect::<Option<_>>()
            .ok_or_else(|| ModelError::Backend("generation left a response out".into()))
    }

    /// Starts samples until every span of slots is taken or no sample is waiting.
    fn admit(&mut self) -> Result<()> {
        while !self.free_spans.is_empty() {
            if self.prompts.iter().all(|prompt| prompt.started == self.request.samples_per_prompt)
                && !self.prefill()?
            {
                break;
            }
            self.start_samples()?;
        }
        Ok(())
    }

    /// Computes as many waiting prompts together as the free spans and the limits allow; `false` when
    /// there is none or no room for it.
    fn prefill(&mut self) -> Result<bool> {
        let wanted = self.free_spans.len().div_ceil(self.request.samples_per_prompt);
        let mut chosen: Vec<(usize, Range<usize>)> = Vec::new();
        let mut total = 0;
        while chosen.len() < wanted
            && let Some(prompt) = self.request.prompts.get(self.next_prompt)
        {
            total += prompt.tokens.len();
            if total > self.prefill_tokens && !chosen.is_empty() {
                break;
            }
            let Some(slots) = self.prompt_region.take(prompt.tokens.len()) else { break };
            chosen.push((self.next_prompt, slots));
            self.next_prompt += 1;
        }
        if chosen.is_empty() {
            return Ok(false);
        }
        let all = &self.request.prompts;
        let batch = PackedBatch::from_prompts(
            chosen.iter().map(|(index, _)| all[*index].tokens.as_slice()),
            InputLimits::of(self.decoder.config()),
        );
        let slots = chosen.iter().flat_map(|(_, slots)| slots.clone());
        let logits = self.prefill_batch(&batch, slots)?;
        let vocabulary = self.decoder.config().vocabulary_size;
        for ((index, slots), logits) in chosen.into_iter().zip(logits.chunks_exact(vocabulary)) {
            let logits = logits.into();
            self.prompts.push_back(PromptState { index, slots, logits, started: 0, finished: 0 });
        }
        Ok(true)
    }

    /// Writes whole sequences to these slots, and returns the logits after each.
    fn prefill_batch(
        &mut self,
        batch: &PackedBatch,
        slots: impl Iterator<Item = usize>,
    ) -> Result<Vec<f32>> {
        let slots: Vec<u32> = slots.map(|slot| slot as u32).collect();
        let mut source = AttentionSource::Prefill {
            segments: batch.segments.clone(),
            cache: &mut self.cache,
            slots: &slots,
        };
        let logits = self.decoder.logits(
            &mut Graph::inference(self.ops, self.parameters),
            &batch.tokens,
            &batch.positions,
            &mut source,
            Some(&batch.predicting_rows),
        )?;
        self.download(&logits, batch.predicting_rows.len())
    }

    /// Gives free spans to waiting samples and samples their first tokens from their prompts' logits.
    fn start_samples(&mut self) -> Result<()> {
        let samples = self.request.samples_per_prompt;
        let mut rows = Vec::new();
        let mut logits = Vec::new();
        for prompt in &mut self.prompts {
            while prompt.started < samples
                && let Some(span) = self.free_spans.pop()
            {
                rows.push(Row {
                    prompt: prompt.index,
                    sample: prompt.started,
                    span,
                    prefix: prompt.slots.clone(),
                    own_prompt: 0,
                    tokens: Vec::new(),
                    log_probs: Vec::new(),
                });
                logits.push(prompt.logits.clone());
                prompt.started += 1;
            }
        }
        let tokens = self.sample(&rows, logits.iter().map(AsRef::as_ref))?;
        self.advance(rows, &tokens);
        for prompt in self.prompts.iter_mut().filter(|prompt| prompt.started == samples) {
            prompt.logits = Arc::default();
        }
        Ok(())
    }

    /// One step: feeds every active row's last token and samples its next.
    fn decode(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let (become_long, rows) = rows.into_iter().partition(|row| self.becomes_long(row));
        self.start_again(become_long)?;
        self.decode_rows(rows)
    }

    /// Whether what is in the cache of a row was rotated as of a short sequence, and it is a long one now.
    fn becomes_long(&self, row: &Row) -> bool {
        let limits = InputLimits::of(self.decoder.config());
        row.own_prompt == 0 && limits.is_long(row.length()) && !limits.is_long(row.prefix.len())
    }

    /// Computes rows anew as the long sequences that they have become, and samples their next tokens.
    fn start_again(&mut self, rows: Vec<Row>) -> Result<()> {
        let limits = InputLimits::of(self.decoder.config());
        let mut waiting = VecDeque::from(rows);
        while let Some(longest) = waiting.iter().map(Row::length).max() {
            let count = (self.prefill_tokens / longest).clamp(1, waiting.len());
            let mut rows: Vec<Row> = waiting.drain(..count).collect();
            let mut sequences = Vec::with_capacity(count);
            for row in &mut rows {
                let prompt = &self.request.prompts[row.prompt].tokens;
                sequences.push([prompt.as_slice(), &row.tokens].concat());
                (row.prefix, row.own_prompt) = (0..0, prompt.len());
            }
            let batch = PackedBatch::from_prompts(sequences.iter().map(Vec::as_slice), limits);
            let slots: Vec<usize> = rows.iter().flat_map(|row| self.own_slots(row)).collect();
            let logits = self.prefill_batch(&batch, slots.into_iter())?;
            let vocabulary = self.decoder.config().vocabulary_size;
            let tokens = self.sample(&rows, logits.chunks_exact(vocabulary))?;
            self.advance(rows, &tokens);
        }
        Ok(())
    }

    /// The slots of the tokens in a row's own span.
    fn own_slots(&self, row: &Row) -> Range<usize> {
        let start = row.span * self.plan.row_slots;
        start..start + row.own_prompt + row.tokens.len()
    }

    fn decode_rows(&mut self, rows: Vec<Row>) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let limits = InputLimits::of(self.decoder.config());
        let mut tokens = Vec::with_capacity(rows.len());
        let mut positions = Vec::with_capacity(rows.len());
        let mut slots = Vec::with_capacity(rows.len());
        let mut seen = Vec::with_capacity(rows.len());
        for row in &rows {
            let own = self.own_slots(row);
            tokens.extend(row.tokens.last());
            positions.push(Position {
                index: row.length() as u32 - 1,
                is_in_long_sequence: limits.is_long(row.length()),
            });
            slots.push(own.end as u32 - 1);
            seen.push(CachedRow { prefix: row.prefix.clone(), own });
        }
        let mut source =
            AttentionSource::Decode { cache: &mut self.cache, slots: &slots, rows: &seen };
        let logits = self.decoder.logits(
            &mut Graph::inference(self.ops, self.parameters),
            &tokens.into(),
            &positions.into(),
            &mut source,
            None,
        )?;
        let vocabulary = self.decoder.config().vocabulary_size;
        let for_device = if self.ops.samples_on_device() {
            let keys: Vec<_> = rows.iter().map(|row| self.key(row)).collect();
            self.sampler.for_device(&keys, vocabulary)
        } else {
            None
        };
        let tokens = match for_device {
            Some(inputs) => self.ops.sample(&logits, &inputs)?,
            None => {
                let logits = self.download(&logits, rows.len())?;
                self.sample(&rows, logits.chunks_exact(vocabulary))?
            }
        };
        self.advance(rows, &tokens);
        Ok(())
    }

    /// The logits' values, one row of the vocabulary's length for each of `rows`.
    fn download(&self, logits: &O::Tensor, rows: usize) -> Result<Vec<f32>> {
        let values = self.ops.values(logits)?;
        let vocabulary = self.decoder.config().vocabulary_size;
        match values.len() == rows * vocabulary {
            true => Ok(values),
            false => Err(ModelError::Backend(format!(
                "{} logits came back for {rows} rows of {vocabulary}",
                values.len()
            ))),
        }
    }

    fn sample<'l>(
        &self,
        rows: &[Row],
        logits: impl Iterator<Item = &'l [f32]>,
    ) -> Result<Vec<SampledToken>> {
        let requests: Vec<SampleRequest<'_>> = (rows.iter().zip(logits))
            .map(|(row, logits)| {
                let (key, position) = self.key(row);
                SampleRequest { logits, key, position }
            })
            .collect();
        self.sampler.sample_all(&requests)
    }

    /// The key of the row's random numbers, and the position of its next token.
    fn key(&self, row: &Row) -> (SampleKey, usize) {
        let key = SampleKey {
            seed: self.request.seed,
            stream: self.request.stream,
            prompt: self.request.prompts[row.prompt].id,
            sample: row.sample as u64,
        };
        (key, row.tokens.len())
    }

    /// Appends the tokens; rows that are not finished by theirs stay active.
    fn advance(&mut self, rows: Vec<Row>, tokens: &[SampledToken]) {
        for (mut row, sampled) in rows.into_iter().zip(tokens) {
            row.tokens.push(sampled.token);
            row.log_probs.push(sampled.log_prob);
            self.generated_tokens += 1;
            match self.finish_reason(&row, sampled.token) {
                Some(reason) => self.retire(row, reason),
                None => self.rows.push(row),
            }
        }
    }

    fn finish_reason(&self, row: &Row, token: u32) -> Option<FinishReason> {
        let length = row.tokens.len();
        if self.sampler.is_stop_token(token) {
            Some(FinishReason::Stop)
        } else if length == self.request.sampling.max_new_tokens
            || row.length() == self.decoder.config().context_length
        {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    fn retire(&mut self, row: Row, finish_reason: FinishReason) {
        let samples = self.request.samples_per_prompt;
        let Row { prompt, sample, span, tokens, log_probs, .. } = row;
        let response = GeneratedResponse { tokens, log_probs, finish_reason };
        self.responses[prompt * samples + sample] = Some(response);
        self.finished += 1;
        self.free_spans.push(span);
        if let Some(at) = self.prompts.iter().position(|state| state.index == prompt) {
            self.prompts[at].finished += 1;
            if self.prompts[at].finished == samples
                && let Some(state) = self.prompts.remove(at)
            {
                self.prompt_region.give_back(state.slots);
            }
        }
    }
}
