//! The oracle `misbehaving`: one bad plugin for each value of its setting.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use sppo_plugin::{Comparison, Oracle, Plugin, PluginError, Progress, Verdict};

/// The table `[oracle.misbehaving]`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MisbehavingConfig {
    /// The way to misbehave.
    pub behaviour: Behaviour,
}

/// A way to misbehave, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Behaviour {
    #[default]
    Good,
    PanicWhileMade,
    PanicInCall,
    PanicOnThread,
    PanicInDrop,
    NotANumber,
    OutOfRange,
    WrongLength,
    WrongShape,
    Endless,
    EndlessAndDeaf,
    Printing,
    Logging,
}

/// Misbehaves as its settings say.
pub struct MisbehavingOracle(Behaviour);

impl Plugin for MisbehavingOracle {
    type Config = MisbehavingConfig;
    const NAME: &'static str = "misbehaving";
    const SUMMARY: &'static str = "Does what a bad plugin may do";

    fn create(config: MisbehavingConfig) -> Result<Self, PluginError> {
        if config.behaviour == Behaviour::PanicWhileMade {
            panic!("I cannot be made");
        }
        Ok(Self(config.behaviour))
    }
}

impl Drop for MisbehavingOracle {
    fn drop(&mut self) {
        if self.0 == Behaviour::PanicInDrop {
            panic!("I do not want to go");
        }
    }
}

impl Oracle for MisbehavingOracle {
    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, PluginError> {
        let all = |value: f64| {
            let sizes = comparisons.iter().map(|comparison| comparison.candidates.len());
            let matrix = |size: usize| {
                let at = |index: usize| if index.is_multiple_of(size + 1) { 0.5 } else { value };
                Verdict::Probabilities((0..size * size).map(at).collect())
            };
            sizes.map(matrix).collect::<Vec<_>>()
        };
        if matches!(self.0, Behaviour::Endless | Behaviour::EndlessAndDeaf) {
            // Who wants to interrupt it waits for this.
            eprintln!("I have begun and shall not end");
        }
        match self.0 {
            Behaviour::PanicInCall => panic!("I have no opinion"),
            Behaviour::PanicOnThread => {
                let thread = std::thread::spawn(|| -> f64 { panic!("I lost my thread") });
                match thread.join() {
                    Ok(value) => Ok(all(value)),
                    Err(payload) => std::panic::resume_unwind(payload),
                }
            }
            Behaviour::NotANumber => Ok(all(f64::NAN)),
            Behaviour::OutOfRange => Ok(all(1.5)),
            Behaviour::WrongLength => Ok(all(0.5).into_iter().skip(1).collect()),
            Behaviour::WrongShape => Ok(vec![Verdict::Scores(vec![1.0]); comparisons.len()]),
            Behaviour::Endless => {
                while !progress.is_cancelled() {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(PluginError::cancelled())
            }
            Behaviour::EndlessAndDeaf => loop {
                std::thread::sleep(Duration::from_secs(60));
            },
            Behaviour::Printing => {
                println!("I talk to standard output");
                Ok(all(0.5))
            }
            Behaviour::Logging => {
                tracing::error!("something is on fire");
                tracing::warn!(degrees = 40, "it is getting hot");
                tracing::info!("it is warm");
                tracing::debug!("molecules are moving");
                Ok(all(0.5))
            }
            Behaviour::Good | Behaviour::PanicWhileMade | Behaviour::PanicInDrop => Ok(all(0.5)),
        }
    }
}

sppo_plugin::export_oracle!(MisbehavingOracle);
