//! Bounds-checked reading of little-endian values from a mapped file.

use std::path::Path;

use crate::error::{ModelError, Result};

/// A position in the bytes of a file.
pub(super) struct ByteReader<'a> {
    bytes: &'a [u8],
    position: usize,
    path: &'a Path,
}

impl<'a> ByteReader<'a> {
    pub(super) fn new(bytes: &'a [u8], path: &'a Path) -> Self {
        Self { bytes, position: 0, path }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// Bytes left after the position.
    pub(super) fn remaining(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    pub(super) fn error(&self, message: impl Into<String>) -> ModelError {
        ModelError::file(self.path, message).with_hint("download the file again")
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.bytes.get(self.position..).and_then(|rest| rest.first_chunk::<N>()) {
            Some(chunk) => {
                self.position += N;
                Ok(*chunk)
            }
            None => Err(self.truncated()),
        }
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn text(&mut self) -> Result<&'a str> {
        let length = self.u64()?;
        if length > self.remaining() {
            return Err(self.truncated());
        }
        let end = self.position + length as usize;
        let bytes = &self.bytes[self.position..end];
        let text = std::str::from_utf8(bytes)
            .map_err(|_| self.error(format!("the text at byte {} is not UTF-8", self.position)))?;
        self.position = end;
        Ok(text)
    }

    fn truncated(&self) -> ModelError {
        self.error(format!(
            "the header goes on beyond the end of the file ({} bytes); it is truncated or damaged",
            self.bytes.len()
        ))
    }
}
