//! The origin of a run: settings that differ from a preset, hashes, and the command that repeats it.

use serde::Serialize;
use sppo_core::config::{Config, Difference, Layers, Override, Preset};
use sppo_core::plugins::schema_of;
use sppo_core::run_directory::RunIdentity;

/// Settings that tell where a run is and who is told of it, and not what it does.
const PLACES: [&str; 3] = ["name", "run_directory", "notify.url"];

/// Settings, hashes, and the command that repeats a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Origin {
    /// The preset with the fewest differences.
    pub(crate) preset: &'static str,
    /// The settings that differ from it.
    pub(crate) settings: Vec<Setting>,
    /// SHA-256 of the starting model's weights.
    pub(crate) model_sha256: String,
    /// SHA-256 of the prompts; empty in runs of earlier versions.
    pub(crate) prompts_sha256: String,
    /// The command that plays a run with the same settings.
    pub(crate) command: String,
    /// Whether the settings of that command were found to be those of the run.
    pub(crate) is_exact: bool,
}

/// A setting that differs from the preset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Setting {
    /// Its dotted key.
    pub(crate) key: String,
    /// The preset's value, in JSON notation.
    pub(crate) preset: Option<String>,
    /// The run's value.
    pub(crate) value: Option<String>,
}

impl Origin {
    /// The origin of the run of this identity.
    pub(super) fn of(identity: &RunIdentity) -> Self {
        let config = &identity.config;
        let candidates = Preset::ALL.into_iter().filter_map(|preset| {
            let base = preset_config(preset, Vec::new())?;
            let mut differences = base.differences(config).ok()?;
            differences.retain(|difference| !PLACES.contains(&difference.key.as_str()));
            Some((preset, differences))
        });
        let nearest = candidates.min_by_key(|(_, differences)| differences.len());
        let (preset, differences) = nearest.unwrap_or((Preset::Quick, Vec::new()));
        let assignments = assignments(&differences);
        Self {
            preset: preset.name(),
            settings: differences.into_iter().map(Setting::from).collect(),
            model_sha256: identity.model.sha256.clone(),
            prompts_sha256: identity.prompts_sha256.clone(),
            command: command(preset, &assignments),
            is_exact: leads_to(preset, &assignments, config),
        }
    }
}

impl From<Difference> for Setting {
    fn from(difference: Difference) -> Self {
        let Difference { key, before, after } = difference;
        Self { key, preset: before, value: after }
    }
}

fn preset_config(preset: Preset, overrides: Vec<Override>) -> Option<Config> {
    let layers = Layers { preset: Some(preset), files: Vec::new(), overrides };
    Config::resolve_with(&layers, &schema_of).ok().map(|resolved| resolved.config)
}

/// `key=value`, in TOML notation, which that of JSON is for texts, numbers and lists. A setting that is not
/// set needs none.
fn assignments(differences: &[Difference]) -> Vec<String> {
    let set = differences.iter().filter_map(|difference| {
        let value = difference.after.as_ref().filter(|value| *value != "null")?;
        Some(format!("{}={value}", difference.key))
    });
    set.collect()
}

fn command(preset: Preset, assignments: &[String]) -> String {
    let mut command = String::from("sppo run");
    if preset != Preset::Quick {
        command.push_str(&format!(" --preset {preset}"));
    }
    for assignment in assignments {
        command.push_str(&format!(" \\\n  --set {}", shell_quoted(assignment)));
    }
    command
}

/// Whether these settings on top of the preset are those of the run.
fn leads_to(preset: Preset, assignments: &[String], config: &Config) -> bool {
    let parsed = assignments.iter().map(|assignment| Override::parse("--set", assignment));
    let Ok(overrides) = parsed.collect::<Result<Vec<_>, _>>() else { return false };
    let Some(found) = preset_config(preset, overrides) else { return false };
    found.differences(config).is_ok_and(|differences| {
        differences.iter().all(|difference| PLACES.contains(&difference.key.as_str()))
    })
}

/// A word as a POSIX shell takes it.
#[must_use]
pub fn shell_quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sppo_core::run_directory::ModelIdentity;

    fn identity(config: Config) -> RunIdentity {
        let model =
            ModelIdentity { name: config.model.clone(), sha256: "00".into(), ..Default::default() };
        RunIdentity { config, model, prompts_sha256: String::new(), plugins: Vec::new() }
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(shell_quoted("runs/a-1"), "runs/a-1");
        assert_eq!(shell_quoted("my runs/it's"), r"'my runs/it'\''s'");
    }

    #[test]
    fn the_command_leads_to_the_settings_of_the_run() {
        let mut config = preset_config(Preset::Paper, Vec::new()).unwrap();
        config.training.eta = 250.5;
        config.model = "my models/it's".into();
        config.name = "elsewhere".into();
        let origin = Origin::of(&identity(config));
        assert_eq!((origin.preset, origin.is_exact), ("paper", true));
        let keys: Vec<&str> = origin.settings.iter().map(|setting| &*setting.key).collect();
        assert_eq!(keys, ["model", "training.eta"]);
        let expected = "sppo run --preset paper \\\n  --set 'model=\"my models/it'\\''s\"' \\\n  \
                        --set training.eta=250.5";
        assert_eq!(origin.command, expected);
    }

    #[test]
    fn a_default_run_is_repeated_without_any_setting() {
        let origin = Origin::of(&identity(preset_config(Preset::Quick, Vec::new()).unwrap()));
        assert_eq!((origin.command.as_str(), origin.is_exact), ("sppo run", true));
        assert_eq!(origin.settings, []);
    }
}
