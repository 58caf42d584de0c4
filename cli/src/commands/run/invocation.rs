//! Commands that the user may try next, to be copied as they stand.

use std::path::Path;

use sppo_core::config::Config;

/// The name under which this program was called.
fn program() -> &'static str {
    // Cargo sets this for what it runs.
    if std::env::var_os("CARGO").is_some() { "cargo run --release --" } else { "sppo" }
}

/// Goes on with a run.
pub(super) fn resume(config: &Config) -> String {
    let elsewhere = config.run_directory != Config::default().run_directory;
    let directory = if elsewhere {
        format!(" --run-directory {}", quoted(&config.run_directory))
    } else {
        String::new()
    };
    format!("{} run --resume --name {}{directory}", program(), quoted(Path::new(&config.name)))
}

/// Talks to the model before and after.
pub(super) fn compare(before: &Path, after: &Path) -> String {
    format!("{} chat --model {} --model {}", program(), quoted(before), quoted(after))
}

/// Judges the model on other prompts.
pub(super) fn evaluate(model: &Path, against: &Path) -> String {
    format!(
        "{} eval --model {} --against {} --samples 4",
        program(),
        quoted(model),
        quoted(against)
    )
}

/// Plays on.
pub(super) fn more_iterations(config: &Config) -> String {
    let iterations = config.iterations + 2;
    format!("{} --iterations {iterations} --allow iterations", resume(config))
}

/// A path as a POSIX shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_a_shell() {
        assert_eq!(quoted(Path::new("runs/a-1")), "runs/a-1");
        assert_eq!(quoted(Path::new("my runs/it's")), r"'my runs/it'\''s'");
    }
}
