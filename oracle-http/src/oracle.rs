//! The plugin: checks the settings, and starts the service when the first judgment is asked for.

use std::sync::Arc;

use serde_json::{Value, json};
use sppo_http_transport::{Address, Client, Dispatcher};
use sppo_plugin::pairwise::Orders;
use sppo_plugin::{Comparison, Oracle, Plugin, PluginError, Progress, Services, Verdict};

use crate::cache::{Cache, KeyMaker};
use crate::call::{Call, Service, Totals};
use crate::config::{HttpConfig, JudgeConfig, ProtocolName, RubricConfig};
use crate::exchange::JudgeExchange;
use crate::protocol::{self, Common, Protocol};

/// Version of the way in which the replies of language models are read: it changes when equal replies no
/// longer mean equal verdicts, so that verdicts of the old way are not taken for those of the new one. Since version 2
/// began, replies that were invalid have become readable, and verdicts that were certain for want of log-probabilities
/// at the first token are as sure as their own token is. What was remembered before stays: it is the same judge's word.
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
    const SUMMARY: &'static str = "Judges, decision and reward models over HTTP: OpenAI-compatible, System One, \
                                   vLLM, text-embeddings-inference, OpenRLHF, or a service of your own";

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
        let more = self.protocol.identity().map_or(String::new(), |more| format!(", {more}"));
        Some(format!("{}{more}", self.identity))
    }

    fn expected_requests(&self, comparisons: u64, candidates: u64) -> Option<u64> {
        let protocol = self.protocol.as_ref();
        let variants = protocol.variants() as u64;
        let questions = match (protocol.compares(), self.config.orders) {
            (false, _) => candidates * variants,
            (true, Orders::Both) => candidates * candidates.saturating_sub(1),
            (true, Orders::One) => candidates * candidates.saturating_sub(1) / 2,
        };
        let together = protocol::questions_per_request(&self.config, protocol) as u64;
        Some(match protocol.common() {
            Common::Nothing => (comparisons * questions).div_ceil(together),
            Common::Prompt => comparisons * questions.div_ceil(together),
            Common::Response => comparisons * candidates * variants.div_ceil(together),
            Common::Group => comparisons * variants,
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
    if config.needs_model() && config.model.is_none() {
        return Err(PluginError::configuration("model: it is not said which model judges")
            .with_hint("give the name that the service knows it by"));
    }
    if !(0.0..=1.0).contains(&config.max_refused_share) {
        return Err(PluginError::configuration("max_refused_share: not from 0 to 1"));
    }
    if config.may_be_invalid() {
        check_verdicts(&config.judge)?;
    }
    config.transport().check()
}

fn check_verdicts(judge: &JudgeConfig) -> Result<(), PluginError> {
    if !(0.0..=1.0).contains(&judge.max_invalid_share) {
        return Err(PluginError::configuration("judge.max_invalid_share: not from 0 to 1"));
    }
    match (0.0..=1.0).contains(&judge.min_label_probability) {
        true => Ok(()),
        false => Err(PluginError::configuration("judge.min_label_probability: not from 0 to 1")
            .with_hint("for instance 0.1")),
    }
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
    let settings =
        settings(config).map_err(|error| PluginError::configuration(error.to_string()))?;
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

/// The settings of the protocol that change a verdict.
fn settings(config: &HttpConfig) -> serde_json::Result<Value> {
    let HttpConfig { judge, decision, genrm, groupwise, .. } = config;
    let least = judge.min_label_probability;
    Ok(match config.protocol {
        ProtocolName::OpenaiJudge => reading_of_labels(judge)?,
        ProtocolName::Systemone | ProtocolName::OpenaiDecisions => {
            json!({"decision": decision, "min_label_probability": least})
        }
        ProtocolName::NvidiaGenrm => json!({"genrm": genrm, "reading": READING}),
        ProtocolName::OpenaiRubric => {
            // The criteria stand in the questions, and their weights act later.
            let rubric = RubricConfig { file: None, ..config.rubric.clone() };
            json!({"rubric": rubric, "judge": reading_of_labels(judge)?})
        }
        ProtocolName::NemoGymCompare => json!({"principle": genrm.principle, "reading": READING}),
        ProtocolName::OpenaiGroupwise => {
            let field = &judge.max_tokens_field;
            json!({"groupwise": groupwise, "max_tokens_field": field, "reading": READING})
        }
        _ => serde_json::to_value(&config.scoring)?,
    })
}

fn reading_of_labels(config: &JudgeConfig) -> serde_json::Result<Value> {
    let mut judge = serde_json::to_value(config)?;
    if let Value::Object(fields) = &mut judge {
        // These decide what follows from the lack of a verdict, and no verdict.
        for field in ["invalid_attempts", "max_invalid_share", "undecided"] {
            fields.shift_remove(field);
        }
        fields.insert("reading".into(), json!(READING));
    }
    Ok(judge)
}

#[cfg(test)]
mod tests {
    use sppo_plugin::{Candidate, Message};

    use super::*;
    use crate::question::Question;

    /// Protocols, the name of a judge's file, and the key of its first question, as version 0.1.0 had them when
    /// judgments were first remembered: whoever paid for those keeps them.
    const KEYS: [(ProtocolName, &str, &str); 7] = [
        (ProtocolName::Pairwise, "0c9af174e4d3794f.jsonl", "c5f4cbdd8454987b"),
        (ProtocolName::OpenaiJudge, "f9ffba5ec7928261.jsonl", "5c52551c5f101d56"),
        (ProtocolName::Openrlhf, "3862fbf63a83f0f5.jsonl", "d122706a97bae91d"),
        (ProtocolName::VllmClassify, "ed593875935609e4.jsonl", "498cd76792a66ab7"),
        (ProtocolName::VllmScore, "b177658dd1396a4a.jsonl", "50c06af249e94423"),
        (ProtocolName::TeiPredict, "402b49f77edfbf91.jsonl", "79087e0ff9e400a4"),
        (ProtocolName::TeiRerank, "7597207117707f88.jsonl", "c9ffaa62acaf9d6e"),
    ];

    #[test]
    fn judgments_that_were_paid_for_keep_their_keys() {
        let comparison = Comparison {
            prompt: [Message::user("q")].into(),
            rendered_prompt: None,
            candidates: ["a", "b"].map(Candidate::from_text).into(),
        };
        for (name, file, key) in KEYS {
            let model = Some("judge".to_owned());
            let config = HttpConfig { protocol: name, model, ..HttpConfig::default() };
            let keys = KeyMaker::new(&judge(&config, "golden").unwrap());
            assert_eq!(keys.file_name(), file, "{name:?}");
            let protocol = protocol::create(&config).unwrap();
            let second = protocol.compares().then_some(1);
            let question = Question { second, ..Question::about(&comparison, 0) };
            let found = keys.key(&protocol.part(question).unwrap());
            let found: String = found[..8].iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, key, "{name:?}");
        }
    }
}
