//! Low-rank adapters in the layout of Python's PEFT: `adapter_config.json` and
//! `adapter_model.safetensors`.

mod config;
mod targets;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sppo_plugin::LoraSettings;

pub(crate) use self::write::{ADAPTER_CONFIG, check_lora_settings};
pub use self::write::{TARGET_MODULES, write_adapters};

use self::config::{AdapterConfig, BY_PEFT};
use self::write::{ADAPTER_WEIGHTS, PREFIX, may_be_adapted};
use super::WeightFile;
use super::json::{JsonObject, read_json};
use super::safetensors::{SINGLE_FILE, SafetensorsFiles, no_weights};
use super::weight_names::without_wrappers;
use crate::error::{ModelError, Result};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The values of an adapter's matrices, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterValues {
    /// `[rank, input]`.
    pub a: Vec<f32>,
    /// `[output, rank]`.
    pub b: Vec<f32>,
}

/// The checkpoint names of a module's `A` and `B`, without the prefix that PEFT puts before them.
#[must_use]
pub fn adapter_names(module: &str) -> [String; 2] {
    ["lora_A", "lora_B"].map(|matrix| format!("{module}.{matrix}.weight"))
}

/// What stands before the names of the model's own modules, beside [`PREFIX`].
const OUTER_PARTS: [&str; 4] = ["base_model", "model", "module", "language_model"];
const BELONGS_ELSEWHERE: &str = "the adapters do not belong to this model";

/// Adapters on disk, opened for reading.
#[derive(Debug)]
pub struct AdapterFiles {
    directory: PathBuf,
    config: AdapterConfig,
    weights: SafetensorsFiles,
    /// The stored names of each module's `A` and `B`.
    matrices: BTreeMap<String, [Option<String>; 2]>,
    /// Weights that stand in place of the model's, and their stored names.
    whole: BTreeMap<String, String>,
}

/// A stored tensor.
enum Part {
    /// `A` (0) or `B` (1) of a module.
    Matrix(String, usize),
    /// A weight in place of the model's.
    Whole(String),
}

impl AdapterFiles {
    /// Whether a directory holds adapters rather than a whole model.
    pub(crate) fn are_in(directory: &Path) -> bool {
        directory.join(ADAPTER_CONFIG).is_file()
    }

    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let path = directory.join(ADAPTER_CONFIG);
        let json = read_json(&path)?;
        let config = AdapterConfig::read(&JsonObject::of(&json, &path)?)?;
        let weights = directory.join(ADAPTER_WEIGHTS);
        if !weights.is_file() {
            return Err(no_adapters(directory));
        }
        let mut adapters = Self {
            directory: directory.to_path_buf(),
            config,
            weights: SafetensorsFiles::open_file(weights)?,
            matrices: BTreeMap::new(),
            whole: BTreeMap::new(),
        };
        adapters.sort_tensors()?;
        Ok(adapters)
    }

    /// Finds the place of every stored tensor.
    fn sort_tensors(&mut self) -> Result<()> {
        let stored: BTreeSet<String> = self.weights.names().map(String::from).collect();
        for name in stored {
            let earlier = match part(&name) {
                Some(Part::Matrix(module, matrix)) => {
                    self.matrices.entry(module).or_default()[matrix].replace(name.clone())
                }
                Some(Part::Whole(weight)) => self.whole.insert(weight, name.clone()),
                None => {
                    return Err(self
                        .refused(format!(
                            "holds `{name}`, which is not part of a plain LoRA adapter"
                        ))
                        .with_hint(BY_PEFT));
                }
            };
            if let Some(earlier) = earlier {
                return Err(self
                    .refused(format!("holds the same matrix as `{earlier}` and as `{name}`"))
                    .with_hint("save one adapter only"));
            }
        }
        Ok(())
    }

    /// The model that the adapters were made for: a path, or an id on the hub.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.config.base
    }

    /// The hub's revision of that model, where one is recorded.
    #[must_use]
    pub fn revision(&self) -> Option<&str> {
        self.config.revision.as_deref()
    }

    /// Rank, alpha and the like, as they were trained with; the seed is not recorded.
    ///
    /// # Errors
    /// When they differ between modules or layers, or whole weights are stored too: such adapters can be
    /// merged, but not trained on.
    pub fn settings<'a>(&self, weights: impl Iterator<Item = &'a str>) -> Result<LoraSettings> {
        let modules: Vec<&str> = self.matrices.keys().map(String::as_str).collect();
        let targets: BTreeSet<&str> =
            modules.iter().filter_map(|module| module.rsplit('.').next()).collect();
        let of = |module: &str| (self.config.rank(module), self.config.alpha(module));
        let first = modules.first().copied().unwrap_or_default();
        let announced = weights.filter_map(|name| name.strip_suffix(".weight")).filter(|module| {
            module.rsplit('.').next().is_some_and(|target| targets.contains(target))
        });
        let differs = modules.iter().any(|module| of(module) != of(first))
            || announced.count() != modules.len()
            || targets.iter().any(|target| !may_be_adapted(target))
            || !self.whole.is_empty();
        if differs {
            return Err(self
                .refused("ranks, scales or modules of these adapters differ between layers, or whole weights are among them, which cannot be trained further")
                .with_hint("merge the adapters first: sppo merge"));
        }
        let (rank, alpha) = of(first);
        Ok(LoraSettings {
            rank,
            alpha,
            dropout: self.config.dropout,
            target_modules: targets.into_iter().map(String::from).collect(),
            rank_stabilized: self.config.rank_stabilized,
            seed: 0,
        })
    }

    /// The two files.
    pub(crate) fn paths(&self) -> [PathBuf; 2] {
        [ADAPTER_CONFIG, ADAPTER_WEIGHTS].map(|name| self.directory.join(name))
    }

    /// Factor of `B A` for a module.
    #[must_use]
    pub fn scale(&self, module: &str) -> f64 {
        let rank = self.config.rank(module) as f64;
        self.config.alpha(module) / if self.config.rank_stabilized { rank.sqrt() } else { rank }
    }

    /// The values of a weight that stands in place of the model's; `None` where there is none.
    ///
    /// # Errors
    /// When its number format is not supported or it is damaged.
    pub(crate) fn whole(&self, weight: &str) -> Result<Option<Vec<f32>>> {
        self.whole.get(weight).map(|name| self.weights.values(name)).transpose()
    }

    /// The adapter of a module (for instance `model.layers.0.self_attn.q_proj`), a matrix of
    /// `[output, input]`; `None` where it has none.
    ///
    /// # Errors
    /// When one of its two matrices is missing, has another shape or is damaged.
    pub fn values(&self, module: &str, shape: [usize; 2]) -> Result<Option<AdapterValues>> {
        let Some([a, b]) = self.names(module, shape)? else { return Ok(None) };
        Ok(Some(AdapterValues { a: self.weights.values(a)?, b: self.weights.values(b)? }))
    }

    /// The stored names of a module's two matrices, which have the right shapes.
    fn names(&self, module: &str, [output, input]: [usize; 2]) -> Result<Option<[&str; 2]>> {
        let Some(names) = self.matrices.get(module) else { return Ok(None) };
        let rank = self.config.rank(module);
        let wanted = adapter_names(module).map(|name| format!("{PREFIX}{name}"));
        for ((name, wanted), expected) in
            names.iter().zip(&wanted).zip([[rank, input], [output, rank]])
        {
            match name.as_ref().and_then(|name| self.weights.shape(name)) {
                Some(found) if found == expected => {}
                Some(found) => {
                    return Err(self
                        .refused(format!("the adapter `{wanted}` has the shape {found:?}; {expected:?} was expected"))
                        .with_hint(BELONGS_ELSEWHERE));
                }
                None => {
                    return Err(self
                        .refused(format!("the adapter `{wanted}` is missing"))
                        .with_hint("the file is incomplete; save the adapters again"));
                }
            }
        }
        let [a, b] = names;
        Ok(a.as_deref().zip(b.as_deref()).map(|(a, b)| [a, b]))
    }

    /// Refuses adapters that have no place in a model, or lack one that the settings announce.
    /// `weights` are the names and shapes of all weights of the model.
    pub(crate) fn check<'a>(
        &self,
        weights: impl Iterator<Item = (&'a str, &'a [usize])>,
    ) -> Result<()> {
        let weights: BTreeMap<&str, &[usize]> = weights.collect();
        let mut placed = BTreeSet::new();
        for (name, shape) in &weights {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            let Ok(shape) = <[usize; 2]>::try_from(*shape) else { continue };
            let announced = self.config.targets.announce(module);
            match self.names(module, shape)? {
                Some(names) if announced != Some(false) => placed.extend(names),
                None if announced == Some(true)
                    && module.rsplit('.').next().is_some_and(may_be_adapted) =>
                {
                    return Err(self
                        .refused(format!("there is no adapter of `{module}`"))
                        .with_hint(BELONGS_ELSEWHERE));
                }
                _ => {}
            }
        }
        self.check_whole(&weights)?;
        placed.extend(self.whole.values().map(String::as_str));
        let found = self.weights.names().count();
        match self.weights.names().filter(|name| !placed.contains(name)).min() {
            None => Ok(()),
            Some(first) => Err(self
                .refused(format!(
                    "holds {found} matrices, of which the model has a place for {}; `{first}` has none",
                    placed.len()
                ))
                .with_hint(BELONGS_ELSEWHERE)),
        }
    }

    /// Refuses whole weights that cannot take the place of the model's, or that are announced and missing.
    fn check_whole(&self, weights: &BTreeMap<&str, &[usize]>) -> Result<()> {
        let is_stored = |module: &String| {
            let end = format!(".{module}.");
            self.whole.keys().any(|weight| format!(".{weight}").contains(&end))
        };
        if let Some(missing) = self.config.targets.whole.iter().find(|module| !is_stored(module)) {
            return Err(self
                .refused(format!(
                    "`modules_to_save` names `{missing}`, of which there are no weights here"
                ))
                .with_hint("the file is incomplete; save the adapters again"));
        }
        for (weight, stored) in &self.whole {
            let (found, expected) = (self.weights.shape(stored), weights.get(weight.as_str()));
            if found != expected.copied() {
                return Err(self
                    .refused(format!("the whole weight `{stored}` has the shape {found:?}; the model has {expected:?}"))
                    .with_hint(BY_PEFT));
            }
        }
        let is_tied = !weights.contains_key(HEAD);
        if is_tied && self.whole.contains_key(EMBEDDING) {
            return Err(self
                .refused("holds an embedding table of its own for a model whose head is its embedding table")
                .with_hint(BY_PEFT));
        }
        Ok(())
    }

    fn refused(&self, message: impl Into<String>) -> ModelError {
        ModelError::file(self.directory.join(ADAPTER_WEIGHTS), message)
    }
}

/// The part of an adapter that a stored tensor is, or `None` for parts of other variants.
fn part(stored: &str) -> Option<Part> {
    let name = without_wrappers(stored);
    let mut parts: Vec<&str> = name.split('.').collect();
    let kind = parts.pop()?;
    if let Some(matrix) = parts.iter().position(|part| part.starts_with("lora_")) {
        let number =
            ["lora_A", "lora_B"].iter().position(|matrix_name| parts[matrix] == *matrix_name)?;
        // the name of the adapter may follow
        let is_alone = kind == "weight" && parts.len() <= matrix + 2;
        let module = own_name(&parts[..matrix])?;
        return is_alone.then_some(Part::Matrix(module, number));
    }
    if let Some(saved) = parts.iter().position(|part| *part == "modules_to_save") {
        parts.truncate(saved);
    }
    let module = own_name(&parts).filter(|_| ["weight", "bias"].contains(&kind))?;
    Some(Part::Whole(format!("{module}.{kind}")))
}

/// The name of a module in the whole model, whatever the model was wrapped in.
fn own_name(parts: &[&str]) -> Option<String> {
    let is_first = |part: &&str| ["layers", "embed_tokens", "norm", "lm_head"].contains(part);
    let first = parts.iter().position(is_first)?;
    let (outer, own) = parts.split_at(first);
    let own = own.join(".");
    let is_known = outer.iter().all(|part| OUTER_PARTS.contains(part));
    is_known.then(|| if own == "lm_head" { own } else { format!("model.{own}") })
}

/// Says what a directory holds in place of adapters.
fn no_adapters(directory: &Path) -> ModelError {
    if directory.join(SINGLE_FILE).is_file() {
        return ModelError::file(
            directory,
            format!("holds {ADAPTER_CONFIG}, but no {ADAPTER_WEIGHTS} beside it"),
        )
        .with_hint(format!("remove {ADAPTER_CONFIG} to use the whole model in {SINGLE_FILE}"));
    }
    no_weights(directory, ADAPTER_WEIGHTS, "load them with peft and save_pretrained()")
}

/// Reads an `adapter_config.json`, and what it says of some modules: for fuzzing.
#[cfg(fuzzing)]
pub fn read_adapter_config(content: &[u8]) {
    let path = Path::new(ADAPTER_CONFIG);
    let Ok(json) = serde_json::from_slice(content) else { return };
    let Ok(object) = JsonObject::of(&json, path) else { return };
    let Ok(config) = AdapterConfig::read(&object) else { return };
    for module in ["model.layers.0.self_attn.q_proj", "model.layers.11.mlp.up_proj", "lm_head"] {
        let _ = (config.rank(module), config.alpha(module), config.targets.announce(module));
    }
}
