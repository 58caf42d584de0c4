//! Weights on their way from rank 0 to the others, in the order in which a model asks for them.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::collective::Channel;
use super::protocol::{decode, encode};
use crate::error::{ModelError, Result};
use crate::formats::WeightFile;

/// Numbers that travel as little-endian bytes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Numbers(pub(super) Vec<f32>);

impl Serialize for Numbers {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|number| number.to_le_bytes()).collect();
        serde_bytes::Bytes::new(&bytes).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?;
        let number = |bytes: &[u8]| bytes.try_into().map(f32::from_le_bytes).unwrap_or(f32::NAN);
        Ok(Self(bytes.chunks_exact(size_of::<f32>()).map(number).collect()))
    }
}

/// One message of an exchange.
#[derive(Debug, Serialize, Deserialize)]
enum Parcel<T> {
    Value(T),
    /// Rank 0 could not read it.
    Failed(String),
    End,
}

/// The weights of one model on their way. Rank 0 reads and sends each; on the others the same calls receive
/// them. All end it by [`Self::finish`], also after an error.
pub(super) struct Exchange<'a> {
    channel: &'a dyn Channel,
    ended: Cell<bool>,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(channel: &'a dyn Channel) -> Self {
        Self { channel, ended: Cell::new(false) }
    }

    /// A value that rank 0 reads and all get.
    pub(super) fn pass<T>(&self, read: impl FnOnce() -> Result<T>) -> Result<T>
    where
        T: Serialize + DeserializeOwned,
    {
        if self.channel.rank() == 0 {
            let own = read();
            match &own {
                Ok(value) => self.send(&Parcel::Value(value))?,
                Err(error) => self.send(&Parcel::<()>::Failed(error.to_string()))?,
            }
            return own;
        }
        match self.receive()? {
            Parcel::Value(value) => Ok(value),
            Parcel::Failed(message) => Err(ModelError::Backend(format!(
                "{} cannot read a weight: {message}",
                self.channel.name(0)
            ))),
            Parcel::End => Err(ModelError::Backend(format!(
                "{} has sent fewer weights than this rank needs",
                self.channel.name(0)
            ))),
        }
    }

    /// Shape and row-major values of a tensor that rank 0 reads and all get.
    pub(super) fn tensor(
        &self,
        read: impl FnOnce() -> Result<(Vec<usize>, Vec<f32>)>,
    ) -> Result<(Vec<usize>, Vec<f32>)> {
        let read = || read().map(|(shape, values)| (shape, Numbers(values)));
        self.pass(read).map(|(shape, Numbers(values))| (shape, values))
    }

    /// Ends the exchange on all ranks, whatever happened to it: a rank that failed takes what still comes.
    pub(super) fn finish(self) -> Result<()> {
        if self.channel.rank() == 0 {
            return self.send(&Parcel::<()>::End);
        }
        while !self.ended.get() {
            self.receive::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn send(&self, parcel: &impl Serialize) -> Result<()> {
        let sent = encode(parcel).and_then(|bytes| self.channel.broadcast(bytes));
        sent.map(drop).map_err(ModelError::Team)
    }

    fn receive<T: DeserializeOwned>(&self) -> Result<Parcel<T>> {
        let received = self.channel.broadcast(Vec::new()).and_then(|bytes| decode(&bytes));
        let parcel = received.map_err(ModelError::Team)?;
        if matches!(parcel, Parcel::End) {
            self.ended.set(true);
        }
        Ok(parcel)
    }
}

impl std::fmt::Debug for Exchange<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Exchange").field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// The files of rank 0, whose values all ranks get when they are asked for.
#[derive(Debug)]
pub(super) struct SharedFile<'a> {
    /// The files themselves, on rank 0.
    own: Option<&'a dyn WeightFile>,
    shapes: HashMap<String, Vec<usize>>,
    exchange: &'a Exchange<'a>,
}

impl<'a> SharedFile<'a> {
    pub(super) fn new(
        own: Option<&'a dyn WeightFile>,
        shapes: &[(String, Vec<usize>)],
        exchange: &'a Exchange<'a>,
    ) -> Self {
        Self { own, shapes: shapes.iter().cloned().collect(), exchange }
    }
}

impl WeightFile for SharedFile<'_> {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shapes.get(name).map(Vec::as_slice)
    }

    fn values(&self, name: &str) -> Result<Vec<f32>> {
        let read = || own(self.own)?.values(name).map(Numbers);
        self.exchange.pass(read).map(|Numbers(values)| values)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.shapes.keys().map(String::as_str))
    }

    fn is_bf16(&self, name: &str) -> bool {
        self.own.is_some_and(|file| file.is_bf16(name))
    }

    fn paths(&self) -> Vec<&Path> {
        self.own.map_or(Vec::new(), WeightFile::paths)
    }
}

/// What rank 0 alone has.
pub(super) fn own<T>(own: Option<T>) -> Result<T> {
    own.ok_or_else(|| ModelError::Backend("rank 0 alone has the files of a model".into()))
}
