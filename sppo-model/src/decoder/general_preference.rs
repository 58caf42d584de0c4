//! General Preference Models (arXiv 2410.02197): a decoder whose head gives each response a vector, and
//! whose second head, where there is one, weighs the planes of that vector by the prompt.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::sequence_classifier::{DecoderClassifier, Head};
use super::{DecoderConfig, FAMILIES};
use crate::error::{ModelError, Result};
use crate::formats::json::read_config;
use crate::formats::safetensors::SafetensorsFiles;
use crate::formats::weight_names::{NamedWeights, without_wrappers};
use crate::formats::{JsonObject, WeightFile};
use crate::ops::Ops;

const VALUE_HEAD: &str = "value_head.weight";
const PROMPT_HEAD: &str = "prompt_head.weight";

/// The shape of a General Preference Model.
///
/// Of a sequence it gives `2 planes` numbers, the vector of the response that ends there, before it is
/// normalised; then, with a prompt head, `planes` numbers, the logits of the planes' weights where the
/// sequence is a prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GeneralPreferenceConfig {
    /// The decoder.
    pub decoder: DecoderConfig,
    /// Planes of a response's vector.
    pub planes: usize,
    /// Whether a head weighs the planes.
    pub has_prompt_head: bool,
}

impl GeneralPreferenceConfig {
    /// Whether the weights of a model directory have the head of such a model.
    pub(crate) fn is_in(directory: &Path) -> bool {
        SafetensorsFiles::open(directory).is_ok_and(|files| stored(&files, VALUE_HEAD).is_some())
    }

    /// Reads the `config.json` of a model directory, and the shapes of the heads among its weights.
    ///
    /// # Errors
    /// When they cannot be read, the family is not supported, or the heads do not fit each other.
    pub fn read(directory: &Path) -> Result<Self> {
        let files = SafetensorsFiles::open(directory)?;
        let path = directory.join("config.json");
        let json = read_config(&path)?;
        let settings = JsonObject::of(&json, &path)?;
        let model_type = settings.text("model_type")?.unwrap_or_default();
        let family = FAMILIES.iter().find(|family| family.model_type() == model_type);
        let family = family.ok_or_else(|| {
            let supported: Vec<_> = FAMILIES.iter().map(|family| family.model_type()).collect();
            settings.wrong("model_type", &format!("one of {}", supported.join(", ")))
        })?;
        let outputs = |head: &str| files.shape(stored(&files, head)?)?.first().copied();
        let (values, weights) = (outputs(VALUE_HEAD).unwrap_or_default(), outputs(PROMPT_HEAD));
        let planes = values / 2;
        if planes == 0 || !values.is_multiple_of(2) {
            return Err(ModelError::file(
                directory,
                format!("`{VALUE_HEAD}` gives {values} numbers; the vector of a response has 2, 4, 6, ..."),
            )
            .with_hint("a reward model with one number is saved as a sequence classifier with one label"));
        }
        if weights.is_some_and(|weights| weights != planes) {
            let message =
                format!("`{PROMPT_HEAD}` does not weigh the {planes} planes of `{VALUE_HEAD}`");
            return Err(ModelError::file(directory, message));
        }
        let decoder = DecoderConfig::of_family(*family, &settings)?;
        Ok(Self { decoder, planes, has_prompt_head: weights.is_some() })
    }

    /// Numbers per sequence.
    #[must_use]
    pub fn width(&self) -> usize {
        self.heads().iter().map(|head| head.outputs).sum()
    }

    fn heads(&self) -> Vec<Head> {
        let value = Head { name: VALUE_HEAD.into(), outputs: 2 * self.planes };
        let prompt = Head { name: PROMPT_HEAD.into(), outputs: self.planes };
        [value].into_iter().chain(self.has_prompt_head.then_some(prompt)).collect()
    }

    /// Loads the weights. Every token counts: the last one may be spelled like padding.
    pub(crate) fn load<O: Ops>(
        &self,
        ops: &O,
        files: &dyn WeightFile,
    ) -> Result<DecoderClassifier<O>> {
        let heads = self.heads();
        let wanted = DecoderClassifier::<O>::weight_names(&self.decoder, &heads);
        let files = NamedWeights::find(files, &wanted, &[])?;
        DecoderClassifier::load(ops, &self.decoder, None, &heads, &files)
    }
}

/// The stored name of a head, whatever wrapped the model when it was saved.
fn stored<'a>(files: &'a SafetensorsFiles, head: &str) -> Option<&'a str> {
    files.names().find(|name| {
        let name = without_wrappers(name);
        name.strip_prefix("module.").unwrap_or(&name) == head
    })
}
