//! The modules that adapters announce: lists of names and ends of paths, or regular expressions.
//!
//! The matrices in the file say which modules are adapted. What is announced serves to notice matrices that
//! are missing.

use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use crate::error::{ModelError, Result};
use crate::formats::JsonObject;

/// PEFT's name of all matrices of all layers.
const ALL_LINEAR: &str = "all-linear";
/// The part of a module's path before the number of its layer.
const LAYERS: &str = "layers";

/// The size of an expression of one module, in bytes: there may be one for every module.
const LARGEST: usize = 256 << 10;

/// A regular expression of a module's whole path.
#[derive(Debug)]
pub(super) struct ModulePattern(Regex);

impl ModulePattern {
    /// The path ends in what the expression describes, after a point.
    pub(super) fn of_path_end(expression: &str, file: &Path) -> Result<Self> {
        let of_end =
            RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{expression})$")).size_limit(LARGEST).build();
        of_end.map(Self).map_err(|_| {
            ModelError::file(
                file,
                format!(
                    "`{expression}` is neither a module nor a regular expression that is supported"
                ),
            )
            .with_hint("write the path of the module, such as model.layers.0.self_attn.q_proj")
        })
    }

    /// The whole path is what the expression describes; `None` for Python's expressions that are not
    /// supported here.
    fn of_path(expression: &str) -> Option<Self> {
        Regex::new(&format!("^(?:{expression})$")).ok().map(Self)
    }

    pub(super) fn matches(&self, module: &str) -> bool {
        self.0.is_match(module)
    }
}

/// Names of modules, or an expression.
#[derive(Debug)]
enum Names {
    /// Ends of paths.
    Ends(Vec<String>),
    /// A regular expression of the path, if it is supported.
    Expression(Option<ModulePattern>),
}

impl Names {
    /// Whether a module is one of these; `None` where that cannot be told.
    fn contain(&self, module: &str) -> Option<bool> {
        match self {
            Self::Ends(ends) => Some(ends.iter().any(|end| is_end_of(end, module))),
            Self::Expression(pattern) => pattern.as_ref().map(|pattern| pattern.matches(module)),
        }
    }
}

fn is_end_of(end: &str, module: &str) -> bool {
    module.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// What is announced to be adapted.
#[derive(Debug)]
pub(super) struct Targets {
    /// `None`: all matrices of all layers.
    names: Option<Names>,
    excluded: Option<Names>,
    /// Numbers of layers; `None` is all.
    layers: Option<Vec<u64>>,
    /// Modules that are stored whole.
    pub(super) whole: Vec<String>,
}

impl Targets {
    pub(super) fn read(config: &JsonObject<'_>) -> Result<Self> {
        let names = match config.get("target_modules") {
            Some(Value::String(all)) if all.eq_ignore_ascii_case(ALL_LINEAR) => None,
            _ => Some(names_of(config, "target_modules")?.unwrap_or(Names::Expression(None))),
        };
        if matches!(&names, Some(Names::Ends(ends)) if ends.is_empty()) {
            return Err(config.wrong("target_modules", "names of modules"));
        }
        Ok(Self {
            names,
            excluded: names_of(config, "exclude_modules")?,
            layers: layers(config)?,
            whole: config
                .texts("modules_to_save")?
                .unwrap_or_default()
                .into_iter()
                .map(String::from)
                .collect(),
        })
    }

    /// Whether a module of a layer, or the head, is announced; `None` where only the file tells.
    pub(super) fn announce(&self, module: &str) -> Option<bool> {
        let layer = layer_of(module);
        let in_layers = match (&self.layers, layer) {
            (None, _) => true,
            (Some(numbers), Some(layer)) => numbers.contains(&layer),
            (Some(_), None) => false,
        };
        let excluded = match &self.excluded {
            Some(names) => names.contain(module)?,
            None => false,
        };
        if !in_layers || excluded || self.is_whole(module) {
            return Some(false);
        }
        match &self.names {
            Some(names) => names.contain(module),
            None => Some(layer.is_some()),
        }
    }

    /// Whether a module is one of those that are stored whole, or within one.
    pub(super) fn is_whole(&self, module: &str) -> bool {
        let parts: Vec<&str> = module.split('.').collect();
        self.whole.iter().any(|whole| {
            let whole: Vec<&str> = whole.split('.').collect();
            parts.windows(whole.len()).any(|window| window == whole)
        })
    }
}

/// The number of the layer that a module belongs to.
fn layer_of(module: &str) -> Option<u64> {
    let mut parts = module.split('.').skip_while(|part| *part != LAYERS).skip(1);
    parts.next()?.parse().ok()
}

/// A list of names, or an expression; `None` where there are none.
fn names_of(config: &JsonObject<'_>, key: &str) -> Result<Option<Names>> {
    Ok(match config.get(key) {
        None => None,
        Some(Value::String(expression)) if expression.is_empty() => None,
        Some(Value::String(expression)) => {
            Some(Names::Expression(ModulePattern::of_path(expression)))
        }
        Some(_) => {
            let ends = config.texts(key)?.unwrap_or_default();
            Some(Names::Ends(ends.into_iter().map(String::from).collect()))
        }
    })
}

/// The layers in `layers_to_transform`: a number or several.
fn layers(config: &JsonObject<'_>) -> Result<Option<Vec<u64>>> {
    const KEY: &str = "layers_to_transform";
    let patterns = match config.get("layers_pattern") {
        None => Vec::new(),
        Some(Value::String(pattern)) => vec![pattern.as_str()],
        Some(_) => config.texts("layers_pattern")?.unwrap_or_default(),
    };
    let numbers = match config.get(KEY) {
        None => None,
        Some(Value::Array(numbers)) => {
            numbers.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>()
        }
        Some(number) => number.as_u64().map(|number| vec![number]),
    };
    let is_set = config.get(KEY).is_some();
    if is_set && numbers.is_none() {
        return Err(config.wrong(KEY, "numbers of layers"));
    }
    let numbers = numbers.filter(|numbers| !numbers.is_empty());
    if numbers.is_some() && !(patterns.is_empty() || patterns.contains(&LAYERS) || patterns == [""])
    {
        return Err(
            config.wrong("layers_pattern", &format!("`{LAYERS}`, the list of this model's layers"))
        );
    }
    Ok(numbers)
}
