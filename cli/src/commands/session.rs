//! The setup of commands with a model: settings, plugins, a backend, and a display of the work.

use std::path::{Path, PathBuf};

use sppo_core::config::Config;
use sppo_core::observer::{Observer, SilentObserver};
use sppo_core::plugin::{Backend, Oracle, Policy, ServedWeights};
use sppo_core::plugins::PluginRegistry;
use sppo_core::session::Session;

use crate::failure::Result;
use crate::models::{self, LocalModel};
use crate::terminal::{ProgressDisplay, Terminal};
use crate::{interrupt, memory};

/// A model on this machine as a sampler's servers know it.
pub(crate) fn served(path: PathBuf) -> ServedWeights {
    ServedWeights { version: path.display().to_string(), path }
}

/// Owner of all that a command's [`Session`] refers to.
pub(crate) struct Setup {
    pub(crate) config: Config,
    pub(crate) backend: Box<dyn Backend>,
    plugins: PluginRegistry,
    display: ProgressDisplay,
    terminal: Terminal,
}

impl Setup {
    pub(crate) fn new(config: Config, terminal: &Terminal) -> Result<Self> {
        let plugins = models::plugins(&config)?;
        let backend = models::backend(&plugins, &config)?;
        let (display, terminal) = (terminal.progress(), terminal.clone());
        Ok(Self { config, backend, plugins, display, terminal })
    }

    /// A session whose stages are displayed.
    pub(crate) fn session(&self) -> Session<'_> {
        self.observed_by(&self.display)
    }

    /// A session whose stages are not displayed.
    pub(crate) fn silent_session(&self) -> Session<'_> {
        self.observed_by(&SilentObserver)
    }

    /// The display of the stages.
    pub(crate) fn display(&self) -> &dyn Observer {
        &self.display
    }

    /// A session with another observer.
    pub(crate) fn observed_by<'a>(&'a self, observer: &'a dyn Observer) -> Session<'a> {
        let Self { config, plugins, backend, .. } = self;
        Session { config, plugins, backend: backend.as_ref(), observer, lent_policy: None }
    }

    /// The judge as it is recorded.
    pub(crate) fn describe_oracle(&self, oracle: &dyn Oracle) -> String {
        models::describe_oracle(&self.plugins, &self.config, oracle)
    }

    /// The model of the settings.
    pub(crate) fn find_model(&self, offline: bool) -> Result<LocalModel> {
        self.find(&self.config.model, offline)
    }

    /// A model by its name.
    pub(crate) fn find(&self, model: &str, offline: bool) -> Result<LocalModel> {
        LocalModel::find(model, &self.config, offline, &self.terminal)
    }

    /// Loads a model. From now on Ctrl-C asks to stop.
    pub(crate) fn load(&self, model: LocalModel) -> Result<Box<dyn Policy>> {
        interrupt::watch();
        // The backend opens the files itself.
        let LocalModel { path, checkpoint, .. } = model;
        drop(checkpoint);
        Ok(self.session().load(&path)?)
    }

    /// As [`Self::load`], to train what the settings say: all weights, or adapters.
    pub(crate) fn load_for_training(&mut self, path: &Path) -> Result<Box<dyn Policy>> {
        interrupt::watch();
        memory::settle_training(&mut self.config, self.backend.as_ref(), path, &self.terminal);
        Ok(self.session().load_for_training(path)?)
    }
}
