//! Shards of a stage: making them is one thing, committing them another.

use std::path::Path;

use super::*;
use crate::config::Config;
use crate::datasets::Stored;
use crate::observer::SilentObserver;
use crate::plugin::{
    Backend, Codec, Comparison, FinishReason, GeneratedResponse, GenerationRequest, Message,
    Optimizer, PluginError, PolicyInfo, PolicySpec, Progress, Sampler, SequenceBatch, StepReport,
    StepSettings, Verdict,
};
use crate::plugins::PluginRegistry;
use crate::run_directory::{ArtifactName, ModelIdentity, RunIdentity};

type Outcome<T> = std::result::Result<T, PluginError>;

/// Writes what its random draws would be: the same for a prompt, whatever it is asked together with.
struct Drawer(PolicyInfo);

impl Codec for Drawer {
    fn info(&self) -> &PolicyInfo {
        &self.0
    }

    fn render(&self, messages: &[Message], _prompt: bool) -> Outcome<String> {
        Ok(messages.iter().map(|message| &*message.content).collect())
    }

    fn encode(&self, text: &str, _special: bool) -> Outcome<Vec<u32>> {
        Ok(text.chars().map(u32::from).collect())
    }

    fn decode(&self, tokens: &[u32]) -> Outcome<String> {
        Ok(format!("{tokens:?}"))
    }
}

impl Sampler for Drawer {
    fn generate(
        &mut self,
        request: &GenerationRequest,
        _progress: &dyn Progress,
    ) -> Outcome<Vec<GeneratedResponse>> {
        let drawn = |id: u64, sample: usize| GeneratedResponse {
            tokens: vec![request.seed as u32, request.stream as u32, id as u32, sample as u32],
            log_probs: vec![-0.5, -0.25, -1.0, -2.0],
            finish_reason: FinishReason::Stop,
        };
        let samples = 0..request.samples_per_prompt;
        let prompts = request.prompts.iter();
        Ok(prompts.flat_map(|p| samples.clone().map(move |sample| drawn(p.id, sample))).collect())
    }
}

fn untrained<T>() -> Outcome<T> {
    Err(PluginError::unsupported("it only draws"))
}

impl Learner for Drawer {
    fn token_log_probs(&mut self, _batch: &SequenceBatch) -> Outcome<Vec<Vec<f32>>> {
        untrained()
    }

    fn forward(&mut self, _batch: &SequenceBatch) -> Outcome<Vec<f64>> {
        untrained()
    }

    fn backward(&mut self, _coefficients: &[f64]) -> Outcome<()> {
        untrained()
    }

    fn begin_training(&mut self, _optimizer: &Optimizer) -> Outcome<()> {
        untrained()
    }

    fn step(&mut self, _settings: &StepSettings) -> Outcome<StepReport> {
        untrained()
    }

    fn save(&self, _directory: &Path) -> Outcome<()> {
        untrained()
    }

    fn save_optimizer_state(&self, _file: &Path) -> Outcome<()> {
        untrained()
    }

    fn load_optimizer_state(&mut self, _file: &Path) -> Outcome<()> {
        untrained()
    }
}

fn drawer() -> Drawer {
    Drawer(PolicyInfo {
        architecture: "drawer".into(),
        parameter_count: 0,
        layer_matrix_parameters: 0,
        head_parameters: 0,
        vocabulary_size: 1 << 21,
        context_length: 1024,
        bos_token: None,
        eos_token: None,
        stop_tokens: Vec::new(),
        device: "cpu".into(),
        dtype: "f32".into(),
        replicas: 1,
    })
}

struct DrawerBackend;

impl Backend for DrawerBackend {
    fn load_policy(&self, _spec: &PolicySpec) -> Outcome<Box<dyn Policy>> {
        Ok(Box::new(drawer()))
    }
}

struct NoOracle;

impl Oracle for NoOracle {
    fn preferences(
        &mut self,
        _comparisons: &[Comparison<'_>],
        _progress: &dyn Progress,
    ) -> Outcome<Vec<Verdict>> {
        untrained()
    }
}

fn prompts() -> Vec<Prompt> {
    let prompt = |id| Prompt { id, messages: vec![Message::user(format!("question {id}"))] };
    (0..7).map(prompt).collect()
}

/// Seven prompts make four shards.
fn config() -> Config {
    let mut config = Config::default();
    config.sampling.prompts_per_shard = 2;
    config.sampling.samples_per_prompt = 3;
    config
}

fn run_directory(path: &Path, config: &Config) -> RunDirectory {
    let identity = RunIdentity {
        config: config.clone(),
        model: ModelIdentity { name: "drawer".into(), ..ModelIdentity::default() },
        prompts_sha256: String::new(),
        plugins: Vec::new(),
    };
    RunDirectory::create(path, identity).unwrap()
}

/// Samples the first iteration in the run directory; returns the rollouts.
fn sampled(config: &Config, run: &mut RunDirectory, shards_per_call: usize) -> Vec<Rollout> {
    let plugins = PluginRegistry::default();
    let (backend, observer) = (&DrawerBackend, &SilentObserver);
    let inputs = RunInputs {
        starting_model: "drawer".into(),
        prompts: PromptSet { training: prompts(), held_out: Vec::new() },
    };
    let session = Session { config, plugins: &plugins, backend, observer, lent_policy: None };
    let oracle = &mut NoOracle;
    let service = &ServiceMeter::default();
    SelfPlay { session, oracle, inputs, run, policy: None, engine: None, shards_per_call, service }
        .sample(1)
        .unwrap()
}

fn bytes(run: &RunDirectory, name: &ArtifactName) -> Vec<u8> {
    std::fs::read(run.path(name).unwrap()).unwrap()
}

#[test]
fn one_of_two_sessions_commits_what_both_make() {
    let directory = tempfile::tempdir().unwrap();
    let config = config();
    let mut run = run_directory(&directory.path().join("run"), &config);
    sampled(&config, &mut run, 1);

    // The other makes the second shard with a sampler of its own, and commits nothing.
    let plugins = PluginRegistry::default();
    let (backend, observer) = (&DrawerBackend, &SilentObserver);
    let other =
        Session { config: &config, plugins: &plugins, backend, observer, lent_policy: None };
    let pass = other.sampling_pass(1);
    let meter = other.stage(Stage::Sample, 1, "tokens");
    let made = other.rollouts(&meter, &mut drawer(), &[&prompts()[2..4]], &pass).unwrap().concat();

    let name = Names::rollouts(1, 1);
    assert_eq!(Rollout::read(&run.path(&name).unwrap()).unwrap(), made);
    let own = directory.path().join("own.parquet");
    Rollout::write(&own, &made).unwrap();
    assert_eq!(std::fs::read(own).unwrap(), bytes(&run, &name));
}

#[test]
fn several_missing_shards_are_made_in_one_call_and_committed_one_by_one() {
    let directory = tempfile::tempdir().unwrap();
    let config = config();
    let mut one_by_one = run_directory(&directory.path().join("one"), &config);
    let expected = sampled(&config, &mut one_by_one, 1);

    let mut together = run_directory(&directory.path().join("several"), &config);
    assert_eq!(sampled(&config, &mut together, 3), expected);
    for lost in [0, 2, 3] {
        together.remove(&Names::rollouts(1, lost)).unwrap();
    }
    assert_eq!(sampled(&config, &mut together, 2), expected);
    for shard in 0..4 {
        let name = Names::rollouts(1, shard);
        assert_eq!(bytes(&together, &name), bytes(&one_by_one, &name), "shard {shard}");
    }
}
