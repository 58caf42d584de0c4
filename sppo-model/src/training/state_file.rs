//! The optimiser's state on disk: a safetensors file of whole tensors, written and read one at a time.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, View};
use safetensors::{SafeTensors, serialize_to_file};

use super::optimizer::Training;
use crate::error::{ModelError, Result};
use crate::formats::files::{map_file, release};

/// The key of the file's metadata under which [`Training`] stands as JSON.
const METADATA_KEY: &str = "training";

/// A weight whose optimiser state is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StateLayout {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// State tensors, each of the weight's shape.
    pub(crate) count: usize,
}

/// Reads all state tensors of the weight of this number.
pub(crate) type StateSource<'a> = dyn FnMut(usize) -> Result<Vec<Vec<f32>>> + 'a;

/// An optimiser's state without its values.
pub(crate) struct StateWriter {
    pub(super) training: Training,
    pub(super) weights: Vec<StateLayout>,
}

impl StateWriter {
    /// Writes `<weight>.<index>` for every state tensor that `source` reads; no more than one weight's are
    /// held at a time.
    pub(crate) fn write(&self, source: &mut StateSource<'_>, file: &Path) -> Result<()> {
        let json = serde_json::to_string(&self.training)
            .map_err(|error| ModelError::Backend(format!("optimiser state: {error}")))?;
        let reader = RefCell::new(Reader { source, last: None, failure: None });
        let tensors = self.weights.iter().enumerate().flat_map(|(weight, layout)| {
            let reader = &reader;
            (0..layout.count).map(move |index| {
                let tensor = StoredTensor { layout, weight, index, reader };
                (state_name(&layout.name, index), tensor)
            })
        });
        let metadata = HashMap::from([(METADATA_KEY.to_string(), json)]);
        let written = serialize_to_file(tensors, Some(metadata), file);
        if let Some(failure) = reader.into_inner().failure {
            return Err(failure);
        }
        written.map_err(|error| {
            ModelError::file(file, format!("cannot be written: {error}"))
                .with_hint("check that its directory exists, is writable and has room")
        })
    }
}

fn state_name(weight: &str, index: usize) -> String {
    format!("{weight}.{index}")
}

/// Source of tensors that are asked for one after the other, those of a weight together.
struct Reader<'a, 'b> {
    source: &'a mut StateSource<'b>,
    last: Option<(usize, Vec<Vec<f32>>)>,
    failure: Option<ModelError>,
}

impl Reader<'_, '_> {
    fn bytes(&mut self, weight: usize, index: usize, length: usize) -> Vec<u8> {
        if self.failure.is_none() && self.last.as_ref().is_none_or(|(last, _)| *last != weight) {
            self.last = None;
            match (self.source)(weight) {
                Ok(state) => self.last = Some((weight, state)),
                Err(error) => self.failure = Some(error),
            }
        }
        let state = self.last.as_ref().and_then(|(_, state)| state.get(index));
        match state.filter(|values| values.len() == length) {
            Some(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            None => {
                self.failure.get_or_insert_with(|| {
                    ModelError::Backend("the optimiser's state changed while it was saved".into())
                });
                Vec::new()
            }
        }
    }
}

/// A tensor that is read when it is written.
struct StoredTensor<'a, 'b, 'c> {
    layout: &'a StateLayout,
    weight: usize,
    index: usize,
    reader: &'a RefCell<Reader<'b, 'c>>,
}

impl View for StoredTensor<'_, '_, '_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.layout.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let length = self.layout.shape.iter().product();
        self.reader.borrow_mut().bytes(self.weight, self.index, length).into()
    }

    fn data_len(&self) -> usize {
        self.layout.shape.iter().product::<usize>() * size_of::<f32>()
    }
}

/// A file that [`StateWriter`] wrote, with the state of every weight of a model.
pub(crate) struct StoredState {
    path: PathBuf,
    map: Mmap,
    data_start: usize,
    metadata: Metadata,
    pub(super) training: Training,
    names: Vec<String>,
}

impl StoredState {
    /// Opens a file, which must hold the state of these weights and no others.
    pub(super) fn open(
        path: &Path,
        weights: impl Iterator<Item = (String, Vec<usize>)>,
    ) -> Result<Self> {
        let map = map_file(path)?;
        let unreadable = |error| damaged(path, format!("is not a safetensors file: {error}"));
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(unreadable)?;
        let training: Training = (metadata.metadata().as_ref())
            .and_then(|metadata| serde_json::from_str(metadata.get(METADATA_KEY)?).ok())
            .ok_or_else(|| damaged(path, "holds no optimiser state".into()))?;
        let (data_start, path) = (header + size_of::<u64>(), path.to_path_buf());
        let mut stored = Self { path, map, data_start, metadata, training, names: Vec::new() };
        stored.require(weights)?;
        Ok(stored)
    }

    /// Checks that the tensors are all of these weights, and have their shapes.
    fn require(&mut self, weights: impl Iterator<Item = (String, Vec<usize>)>) -> Result<()> {
        let mut used = 0;
        for (name, shape) in weights {
            for index in 0.. {
                let Some(info) = self.metadata.info(&state_name(&name, index)) else { break };
                if info.dtype != Dtype::F32 || info.shape != shape {
                    let message = format!("the state of `{name}` does not have its shape");
                    return Err(damaged(&self.path, message));
                }
                used += 1;
            }
            self.names.push(name);
        }
        match self.metadata.tensors().len() - used {
            0 => Ok(()),
            more => Err(damaged(&self.path, format!("{more} of its tensors belong to no weight"))),
        }
    }

    /// Steps that were taken when it was written.
    pub(crate) fn steps(&self) -> u64 {
        self.training.steps()
    }

    /// All state tensors of the weight of this number.
    pub(crate) fn of_weight(&self, weight: usize) -> Result<Vec<Vec<f32>>> {
        let name = self.names.get(weight).map_or("", String::as_str);
        let infos = (0..).map_while(|index| self.metadata.info(&state_name(name, index)));
        let values = infos.map(|info| {
            let (start, end) = info.data_offsets;
            let range = self.data_start + start..self.data_start + end;
            let bytes = self.map.get(range.clone());
            let bytes = bytes.ok_or_else(|| damaged(&self.path, "is cut short".into()))?;
            let values = bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value));
            let values = values.collect();
            release(&self.map, range);
            Ok(values)
        });
        values.collect()
    }

    /// Refuses the state of another optimiser.
    pub(super) fn require_optimizer_of(&self, training: &Training) -> Result<()> {
        let (saved, used) = (self.training.optimizer(), training.optimizer());
        if saved == used {
            return Ok(());
        }
        let message = format!("holds the state of {saved:?}, but training uses {used:?}");
        Err(damaged(&self.path, message))
    }
}

fn damaged(path: &Path, message: String) -> ModelError {
    ModelError::file(path, message)
        .with_hint("the file is damaged or belongs to another run; train from the start")
}
