//! The plugin: checks the settings, and does what the program asks with all servers.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fs_err as fs;
use serde::Deserialize;
use sppo_http_transport::{Address, Client, Dispatcher};
use sppo_plugin::{
    EndpointProbe, EnginePlan, GeneratedResponse, GenerationRequest, PluginError, Progress,
    RolloutEngine, SequenceBatch, ServedWeights,
};

use crate::answers::Answers;
use crate::config::{Refresh, ServerConfig};
use crate::protocol::{Ask, Limits, Load, Protocol, Served, seed};
use crate::round::{AnswerExchange, Facts, Round, Totals};
use crate::servers::{Server, Servers, anything, json};
use crate::serving_copy::{has_own_head, write_serving_copy};

/// The file of a directory with low-rank adapters.
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ANSWERS: &str = "answers.jsonl";
/// Copies of weights to serve, each in a directory of its version.
const SERVED: &str = "served";
/// Interval at which a command is looked at.
const TICK: Duration = Duration::from_millis(50);

/// Responses from servers that all speak one protocol.
pub(crate) struct HttpEngine {
    config: ServerConfig,
    protocol: Arc<dyn Protocol>,
    servers: Servers,
    addresses: Vec<Address>,
    prepared: Option<Prepared>,
    /// The weights that responses are drawn from.
    served: Served,
    /// The copy of weights that the servers hold, where one was made.
    copy: Option<PathBuf>,
    totals: Totals,
}

/// The parts that exist once the servers were looked at.
struct Prepared {
    plan: EnginePlan,
    number_formats: Vec<String>,
    /// Paths from which the servers were started, where they say.
    roots: Vec<String>,
    exchange: Arc<AnswerExchange>,
    dispatcher: Dispatcher<AnswerExchange>,
}

/// The models of a server.
#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Clone, Deserialize)]
struct Model {
    id: String,
    #[serde(default)]
    root: Option<String>,
    /// The model that adapters belong to.
    #[serde(default)]
    parent: Option<String>,
    #[serde(default)]
    max_model_len: Option<usize>,
}

impl HttpEngine {
    pub(crate) fn new(config: ServerConfig, protocol: impl Protocol) -> Result<Self, PluginError> {
        config.check()?;
        let servers = Servers::new(&config)?;
        let path = protocol.path();
        let address = |base| Address::parse(&format!("{base}{path}"), path);
        let addresses: Vec<Address> = config.bases().map(address).collect::<Result<_, _>>()?;
        Ok(Self {
            protocol: Arc::new(protocol),
            servers,
            addresses,
            prepared: None,
            served: Served::default(),
            copy: None,
            totals: Totals::default(),
            config,
        })
    }

    fn prepared(&self) -> Result<&Prepared, PluginError> {
        self.prepared.as_ref().ok_or_else(|| PluginError::failed("it was not prepared"))
    }

    /// Looks at a server: the model that it serves, and whether the work fits into its context.
    fn inspect(&self, server: Server<'_>, plan: &EnginePlan) -> Result<Model, PluginError> {
        let hint = "start the server, or correct `endpoints`";
        let Models { data } = server
            .get("/v1/models", json::<Models>)
            .map_err(|error| server.error("be asked what it serves", error, hint))?;
        let model = self.chosen(server, data)?;
        let context = model.max_model_len.unwrap_or(usize::MAX);
        if plan.longest_prompt >= context {
            let message = format!(
                "{} holds {context} tokens, and the longest prompt has {}",
                server.shown(),
                plan.longest_prompt
            );
            return Err(PluginError::unsupported(message)
                .with_hint("start it with a longer context, or leave long prompts out"));
        }
        if self.reloads(plan) {
            self.protocol.require_loading(server)?;
        }
        if plan.trains_adapters && self.config.refresh == Refresh::Load {
            self.protocol.require_adapters(server)?;
        }
        Ok(model)
    }

    /// The model that the settings name, or the only one.
    fn chosen(&self, server: Server<'_>, models: Vec<Model>) -> Result<Model, PluginError> {
        let whole: Vec<Model> = models.into_iter().filter(|model| model.parent.is_none()).collect();
        let names: Vec<&str> = whole.iter().map(|model| model.id.as_str()).collect();
        let found = match &self.config.model {
            Some(name) => whole.iter().find(|model| model.id == *name),
            None => whole.first().filter(|_| whole.len() == 1),
        };
        found.cloned().ok_or_else(|| {
            let wanted = match &self.config.model {
                Some(name) => format!("does not serve `{name}`"),
                None => "does not serve one model alone".into(),
            };
            PluginError::configuration(format!(
                "{} {wanted}; it serves {}",
                server.shown(),
                names.join(", ")
            ))
            .with_hint("give the name of one as `model`")
        })
    }

    /// The longest sequence that both the policy and all servers hold.
    fn start(
        &self,
        plan: &EnginePlan,
        context: usize,
    ) -> Result<(Arc<AnswerExchange>, Dispatcher<AnswerExchange>), PluginError> {
        let facts = Facts {
            stop_tokens: plan.stop_tokens.clone(),
            vocabulary_size: plan.vocabulary_size,
            context,
        };
        let exchange = Arc::new(AnswerExchange::new(Arc::clone(&self.protocol), facts));
        let client = Client::new(&self.config.transport(), &self.addresses)?;
        let dispatcher = Dispatcher::new(
            &self.config.transport(),
            self.addresses.clone(),
            client,
            Arc::clone(&exchange),
        )?;
        Ok((exchange, dispatcher))
    }

    /// Draws from these weights from now on.
    fn draw_from(&mut self, served: Served) -> Result<(), PluginError> {
        let prepared = self.prepared()?;
        let file = prepared.plan.directory.join(ANSWERS);
        prepared.exchange.draw_from(served.clone(), Answers::open(&file, &served.version)?);
        self.served = served;
        Ok(())
    }

    fn load_adapter(
        &mut self,
        weights: &ServedWeights,
        progress: &dyn Progress,
    ) -> Result<(), PluginError> {
        let path = self.config.path_on_server(&weights.path)?;
        let name = plain_name(&weights.version);
        let load = Load { path: &path, name: &name };
        let earlier = self.served.adapter.clone();
        self.servers.each(progress, |server| {
            // Another run may have left its own under the same name.
            self.protocol.unload_adapter(server, &name)?;
            self.protocol.load_adapter(server, &load)?;
            match &earlier {
                Some(earlier) if *earlier != name => self.protocol.unload_adapter(server, earlier),
                _ => Ok(()),
            }
        })?;
        let model = self.served.model.clone();
        let version = weights.version.clone();
        self.draw_from(Served { model, adapter: Some(name), version, says_version: false })
    }

    fn load_model(
        &mut self,
        weights: &ServedWeights,
        progress: &dyn Progress,
    ) -> Result<(), PluginError> {
        if !weights.path.is_dir() {
            return Err(PluginError::unsupported(format!(
                "{} is no Hugging Face directory, and servers load nothing else",
                weights.path.display()
            )));
        }
        let copy = self.serving_copy(weights)?;
        let path = self.config.path_on_server(copy.as_ref().unwrap_or(&weights.path))?;
        let by_command = !self.config.refresh_command.is_empty();
        if by_command {
            self.run_command(&path, &weights.version, progress)?;
        } else {
            let load = Load { path: &path, name: &weights.version };
            self.servers.each(progress, |server| self.protocol.load_model(server, &load))?;
        }
        if let Some(earlier) = std::mem::replace(&mut self.copy, copy)
            && self.copy.as_ref() != Some(&earlier)
        {
            remove_copy(&earlier);
        }
        self.draw_from(Served {
            model: self.served.model.clone(),
            adapter: None,
            version: weights.version.clone(),
            says_version: !by_command,
        })
    }

    /// A copy of the weights that the servers can load, where they cannot load these.
    fn serving_copy(&self, weights: &ServedWeights) -> Result<Option<PathBuf>, PluginError> {
        let is_tied = has_own_head(&weights.path) == Some(false);
        if !is_tied || !self.protocol.loses_tied_heads() {
            return Ok(None);
        }
        let served = self.prepared()?.plan.directory.join(SERVED);
        let copy = served.join(plain_name(&weights.version));
        write_serving_copy(&weights.path, &copy)?;
        Ok(Some(copy))
    }

    /// Whether the servers will be asked to load whole models in place of their weights.
    fn reloads(&self, plan: &EnginePlan) -> bool {
        plan.weights_change
            && !plan.trains_adapters
            && self.config.refresh == Refresh::Load
            && self.config.refresh_command.is_empty()
    }

    /// Refuses servers that were started from a model with a tied head, which they would reload without it.
    fn require_own_head(&self, weights: &ServedWeights) -> Result<(), PluginError> {
        let prepared = self.prepared()?;
        if !self.reloads(&prepared.plan) || !self.protocol.loses_tied_heads() {
            return Ok(());
        }
        let is_tied = |root: &&String| has_own_head(Path::new(root)) == Some(false);
        let Some(root) = prepared.roots.iter().find(is_tied) else { return Ok(()) };
        let Some(copy) = self.serving_copy(weights)? else { return Ok(()) };
        let message = format!(
            "a server was started from {root}, whose head is tied to its embeddings: it would reload such a \
             model without its head and report success"
        );
        let command = self.protocol.start_command(&copy.display().to_string());
        Err(PluginError::unsupported(message).with_hint(format!(
            "start it from this copy, which has a head of its own: {command}; `sppo merge --untied-head` \
             writes one too"
        )))
    }

    /// Runs the user's own command, and waits until every server answers.
    fn run_command(
        &self,
        checkpoint: &str,
        version: &str,
        progress: &dyn Progress,
    ) -> Result<(), PluginError> {
        let with_values =
            |part: &String| part.replace("{checkpoint}", checkpoint).replace("{version}", version);
        let words: Vec<String> = self.config.refresh_command.iter().map(with_values).collect();
        let failed = |reason: String| {
            PluginError::failed(format!("`refresh_command` ({}): {reason}", words.join(" ")))
        };
        let Some((program, arguments)) = words.split_first() else { return Ok(()) };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let mut running = command.spawn().map_err(|error| failed(error.to_string()))?;
        let status = loop {
            if let Some(status) = running.try_wait().map_err(|error| failed(error.to_string()))? {
                break status;
            }
            if progress.is_cancelled() {
                // It may have ended by itself.
                let _ = running.kill();
                let _ = running.wait();
                return Err(PluginError::cancelled());
            }
            thread::sleep(TICK);
        };
        if !status.success() {
            return Err(failed(status.to_string()));
        }
        let hint =
            "see the server's log; the command must not end before the server has its weights";
        self.servers.each(progress, |server| {
            let healthy = server.get("/health", anything);
            healthy.map_err(|error| server.error("answer after `refresh_command`", error, hint))
        })?;
        Ok(())
    }

    /// The numbers of one server.
    fn probe_of(
        &self,
        server: Server<'_>,
        given: &SequenceBatch,
        drawn: &GenerationRequest,
    ) -> Result<(Vec<Vec<f32>>, Vec<GeneratedResponse>), PluginError> {
        let hint = "see the server's log";
        let mut scores = Vec::new();
        for (prompt, response) in sequences(given) {
            let tokens = [prompt, response].concat();
            let body = self.protocol.scoring(&self.served, &tokens);
            let all = server
                .post(self.protocol.path(), &body, |body| self.protocol.scores(body, &tokens))
                .map_err(|error| server.error("score fixed answers", error, hint))?;
            scores.push(all[all.len() - response.len()..].to_vec());
        }
        let plan = &self.prepared()?.plan;
        let mut responses = Vec::new();
        for prompt in &drawn.prompts {
            let max_tokens = drawn.sampling.max_new_tokens;
            let ask = Ask {
                served: &self.served,
                prompt: &prompt.tokens,
                sampling: &drawn.sampling,
                max_tokens,
                seed: seed(drawn, prompt.id, 0),
                stop_tokens: &plan.stop_tokens,
            };
            let limits = Limits {
                max_tokens,
                stop_tokens: &plan.stop_tokens,
                vocabulary_size: plan.vocabulary_size,
                version: self.served.says_version.then_some(self.served.version.as_str()),
            };
            let body = self.protocol.request(&ask);
            let response = server
                .post(self.protocol.path(), &body, |body| self.protocol.response(body, &limits))
                .map_err(|error| server.error("draw tokens", error, hint))?;
            responses.push(response);
        }
        Ok((scores, responses))
    }
}

impl RolloutEngine for HttpEngine {
    fn prepare(&mut self, plan: &EnginePlan, progress: &dyn Progress) -> Result<(), PluginError> {
        let found = self.servers.each(progress, |server| {
            let model = self.inspect(server, plan)?;
            let number_format = self.protocol.number_format(server)?;
            Ok((model, number_format.unwrap_or_default()))
        })?;
        let (models, number_formats): (Vec<Model>, Vec<String>) = found.into_iter().unzip();
        let contexts = models.iter().filter_map(|model| model.max_model_len);
        let context = contexts.fold(plan.context_length, usize::min);
        let name = models.first().map(|model| model.id.clone()).unwrap_or_default();
        if let Some(other) = models.iter().find(|model| model.id != name) {
            let message = format!("one server serves `{name}`, another `{}`", other.id);
            return Err(PluginError::configuration(message)
                .with_hint("serve the model under one name on all servers"));
        }
        let (exchange, dispatcher) = self.start(plan, context)?;
        self.served.model = name;
        let roots = models.into_iter().filter_map(|model| model.root).collect();
        let plan = plan.clone();
        self.prepared = Some(Prepared { plan, number_formats, roots, exchange, dispatcher });
        Ok(())
    }

    fn adopt_weights(
        &mut self,
        weights: &ServedWeights,
        _progress: &dyn Progress,
    ) -> Result<bool, PluginError> {
        // Adapters of this name may be others.
        if weights.path.join(ADAPTER_CONFIG).is_file() {
            return Ok(false);
        }
        self.require_own_head(weights)?;
        let model = self.served.model.clone();
        let version = weights.version.clone();
        self.draw_from(Served { model, adapter: None, version, says_version: false })?;
        Ok(true)
    }

    fn load_weights(
        &mut self,
        weights: &ServedWeights,
        progress: &dyn Progress,
    ) -> Result<(), PluginError> {
        if self.config.refresh == Refresh::Never {
            return Err(PluginError::configuration(
                "the servers hold other weights, and `refresh = \"never\"` leaves them",
            )
            .with_hint("set `refresh = \"load\"`, or start the servers from these weights"));
        }
        match weights.path.join(ADAPTER_CONFIG).is_file() {
            true => self.load_adapter(weights, progress),
            false => self.load_model(weights, progress),
        }
    }

    fn probe(
        &mut self,
        given: &SequenceBatch,
        drawn: &GenerationRequest,
        progress: &dyn Progress,
    ) -> Result<Vec<EndpointProbe>, PluginError> {
        let found = self.servers.each(progress, |server| self.probe_of(server, given, drawn))?;
        let formats = &self.prepared()?.number_formats;
        let named = self.servers.shown().into_iter().zip(formats).zip(found);
        let probe =
            |((endpoint, number_format), (given, drawn)): ((&str, &String), _)| EndpointProbe {
                endpoint: endpoint.into(),
                number_format: number_format.clone(),
                given,
                drawn,
            };
        Ok(named.map(probe).collect())
    }

    fn generate(
        &mut self,
        request: &GenerationRequest,
        progress: &dyn Progress,
    ) -> Result<Vec<GeneratedResponse>, PluginError> {
        let Some(Prepared { exchange, dispatcher, .. }) = &self.prepared else {
            return Err(PluginError::failed("it was not prepared"));
        };
        Round::new(self.protocol.as_ref(), exchange, dispatcher, &mut self.totals, progress)
            .responses(request)
    }
}

/// Prompt and response of each sequence of a batch.
fn sequences(batch: &SequenceBatch) -> impl Iterator<Item = (&[u32], &[u32])> {
    batch.segments().iter().filter_map(|segment| {
        let prompt = &batch.segments()[segment.prompt?];
        Some((&batch.tokens()[prompt.tokens.clone()], &batch.tokens()[segment.tokens.clone()]))
    })
}

/// A version as a name that models and directories may have.
fn plain_name(version: &str) -> String {
    let plain = |letter: char| match letter {
        letter if letter.is_ascii_alphanumeric() || "-_.".contains(letter) => letter,
        _ => '-',
    };
    version.trim_matches(['/', '.']).chars().map(plain).collect()
}

/// Removes a copy of weights that the servers no longer hold.
fn remove_copy(copy: &Path) {
    if let Err(error) = fs::remove_dir_all(copy) {
        tracing::debug!("a copy of earlier weights stays: {error}");
    }
}
