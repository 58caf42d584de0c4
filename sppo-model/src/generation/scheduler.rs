//! Continuous batching: each step prefills prompts, decodes all active rows, and retires finished ones.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use sppo_plugin::{FinishReason, GeneratedResponse, GenerationPrompt, GenerationRequest, Progress};

use super::limits::{GenerationLimits, cache_plan};
use super::pages::FreeSpans;
use super::rows::{Interrupted, Row, RowPages};
use super::sampler::{SampleKey, SampleRequest, Sampler};
use crate::decoder::{AttentionSource, Decoder, InputLimits, PackedBatch};
use crate::error::{ModelError, Result};
use crate::ops::{CachedRow, Graph, Ops, ParameterStore, Position, SampledToken};

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

struct Scheduler<'a, O: Ops> {
    ops: &'a O,
    decoder: &'a Decoder,
    parameters: &'a ParameterStore<O>,
    request: &'a GenerationRequest,
    sampler: Sampler,
    prefill_tokens: usize,
    cache: O::Cache,
    prompt_region: FreeSpans,
    pages: RowPages,
    /// Rows that have started.
    started: u64,
    interrupted: VecDeque<Interrupted>,
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
        let most = request.sampling.max_new_tokens;
        let plan = cache_plan(config, limits, ops.cache_number_bytes(), &lengths, samples, most);
        Ok(Self {
            ops,
            decoder,
            parameters,
            request,
            sampler,
            prefill_tokens: limits.prefill_tokens,
            cache: ops.cache(config.layer_count, plan.slots(), features)?,
            prompt_region: plan.prompt_region(),
            pages: RowPages::new(plan),
            started: 0,
            interrupted: VecDeque::new(),
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

    /// Starts samples until there is no room for another or no sample is waiting.
    fn admit(&mut self) -> Result<()> {
        while self.room() > 0
            && let Some(interrupted) = self.interrupted.pop_front()
        {
            self.restart(interrupted);
        }
        while self.room() > 0 {
            if self.prompts.iter().all(|prompt| prompt.started == self.request.samples_per_prompt)
                && !self.prefill()?
            {
                break;
            }
            self.start_samples()?;
        }
        Ok(())
    }

    /// Rows that may start now.
    fn room(&self) -> usize {
        self.pages.room(&self.rows)
    }

    fn restart(&mut self, interrupted: Interrupted) {
        let Interrupted { prompt, sample, first } = interrupted;
        // A prompt stays in the cache until all its responses have ended.
        let in_cache = self.prompts.iter().find(|state| state.index == prompt);
        let slots = in_cache.map(|state| state.slots.clone()).unwrap_or_default();
        if let Some(row) = self.new_row(prompt, sample, slots) {
            self.advance(vec![row], &[first]);
        }
    }

    /// A row with its first page, if there is one.
    fn new_row(&mut self, prompt: usize, sample: usize, prefix: Range<usize>) -> Option<Row> {
        let pages = vec![self.pages.first()?];
        self.started += 1;
        Some(Row::new(prompt, sample, self.started, pages, prefix))
    }

    /// The rows that have pages for all their tokens. Where pages run out, the youngest rows give theirs up.
    fn with_pages(&mut self, [first, second]: [Vec<Row>; 2]) -> [Vec<Row>; 2] {
        let boundary = first.len();
        let mut rows: Vec<Option<Row>> = first.into_iter().chain(second).map(Some).collect();
        for index in 0..rows.len() {
            while let Some(row) = rows.get_mut(index).and_then(Option::as_mut)
                && !self.pages.suffice(row)
            {
                if !self.pages.grow(row) {
                    self.interrupt_youngest(&mut rows);
                }
            }
        }
        let second = rows.split_off(boundary);
        [rows, second].map(|rows| rows.into_iter().flatten().collect())
    }

    fn interrupt_youngest(&mut self, rows: &mut [Option<Row>]) {
        let age = |row: &Option<Row>| row.as_ref().map(|row| row.age);
        let youngest = rows.iter_mut().max_by_key(|row| age(row));
        let Some(row) = youngest.and_then(Option::take) else { return };
        self.pages.release(&row);
        self.generated_tokens -= row.tokens.len() as u64;
        self.interrupted.extend(row.interrupted());
    }

    /// Computes as many waiting prompts together as the free pages and the limits allow; `false` when
    /// there is none or no room for it.
    fn prefill(&mut self) -> Result<bool> {
        let wanted = self.room().div_ceil(self.request.samples_per_prompt);
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
        let logits = self.ops.values(&logits)?;
        self.check_size(&logits, batch.predicting_rows.len())?;
        Ok(logits)
    }

    /// Gives free pages to waiting samples and samples their first tokens from their prompts' logits.
    fn start_samples(&mut self) -> Result<()> {
        let samples = self.request.samples_per_prompt;
        let mut room = self.room();
        let mut rows = Vec::new();
        let mut logits = Vec::new();
        for at in 0..self.prompts.len() {
            while room > 0
                && let Some(prompt) = self.prompts.get(at)
                && prompt.started < samples
            {
                let (index, sample, slots) = (prompt.index, prompt.started, prompt.slots.clone());
                let of_prompt = prompt.logits.clone();
                let Some(row) = self.new_row(index, sample, slots) else { break };
                rows.push(row);
                logits.push(of_prompt);
                self.prompts[at].started += 1;
                room -= 1;
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
        let (mut become_long, rows): (Vec<Row>, _) =
            rows.into_iter().partition(|row| self.becomes_long(row));
        for row in &mut become_long {
            (row.prefix, row.own_prompt) = (0..0, self.request.prompts[row.prompt].tokens.len());
        }
        let [become_long, rows] = self.with_pages([become_long, rows]);
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
            let rows: Vec<Row> = waiting.drain(..count).collect();
            let sequence = |row: &Row| {
                [self.request.prompts[row.prompt].tokens.as_slice(), &row.tokens].concat()
            };
            let sequences: Vec<Vec<u32>> = rows.iter().map(sequence).collect();
            let batch = PackedBatch::from_prompts(sequences.iter().map(Vec::as_slice), limits);
            let slots: Vec<usize> =
                rows.iter().flat_map(|row| self.pages.slots_of(row)).flatten().collect();
            let logits = self.prefill_batch(&batch, slots.into_iter())?;
            let vocabulary = self.decoder.config().vocabulary_size;
            let tokens = self.sample(&rows, logits.chunks_exact(vocabulary))?;
            self.advance(rows, &tokens);
        }
        Ok(())
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
            let own = self.pages.slots_of(row);
            tokens.extend(row.tokens.last());
            positions.push(Position {
                index: row.length() as u32 - 1,
                is_in_long_sequence: limits.is_long(row.length()),
            });
            slots.extend(own.last().map(|run| run.end as u32 - 1));
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
                let sample = |logits: &[f32]| {
                    self.check_size(logits, rows.len())?;
                    self.sample(&rows, logits.chunks_exact(vocabulary))
                };
                self.ops.with_values(&logits, sample)??
            }
        };
        self.advance(rows, &tokens);
        Ok(())
    }

    /// Refuses logits that are not one row of the vocabulary's length for each of `rows`.
    fn check_size(&self, logits: &[f32], rows: usize) -> Result<()> {
        let vocabulary = self.decoder.config().vocabulary_size;
        match logits.len() == rows * vocabulary {
            true => Ok(()),
            false => Err(ModelError::Backend(format!(
                "{} logits came back for {rows} rows of {vocabulary}",
                logits.len()
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
        self.pages.retire(&row);
        let Row { prompt, sample, tokens, log_probs, .. } = row;
        let response = GeneratedResponse { tokens, log_probs, finish_reason };
        self.responses[prompt * samples + sample] = Some(response);
        self.finished += 1;
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

#[cfg(test)]
mod tests;
