//! The plugin: checks the settings, and starts the service when the first judgment is asked for.

use std::sync::Arc;

use serde_json::{Value, json};
use sppo_http_transport::{Address, Client, Dispatcher};
use sppo_plugin::pairwise::Orders;
use sppo_plugin::{Comparison, Oracle, Plugin, PluginError, Progress, Services, Verdict};

use crate::cache::{Cache, KeyMaker};
use crate::call::{Call, Service, Totals};
use crate::config::{HttpConfig, ProtocolName};
use crate::exchange::JudgeExchange;
use crate::protocol::{self, Protocol};

/// Version of the way in which the replies of language models are read: it changes when equal replies no
/// longer mean equal verdicts, so that verdicts of the old way are not taken for those of the new one.
const READING: u32 = 2;

/// Judges answers by asking services over HTTP.
pub struct HttpOracle {
    config: HttpConfig,
    protocol: Arc<dyn Protocol>,
    keys: KeyMaker,
    identity: String,
    addresses: Vec<Address>,
    /// The client, until `service` takes it over.
    client: Option<Client>,
    service: Option<Service>,
    totals: Totals,
}

impl Plugin for HttpOracle {
    type Config = HttpConfig;
    const NAME: &'static str = "http";
    const SUMMARY: &'static str = "Judges and reward models over HTTP: OpenAI-compatible, vLLM, \
                                   text-embeddings-inference, OpenRLHF, or a service of your own";

    fn create(config: HttpConfig) -> Result<Self, PluginError> {
        check(&config)?;
        let protocol: Arc<dyn Protocol> = Arc::from(protocol::create(&config)?);
        let addresses = config
            .endpoints
            .iter()
            .map(|endpoint| Address::parse(endpoint, protocol.path()))
            .collect::<Result<Vec<_>, _>>()?;
        let identity = identity(&config, &addresses);
        let keys = KeyMaker::new(&judge(&config, &identity)?);
        let client = Client::new(&config.transport(), &addresses)?;
        Ok(Self {
            protocol,
            keys,
            identity,
            addresses,
            client: Some(client),
            service: None,
            totals: Totals::default(),
            config,
        })
    }
}

impl Oracle for HttpOracle {
    fn prepare(
        &mut self,
        _services: &dyn Services,
        _progress: &dyn Progress,
    ) -> Result<(), PluginError> {
        match &self.client {
            // Otherwise all that will be asked may be remembered.
            Some(client) if !Cache::has_answered(&self.config.cache, &self.keys) => {
                client.require_service().map_err(|error| {
                    error.with_hint("start the service, or correct `oracle.http.endpoints`")
                })
            }
            _ => Ok(()),
        }
    }

    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, PluginError> {
        self.start()?;
        let service = self.service.as_ref().ok_or_else(|| PluginError::failed("not started"))?;
        let mut call = Call::new(
            &self.config,
            self.protocol.as_ref(),
            &self.keys,
            service,
            &mut self.totals,
            progress,
        );
        call.preferences(comparisons)
    }

    fn identity(&self) -> Option<String> {
        Some(self.identity.clone())
    }

    fn expected_requests(&self, comparisons: u64, candidates: u64) -> Option<u64> {
        let questions = match (self.protocol.compares(), self.config.orders) {
            (false, _) => candidates,
            (true, Orders::Both) => candidates * candidates.saturating_sub(1),
            (true, Orders::One) => candidates * candidates.saturating_sub(1) / 2,
        };
        let together = protocol::questions_per_request(&self.config, self.protocol.as_ref()) as u64;
        Some(match self.protocol.shares_prompt() {
            true => comparisons * questions.div_ceil(together),
            false => (comparisons * questions).div_ceil(together),
        })
    }
}

sppo_plugin::export_oracle!(HttpOracle);

impl HttpOracle {
    /// Opens the cache and starts the workers. Not before they are needed: a plan leaves nothing behind.
    fn start(&mut self) -> Result<(), PluginError> {
        if self.service.is_none() {
            let cache = Cache::open(&self.config.cache, &self.keys, &self.identity)?;
            let client = self.client.take();
            let client = client.ok_or_else(|| PluginError::failed("it could not start before"))?;
            let exchange = JudgeExchange::new(Arc::clone(&self.protocol), &self.config, cache);
            let exchange = Arc::new(exchange);
            let dispatcher = Dispatcher::new(
                &self.config.transport(),
                self.addresses.clone(),
                client,
                Arc::clone(&exchange),
            )?;
            self.service = Some(Service { exchange, dispatcher });
        }
        Ok(())
    }
}

fn check(config: &HttpConfig) -> Result<(), PluginError> {
    if config.endpoints.is_empty() {
        return Err(PluginError::configuration("endpoints: it is not said where the service is")
            .with_hint(
                "for instance `--set 'oracle.http.endpoints=[\"http://localhost:8000\"]'`, and \
                 `oracle.http.protocol` for what it speaks",
            ));
    }
    if config.protocol == ProtocolName::OpenaiJudge && config.model.is_none() {
        return Err(PluginError::configuration("model: it is not said which model judges")
            .with_hint("give the name that the service knows it by"));
    }
    if !(0.0..=1.0).contains(&config.max_refused_share) {
        return Err(PluginError::configuration("max_refused_share: not from 0 to 1"));
    }
    config.transport().check()
}

/// The judge, in words.
fn identity(config: &HttpConfig, addresses: &[Address]) -> String {
    if let Some(identity) = &config.identity {
        return identity.clone();
    }
    let mut shown: Vec<&str> = addresses.iter().map(|address| address.shown.as_str()).collect();
    shown.sort_unstable();
    let model = config.model.as_ref().map_or(String::new(), |model| format!(" {model}"));
    format!("{}{model} at {}", config.protocol.as_str(), shown.join(", "))
}

/// Everything that verdicts depend on besides the questions.
fn judge(config: &HttpConfig, identity: &str) -> Result<Value, PluginError> {
    let as_value = |value: serde_json::Result<Value>| {
        value.map_err(|error| PluginError::configuration(error.to_string()))
    };
    let settings = match config.protocol {
        ProtocolName::OpenaiJudge => {
            let mut judge = as_value(serde_json::to_value(&config.judge))?;
            if let Value::Object(fields) = &mut judge {
                // These decide what follows from the lack of a verdict, and no verdict.
                for field in ["invalid_attempts", "max_invalid_share", "undecided"] {
                    fields.shift_remove(field);
                }
                fields.insert("reading".into(), json!(READING));
            }
            judge
        }
        _ => as_value(serde_json::to_value(&config.scoring))?,
    };
    let mut judge = json!({
        "protocol": config.protocol.as_str(),
        "identity": identity,
        "model": config.model,
        "settings": settings,
        "extra": config.extra,
    });
    // Judges that are sent everything keep the keys that they had before this could be changed.
    if !config.leave_out.is_empty() {
        judge["leave_out"] = json!(config.leave_out);
    }
    Ok(judge)
}
