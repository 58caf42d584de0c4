//! `sppo plugin new`: a complete crate of an oracle, to be changed.

use std::path::{Path, PathBuf};

use sppo_core::{Error, Result};

use crate::terminal::Terminal;

/// The crate that new ones are made of; it is built and tested with this program.
const TEMPLATE: [(&str, &str); 3] = [
    ("Cargo.toml", include_str!("../../../../plugins/oracle-template/Cargo.toml")),
    ("README.md", include_str!("../../../../plugins/oracle-template/README.md")),
    ("src/lib.rs", include_str!("../../../../plugins/oracle-template/src/lib.rs")),
];

/// The template's dependency on the plugin interface.
const INTERFACE_IN_TEMPLATE: &str = "sppo-plugin = { path = \"../../sppo-core/interface\" }";

/// The crate of the plugin interface within the directory `sppo-core`.
const INTERFACE: &str = "interface";

pub(super) fn new(directory: &Path, core: Option<&Path>, terminal: &Terminal) -> Result<()> {
    let name = name_of(directory)?;
    let core = dependency(core)?;
    if directory.exists() {
        return Err(Error::input(directory, "is there already")
            .with_hint("choose another name; the crate gets a directory of its own"));
    }
    for (file, text) in TEMPLATE {
        let path = directory.join(file);
        let unwritable = |error: std::io::Error| {
            Error::input(&path, format!("cannot be written: {error}"))
                .with_hint("choose a directory that this user may write")
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(unwritable)?;
        }
        std::fs::write(&path, filled_in(text, &name, &core)).map_err(unwritable)?;
    }
    terminal.note(&format!(
        "wrote {}; its README.md says how to test, build and use it",
        directory.display()
    ));
    Ok(())
}

/// The plugin and its crate are called as the directory.
fn name_of(directory: &Path) -> Result<String> {
    let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && !name.contains("--")
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if is_plain {
        return Ok(name.into());
    }
    Err(Error::configuration("DIRECTORY", format!("`{name}` cannot be the name of a plugin"))
        .with_hint("use lower-case letters, digits and single `-`, for instance `my-oracle`"))
}

/// The dependency on `sppo-plugin`: from the named source, or that of this program. It is in no registry.
fn dependency(core: Option<&Path>) -> Result<String> {
    let built_from = || {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join("sppo-core");
        path.join(INTERFACE).join("Cargo.toml").is_file().then_some(path)
    };
    const HINT: &str = "name the directory `sppo-core` of a checkout with --sppo-core";
    let path: PathBuf = match core {
        Some(path) => {
            let path = path.canonicalize().unwrap_or_else(|_| path.into());
            if !path.join(INTERFACE).join("Cargo.toml").is_file() {
                return Err(Error::input(path, "is not the source of sppo-core").with_hint(HINT));
            }
            path
        }
        None => built_from().ok_or_else(|| {
            let message = "the source that this program was built from is no longer there";
            Error::configuration("--sppo-core", message).with_hint(HINT)
        })?,
    };
    let path = toml::Value::from(path.join(INTERFACE).to_string_lossy().into_owned());
    Ok(format!("sppo-plugin = {{ path = {path} }}"))
}

fn filled_in(text: &str, name: &str, core: &str) -> String {
    let stem: String = name.split('-').map(capitalised).collect();
    let stem = stem.strip_suffix("Oracle").filter(|stem| !stem.is_empty()).unwrap_or(&stem);
    text.replace(INTERFACE_IN_TEMPLATE, core)
        .replace("TemplateOracle", &format!("{stem}Oracle"))
        .replace("TemplateConfig", &format!("{stem}Config"))
        .replace("oracle_template", &name.replace('-', "_"))
        .replace("oracle-template", name)
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_template_s_name_is_left() {
        assert!(TEMPLATE[0].1.contains(INTERFACE_IN_TEMPLATE));
        for (file, text) in TEMPLATE {
            let text = filled_in(text, "my-oracle", "sppo-plugin = \"1\"");
            assert!(!text.to_lowercase().contains("template"), "{file}: {text}");
        }
        let code = filled_in(TEMPLATE[2].1, "my-oracle", "");
        assert!(code.contains("pub struct MyOracle(MyConfig);"));
        assert!(code.contains("const NAME: &'static str = \"my-oracle\";"));
    }

    #[test]
    fn names_that_cargo_would_refuse_are_refused() {
        for name in ["My", "a b", "2x", "a--b", "a-", ""] {
            assert!(name_of(Path::new(name)).is_err(), "{name}");
        }
        assert_eq!(
            name_of(Path::new("some/where/shorter2-is-better")).unwrap(),
            "shorter2-is-better"
        );
    }
}
