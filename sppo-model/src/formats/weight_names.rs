//! Weights by their names in the whole model, whatever the model was wrapped in when they were saved.
//!
//! Compilers and training frameworks put a name of their own before every weight, or in the middle;
//! `AutoModel` and the like save without the outermost name. The weights are the same, so they are found
//! by the rest of their names, if all are found below one prefix and no other has them too.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use super::WeightFile;
use super::quantized_matrix::QuantizedMatrix;
use crate::error::{ModelError, Result};

/// Modules that wrap others and may stand anywhere in a name.
const WRAPPERS: [&str; 5] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "base_layer",
];

/// The name of a model that is trained on several devices.
const OUTERMOST: &str = "module.";

/// The outermost name of the weights of a language model's layers.
const MODEL: &str = "model.";

/// A name without the modules that only wrap others.
pub(crate) fn without_wrappers(name: &str) -> String {
    let parts = name.split('.').filter(|part| !WRAPPERS.contains(part));
    parts.collect::<Vec<_>>().join(".")
}

/// A weight file whose weights go by their names in the whole model.
#[derive(Debug)]
pub(crate) struct NamedWeights<F> {
    file: F,
    /// Names in the model of weights that are stored under others.
    stored: HashMap<String, String>,
}

impl<F: WeightFile> NamedWeights<F> {
    /// Finds the `wanted` weights. A weight of `alternatives` may be stored under the name of its
    /// alternative, with which it shares its values. What is not found keeps its name.
    ///
    /// # Errors
    /// When a weight could be one of several tensors.
    pub(crate) fn find(file: F, wanted: &[String], alternatives: &[[&str; 2]]) -> Result<Self> {
        let stored = match wanted.iter().all(|name| file.shape(name).is_some()) {
            true => HashMap::new(),
            false => stored_names(&file, wanted, alternatives)?,
        };
        Ok(Self { file, stored })
    }

    /// Takes the names of wrappers out of all names.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub(crate) fn unwrapped(file: F) -> Result<Self> {
        let names = Tensors::of(&file)?.stored.into_iter();
        let changed = names
            .map(|(name, stored)| {
                (name.trim_start_matches(OUTERMOST).to_string(), stored.to_string())
            })
            .filter(|(name, _)| file.shape(name).is_none());
        let stored = changed.collect();
        Ok(Self { file, stored })
    }

    fn stored<'a>(&'a self, name: &'a str) -> &'a str {
        self.stored.get(name).map_or(name, String::as_str)
    }
}

impl<F: WeightFile> WeightFile for NamedWeights<F> {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.file.shape(self.stored(name))
    }

    fn values(&self, name: &str) -> Result<Vec<f32>> {
        self.file.values(self.stored(name))
    }

    fn quantized(&self, name: &str) -> Result<Option<QuantizedMatrix>> {
        self.file.quantized(self.stored(name))
    }

    fn quantized_bytes(&self, name: &str) -> Option<u64> {
        self.file.quantized_bytes(self.stored(name))
    }

    /// The model's names of the weights that were found, and stored names of other tensors.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        let found: BTreeSet<&str> = self.stored.values().map(String::as_str).collect();
        let others = self.file.names().filter(move |name| !found.contains(name));
        Box::new(self.stored.keys().map(String::as_str).chain(others))
    }

    fn is_bf16(&self, name: &str) -> bool {
        self.file.is_bf16(self.stored(name))
    }

    fn paths(&self) -> Vec<&Path> {
        self.file.paths()
    }

    fn are_alike(&self, one: &str, other: &str) -> bool {
        self.file.are_alike(self.stored(one), self.stored(other))
    }
}

/// Tensors by their names without wrappers.
struct Tensors<'a> {
    stored: HashMap<String, &'a str>,
    path: &'a Path,
}

impl<'a> Tensors<'a> {
    fn of(file: &'a dyn WeightFile) -> Result<Self> {
        let path = file.paths().first().copied().unwrap_or(Path::new(""));
        let mut stored: HashMap<String, &str> = HashMap::new();
        let own = file.names().map(|name| (name, name));
        for (name, tensor) in own.chain(file.shared_names()) {
            match stored.insert(without_wrappers(name), tensor) {
                Some(earlier) if earlier != tensor => {
                    return Err(ambiguous(path, name, earlier, tensor));
                }
                _ => {}
            }
        }
        Ok(Self { stored, path })
    }

    /// The only tensor whose name ends in this one.
    fn ending_in(&self, name: &str) -> Result<Option<&'a str>> {
        let ends = |stored: &str| {
            stored
                .strip_suffix(name)
                .is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        let found: BTreeSet<&str> = self
            .stored
            .iter()
            .filter(|(stored, _)| ends(stored))
            .map(|(_, tensor)| *tensor)
            .collect();
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(one), Some(other)) => Err(ambiguous(self.path, name, one, other)),
            (one, _) => Ok(one),
        }
    }

    /// What stands before the weights of the layers in place of [`MODEL`].
    fn prefix(&self, wanted: &[String], optional: &[&str]) -> Result<Option<String>> {
        let inner: Vec<&str> = wanted
            .iter()
            .filter(|name| !optional.contains(&name.as_str()))
            .filter_map(|name| name.strip_prefix(MODEL))
            .collect();
        let Some(longest) = inner.iter().max_by_key(|name| name.len()) else { return Ok(None) };
        let candidates: BTreeSet<&str> = self
            .stored
            .keys()
            .filter_map(|name| name.strip_suffix(longest))
            .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
            .collect();
        if candidates.contains(MODEL) || candidates.len() < 2 {
            let first = candidates.first().copied();
            return Ok(candidates.get(MODEL).copied().or(first).map(String::from));
        }
        let holds_all = |prefix: &&str| {
            inner.iter().all(|name| self.stored.contains_key(&format!("{prefix}{name}")))
        };
        let mut whole = candidates.into_iter().filter(holds_all);
        match (whole.next(), whole.next()) {
            (Some(one), Some(other)) => Err(ambiguous(self.path, longest, one, other)),
            (one, _) => Ok(one.map(String::from)),
        }
    }
}

/// The stored names of the wanted weights that are stored under others.
fn stored_names(
    file: &dyn WeightFile,
    wanted: &[String],
    alternatives: &[[&str; 2]],
) -> Result<HashMap<String, String>> {
    let tensors = Tensors::of(file)?;
    let optional: Vec<&str> = alternatives.iter().map(|[name, _]| *name).collect();
    let prefix = tensors.prefix(wanted, &optional)?;
    let find = |name: &str| match (name.strip_prefix(MODEL), &prefix) {
        (Some(inner), Some(prefix)) => Ok(tensors.stored.get(&format!("{prefix}{inner}")).copied()),
        (Some(_), None) => Ok(None),
        (None, _) => tensors.ending_in(name),
    };
    let mut names = HashMap::new();
    for name in wanted {
        let alternative = alternatives.iter().find(|[of, _]| of == name);
        let found = match (find(name)?, alternative) {
            (None, Some([_, other])) => find(other)?,
            (found, _) => found,
        };
        if let Some(stored) = found.filter(|stored| stored != name) {
            names.insert(name.clone(), stored.to_string());
        }
    }
    Ok(names)
}

fn ambiguous(path: &Path, name: &str, one: &str, other: &str) -> ModelError {
    ModelError::file(path, format!("the weight `{name}` could be in `{one}` or in `{other}`"))
        .with_hint("save one model only into the file, under its own names")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of tensors with these names, each of one value that tells it apart.
    #[derive(Debug)]
    struct Stored(&'static [&'static str]);

    impl WeightFile for Stored {
        fn shape(&self, name: &str) -> Option<&[usize]> {
            self.0.contains(&name).then_some(&[1])
        }

        fn values(&self, name: &str) -> Result<Vec<f32>> {
            let place = self.0.iter().position(|stored| *stored == name);
            place.map(|place| vec![place as f32]).ok_or(ModelError::Cancelled)
        }

        fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
            Box::new(self.0.iter().copied())
        }

        fn is_bf16(&self, _: &str) -> bool {
            false
        }

        fn paths(&self) -> Vec<&Path> {
            Vec::new()
        }
    }

    #[test]
    fn wrappers_are_taken_out_of_any_names() {
        let files = Stored(&["module._orig_mod.deberta.a", "module.b", "b", "deberta._orig_mod.c"]);
        let named = NamedWeights::unwrapped(files).unwrap();
        let value = |name| named.values(name).unwrap();
        assert_eq!([value("deberta.a"), value("b"), value("deberta.c")], [[0.0], [2.0], [3.0]]);
        let twice = Stored(&["_orig_mod.a", "a"]);
        let error = NamedWeights::unwrapped(twice).unwrap_err().to_string();
        assert!(error.contains("could be in"), "{error}");
    }

    #[test]
    fn a_score_beside_an_inner_model_is_found() {
        let wanted = ["model.norm.weight", "model.layers.0.mlp.weight", "score.weight"];
        let wanted = wanted.map(String::from);
        let files = Stored(&[
            "module.model.norm.weight",
            "module.model.layers.0.mlp.weight",
            "module.score.weight",
        ]);
        let named = NamedWeights::find(files, &wanted, &[]).unwrap();
        let values = wanted.each_ref().map(|name| named.values(name).unwrap());
        assert_eq!(values, [[0.0], [1.0], [2.0]]);
    }
}
