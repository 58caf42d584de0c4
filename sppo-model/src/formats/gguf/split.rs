//! GGUF models in several files, as `llama-gguf-split` writes them.

use std::path::{Path, PathBuf};

use super::metadata::GgufMetadata;
use crate::error::{ModelError, Result};

const NUMBER_KEY: &str = "split.no";
const COUNT_KEY: &str = "split.count";
const TENSOR_COUNT_KEY: &str = "split.tensors.count";
/// The names of parts have room for five digits.
const MOST_PARTS: u64 = 99_999;
const REMEDY: &str = "put all parts into one directory under the names that llama.cpp gave them and name the \
                      first, or join them with `llama-gguf-split --merge`";

/// The parts of a model, as one of its files tells them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// This part, from 0.
    number: u64,
    /// Parts of the model, at least two.
    count: u64,
    /// Tensors in all parts.
    tensors: Option<u64>,
}

impl Split {
    /// The parts that the metadata of a file tell of; `None` for a whole model.
    pub(super) fn of(metadata: &GgufMetadata) -> Result<Option<Self>> {
        let number = metadata.integer(NUMBER_KEY)?;
        let count = match (metadata.integer(COUNT_KEY)?, number) {
            (Some(0 | 1) | None, Some(0) | None) => return Ok(None),
            (count, _) => count.ok_or_else(|| metadata.missing(COUNT_KEY))?,
        };
        let number = number.ok_or_else(|| metadata.missing(NUMBER_KEY))?;
        if count > MOST_PARTS || number >= count {
            return Err(ModelError::file(
                metadata.path(),
                format!(
                    "cannot be part {} of {count}, as `{NUMBER_KEY}` and `{COUNT_KEY}` have it",
                    number.saturating_add(1)
                ),
            )
            .with_hint("download the file again"));
        }
        let tensors = metadata.integer(TENSOR_COUNT_KEY)?;
        Ok(Some(Self { number, count, tensors }))
    }

    /// The files of the second and all further parts, beside the first.
    pub(super) fn other_parts(&self, first: &Path) -> Result<Vec<PathBuf>> {
        let Self { number, count, .. } = *self;
        let name = first.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let part = |number: u64| format!("-{:05}-of-{count:05}.gguf", number + 1);
        let described = format!("is part {} of {count} of a model", number + 1);
        let Some(stem) = name.strip_suffix(&part(number)) else {
            let message = format!(
                "{described}, but its name does not end in `{}`, so the other parts cannot be found",
                part(number)
            );
            return Err(ModelError::file(first, message).with_hint(REMEDY));
        };
        let file = |number: u64| first.with_file_name(format!("{stem}{}", part(number)));
        if number > 0 {
            return Err(ModelError::file(first, described)
                .with_hint(format!("name the first part: {}", file(0).display())));
        }
        let others: Vec<PathBuf> = (1..count).map(file).collect();
        match others.iter().find(|path| !path.is_file()) {
            None => Ok(others),
            Some(missing) => Err(ModelError::file(
                first,
                format!("{described}, and {} is missing", missing.display()),
            )
            .with_hint(REMEDY)),
        }
    }

    /// Refuses a file that stands in the place of a part and is another.
    pub(super) fn check_part(&self, number: usize, metadata: &GgufMetadata) -> Result<()> {
        let found = Self::of(metadata)?;
        let expected = (number as u64, self.count);
        match found {
            Some(part) if (part.number, part.count) == expected => Ok(()),
            _ => Err(ModelError::file(
                metadata.path(),
                format!("is not part {} of {} by its metadata", number + 1, self.count),
            )
            .with_hint("the parts are not of one model; download them again")),
        }
    }

    /// Refuses parts that together hold more or fewer tensors than the model.
    pub(super) fn check_tensor_count(&self, found: usize, first: &Path) -> Result<()> {
        match self.tensors {
            Some(expected) if expected != found as u64 => Err(ModelError::file(
                first,
                format!(
                    "its {} parts hold {found} tensors, and the model has {expected}",
                    self.count
                ),
            )
            .with_hint("the parts are not of one model; download them again")),
            _ => Ok(()),
        }
    }
}
