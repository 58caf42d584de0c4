//! Teams of threads on the reference op set: they compute what one process computes, and stay together
//! whatever goes wrong on one of them.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};

use sppo_plugin::{
    Backend, GenerationPrompt, GenerationRequest, LoraSettings, ModelSpec, Optimizer, PluginError,
    PluginErrorKind, Policy, PolicySpec, Progress, SamplingParameters, SequenceBatch, Sharding,
    SilentHost, StepSettings,
};

use super::{Channel, Collective};
use crate::encoder::{PairMarkers, PairRankerConfig};
use crate::error::Result as ModelResult;
use crate::formats::safetensors::SafetensorsFiles;
use crate::generation::GenerationLimits;
use crate::ops::ParameterStore;
use crate::ops::reference::ReferenceOps;
use crate::serve::{MatrixRate, ModelBackend};

impl MatrixRate for ReferenceOps {
    fn matrix_product(&self, _shape: [usize; 3]) -> ModelResult<impl FnMut() -> ModelResult<()>> {
        Ok(|| Ok(()))
    }
}

/// A rank whose processes are threads: to and from every rank, itself among them.
struct Thread {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
    /// Whether this rank changes a number of its own in every step.
    is_faulty: bool,
}

fn threads(size: usize) -> Vec<Thread> {
    let mut ranks: Vec<Thread> = (0..size)
        .map(|rank| Thread { rank, to: Vec::new(), from: Vec::new(), is_faulty: false })
        .collect();
    for from in 0..size {
        for to in 0..size {
            let (sender, receiver) = channel();
            ranks[from].to.push(sender);
            ranks[to].from.push(receiver);
        }
    }
    ranks
}

fn gone<E>(_: E) -> PluginError {
    PluginError::failed("a thread is gone")
}

impl Channel for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn name(&self, rank: usize) -> String {
        format!("thread {rank}")
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, PluginError> {
        if self.rank == 0 {
            self.to[1..].iter().try_for_each(|to| to.send(bytes.clone())).map_err(gone)?;
            return Ok(bytes);
        }
        self.from[0].recv().map_err(gone)
    }

    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, PluginError> {
        self.to.iter().try_for_each(|to| to.send(bytes.clone())).map_err(gone)?;
        self.from.iter().map(|from| from.recv().map_err(gone)).collect()
    }
}

impl Collective<ReferenceOps> for Thread {
    fn divide(&self, ops: &ReferenceOps, sharding: Sharding) -> Result<ReferenceOps, PluginError> {
        assert_eq!(sharding, Sharding::None);
        Ok(*ops)
    }

    fn sum_gradients(
        &self,
        _ops: &ReferenceOps,
        parameters: &mut ParameterStore<ReferenceOps>,
    ) -> Result<(), PluginError> {
        for entry in parameters.entries_mut().iter_mut().filter(|entry| entry.trainable) {
            let count = entry.value.values.len();
            let own = entry.value.gradient.take().unwrap_or_else(|| vec![0.0; count]);
            let bytes = own.iter().flat_map(|number: &f64| number.to_le_bytes()).collect();
            let mut sum = vec![0.0; count];
            for gradient in self.all_gather(bytes)? {
                for (sum, number) in sum.iter_mut().zip(gradient.chunks_exact(8)) {
                    *sum += f64::from_le_bytes(number.try_into().unwrap());
                }
            }
            entry.value.gradient = Some(sum);
        }
        if self.is_faulty {
            parameters.entries_mut()[1].value.values[0] += 0.01;
        }
        Ok(())
    }
}

fn backend() -> ModelBackend<ReferenceOps> {
    ModelBackend::new(ReferenceOps, GenerationLimits::default(), None)
}

/// Runs `work` on rank 0 of a team; returns its result and how the other ranks ended.
fn with_team<T>(
    size: usize,
    work: impl FnOnce(&dyn Backend) -> T,
) -> (T, Vec<Result<(), PluginError>>) {
    with_ranks(threads(size), work)
}

/// As [`with_team`], of these ranks.
fn with_ranks<T>(
    mut ranks: Vec<Thread>,
    work: impl FnOnce(&dyn Backend) -> T,
) -> (T, Vec<Result<(), PluginError>>) {
    let size = ranks.len();
    let others = ranks.split_off(1);
    std::thread::scope(|scope| {
        let members: Vec<_> = others
            .into_iter()
            .map(|rank| scope.spawn(|| backend().with_team(Rc::new(rank)).serve(&SilentHost)))
            .collect();
        let leader = backend().with_team(Rc::new(ranks.remove(0)));
        assert_eq!(leader.place().size, size);
        let result = work(&leader);
        drop(leader);
        (result, members.into_iter().map(|member| member.join().unwrap()).collect())
    })
}

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "fixtures", name].iter().collect()
}

fn spec(adapters: Option<LoraSettings>) -> PolicySpec {
    PolicySpec { adapters, ..PolicySpec::new(fixture("lm/llama")) }
}

fn requests(count: u64) -> Vec<GenerationRequest> {
    let request = |first: u64| GenerationRequest {
        prompts: (first..first + 2)
            .map(|id| GenerationPrompt { id, tokens: vec![1, 5 + id as u32, 9] })
            .collect(),
        samples_per_prompt: 2,
        sampling: SamplingParameters { max_new_tokens: 4, ..SamplingParameters::default() },
        seed: 3,
        stream: 1,
    };
    (0..count).map(|part| request(2 * part)).collect()
}

fn batch(first: u32) -> SequenceBatch {
    let mut batch = SequenceBatch::new();
    let prompt = batch.push_prompt(&[1, first, 9]);
    batch.push_response(prompt, &[7, 3 + first, 8]);
    batch.push_response(prompt, &[4, 4]);
    batch
}

/// Two steps on `batches`, as many at a time as the policy has replicas.
fn train(policy: &mut dyn Policy, batches: &[SequenceBatch]) -> Vec<Vec<Vec<f32>>> {
    for _ in 0..2 {
        for together in batches.chunks(policy.info().replicas) {
            let sums = policy.forward_each(together).unwrap();
            assert_eq!(sums.len(), together.len());
            policy.backward_each(&vec![vec![0.5, -0.5]; together.len()]).unwrap();
        }
        let settings = StepSettings { learning_rate: 0.05, max_gradient_norm: Some(1.0) };
        assert!(policy.step(&settings).unwrap().gradient_norm > 0.0);
    }
    policy.token_log_probs_each(batches).unwrap()
}

#[test]
fn a_team_samples_and_scores_to_the_bit_what_one_process_does() {
    let run = |backend: &dyn Backend| {
        let mut policy = backend.load_policy(&spec(None)).unwrap();
        let drawn = policy.generate_each(&requests(5), &SilentHost).unwrap();
        let batches: Vec<_> = (0..5).map(batch).collect();
        (drawn, policy.token_log_probs_each(&batches).unwrap())
    };
    let expected = run(&backend());
    for size in [2, 3] {
        let (found, ends) = with_team(size, run);
        assert!(found == expected, "{size} ranks");
        assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    }
}

#[test]
fn a_team_trains_as_one_process_does_and_its_state_loads_in_any_team() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state.safetensors");
    let optimizer = Optimizer::Sgd { momentum: 0.5 };
    let batches: Vec<_> = (0..3).map(batch).collect();
    let adapters = LoraSettings { rank: 2, seed: 5, ..LoraSettings::default() };
    for adapters in [None, Some(adapters)] {
        let begun = |backend: &dyn Backend| {
            let mut policy = backend.load_policy(&spec(adapters.clone())).unwrap();
            policy.begin_training(&optimizer).unwrap();
            policy
        };
        let alone = |backend: &dyn Backend| {
            let mut policy = begun(backend);
            let trained = train(policy.as_mut(), &batches);
            policy.save_optimizer_state(&state).unwrap();
            trained
        };
        let resumed = |backend: &dyn Backend| {
            let mut policy = begun(backend);
            policy.load_optimizer_state(&state).unwrap();
            train(policy.as_mut(), &batches)
        };
        let expected = [alone(&backend()), resumed(&backend())];
        for size in [2, 3] {
            let (found, _) = with_team(size, |backend| [alone(backend), resumed(backend)]);
            let difference = found
                .iter()
                .zip(&expected)
                .flat_map(|(a, b)| a.iter().flatten().flatten().zip(b.iter().flatten().flatten()))
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(difference < 1e-5, "{size} ranks: {difference}");
        }
    }
}

#[test]
fn a_team_saves_a_checkpoint_byte_for_byte_as_one_process_does() {
    let saved = |backend: &dyn Backend| {
        let directory = tempfile::tempdir().unwrap();
        backend.load_policy(&spec(None)).unwrap().save(directory.path()).unwrap();
        std::fs::read(directory.path().join("model.safetensors")).unwrap()
    };
    assert!(with_team(2, saved).0 == saved(&backend()));
}

#[test]
fn a_rank_whose_weights_have_drifted_is_named_and_nothing_is_saved() {
    for (faulty, words) in [
        (2, "thread 2 holds other weights than thread 0"),
        (0, "thread 0 holds other weights than thread 1"),
    ] {
        let mut ranks = threads(3);
        ranks[faulty].is_faulty = true;
        let directory = tempfile::tempdir().unwrap();
        let (refused, _) = with_ranks(ranks, |backend| {
            let mut policy = backend.load_policy(&spec(None)).unwrap();
            policy.save(&directory.path().join("before")).unwrap();
            policy.begin_training(&Optimizer::Sgd { momentum: 0.0 }).unwrap();
            train(policy.as_mut(), &[batch(0), batch(1)]);
            policy.save(&directory.path().join("after")).unwrap_err().to_string()
        });
        assert!(refused.contains(words), "{refused}");
        assert!(!directory.path().join("after").exists());
    }
}

#[test]
fn a_team_ranks_to_the_bit_what_one_process_does() {
    for model in ["pairrm-tiny", "reward/llama"] {
        let path = fixture(model);
        let sequence = |first: u32| match model {
            "pairrm-tiny" => ranker_sequence(&path, first),
            _ => vec![1, 5 + first, 9, 4],
        };
        let batches: Vec<Vec<Vec<u32>>> =
            (0..5).map(|part| vec![sequence(part), sequence(part + 7)]).collect();
        let score = |backend: &dyn Backend| {
            let mut scorer = backend.load_scorer(&ModelSpec::new(&path)).unwrap();
            scorer.score_each(&batches).unwrap()
        };
        let (found, ends) = with_team(3, score);
        assert_eq!(found, score(&backend()), "{model}");
        assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    }
}

fn ranker_sequence(directory: &Path, first: u32) -> Vec<u32> {
    let files = SafetensorsFiles::open(directory).unwrap();
    let PairMarkers { source, first: one, second: other } =
        PairRankerConfig::read(directory, &files).unwrap().markers;
    vec![1, source, 5 + first, 2, 1, one, 9, 2, 1, other, 12, first, 2]
}

#[test]
fn a_failure_on_one_rank_names_it_and_the_team_goes_on() {
    let (message, ends) = with_team(3, |backend| {
        let mut policy = backend.load_policy(&spec(None)).unwrap();
        let mut batches: Vec<_> = (0..3).map(batch).collect();
        batches[1].push_response(0, &[1 << 20]);
        let error = policy.token_log_probs_each(&batches).unwrap_err();
        assert_eq!(policy.token_log_probs_each(&[batch(1)]).unwrap().len(), 1);
        error.to_string()
    });
    assert!(message.starts_with("thread 1: ") && message.contains("1048576"), "{message}");
    assert!(ends.iter().all(Result::is_ok), "a failure that was got over is none: {ends:?}");
}

#[test]
fn a_failure_that_ends_the_work_ends_every_rank_with_the_same_sentence() {
    let (message, ends) = with_team(3, |backend| {
        let mut policy = backend.load_policy(&spec(None)).unwrap();
        let mut batches: Vec<_> = (0..3).map(batch).collect();
        batches[2].push_response(0, &[1 << 20]);
        policy.token_log_probs_each(&batches).unwrap_err().to_string()
    });
    let ends: Vec<String> = ends.into_iter().map(|end| end.unwrap_err().to_string()).collect();
    assert_eq!(ends[0], message);
    assert_eq!(format!("thread 2: {}", ends[1]), message);
}

#[test]
fn a_model_that_only_rank_0_finds_damaged_is_refused_on_all_ranks() {
    let directory = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let _ = std::fs::copy(fixture("lm/llama").join(file), directory.path().join(file));
    }
    let mut weights = std::fs::read(fixture("lm/llama").join("model.safetensors")).unwrap();
    // A number format that the header cannot mean.
    let at = weights.windows(3).rposition(|bytes| bytes == b"F32").unwrap();
    weights[at..at + 3].copy_from_slice(b"I32");
    std::fs::write(directory.path().join("model.safetensors"), weights).unwrap();
    let (refused, _) = with_team(3, |backend| {
        let refused = backend.load_policy(&PolicySpec::new(directory.path())).err().unwrap();
        // The team loads another afterwards.
        backend.load_policy(&spec(None)).unwrap();
        refused
    });
    assert!(!refused.to_string().contains("thread"), "{refused}");
}

/// A watcher that has had enough.
struct Impatient;

impl Progress for Impatient {
    fn is_cancelled(&self) -> bool {
        true
    }

    fn progress(&self, _completed: u64, _total: u64) {}
}

#[test]
fn a_call_that_is_cancelled_on_rank_0_ends_as_cancelled() {
    let (kind, _) = with_team(2, |backend| {
        let mut policy = backend.load_policy(&spec(None)).unwrap();
        policy.generate_each(&requests(2), &Impatient).unwrap_err().kind
    });
    assert_eq!(kind, PluginErrorKind::Cancelled);
}
