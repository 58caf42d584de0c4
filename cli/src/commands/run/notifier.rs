//! Messages about a run to the address in `notify.url`.

use std::cell::RefCell;
use std::time::Duration;

use sppo_core::config::Config;
use sppo_core::notify::{Notification, Occasion};
use sppo_core::observer::{Event, IterationReport, Observer};
use sppo_core::{Error, Result};

/// Time for a message to be delivered: the run waits for it.
const LIMIT: Duration = Duration::from_secs(5);

/// Sends a message after each iteration and at the end. One that is not delivered is no reason to end a run.
pub(super) struct Notifier {
    address: Option<String>,
    run: String,
    iterations: u32,
    last: RefCell<Option<IterationReport>>,
}

impl Notifier {
    pub(super) fn new(config: &Config) -> Result<Self> {
        Ok(Self {
            address: config.notify.address()?,
            run: config.name.clone(),
            iterations: config.iterations,
            last: RefCell::default(),
        })
    }

    /// Tells how the run ended.
    pub(super) fn ended(&self, outcome: &Result<Vec<IterationReport>>) {
        if let Ok(reports) = outcome {
            *self.last.borrow_mut() = reports.last().cloned();
        }
        self.send(match outcome {
            Ok(_) => Occasion::Finished,
            Err(Error::Cancelled) => Occasion::Stopped,
            Err(_) => Occasion::Failed,
        });
    }

    fn send(&self, occasion: Occasion) {
        let Some(address) = &self.address else { return };
        let last = self.last.borrow();
        let message = Notification::new(occasion, &self.run, self.iterations, last.as_ref());
        let config = ureq::Agent::config_builder().timeout_global(Some(LIMIT)).build();
        if let Err(error) = ureq::Agent::new_with_config(config).post(address).send_json(&message) {
            tracing::warn!("notify.url: a message was not delivered: {}", in_words(&error));
        }
    }
}

/// The address stays out of it: it may be a secret.
fn in_words(error: &ureq::Error) -> String {
    match error {
        ureq::Error::BadUri(_) => "the address is malformed".into(),
        other => other.to_string(),
    }
}

impl Observer for Notifier {
    fn event(&self, event: Event<'_>) {
        if let Event::IterationFinished(report) = event {
            *self.last.borrow_mut() = Some(report.clone());
            self.send(Occasion::Iteration);
        }
    }
}
