//! Thrift's compact protocol, in which a Parquet file describes itself, read as far as it takes to check it.

use std::io::{self, Read};

/// Kinds of values.
pub(super) const WHOLE_NUMBER: u8 = 5;
pub(super) const LIST: u8 = 9;

/// Items of a list that is passed over. The `parquet` crate counts truth values, which take no room, one by one.
const LONGEST_LIST: u64 = 4096;
/// Structures within structures that are passed over; there are three.
const DEEPEST: usize = 8;

/// A description that is being read.
pub(super) struct Thrift<'a, R> {
    source: &'a mut R,
    /// Bytes that were read.
    read: u64,
    /// Bytes to the end of what holds the description.
    most: u64,
}

/// The error of a description that makes no sense.
pub(super) fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its description is damaged")
}

/// The error of a description that would take more room than there is in any file.
pub(super) fn implausible(what: &str, size: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it announces {what} of {size} bytes"))
}

fn cut_off() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

impl<'a, R: Read> Thrift<'a, R> {
    /// The description that begins here, with so many bytes to the end of what holds it.
    pub(super) fn new(source: &'a mut R, most: u64) -> Self {
        Self { source, read: 0, most }
    }

    /// Bytes that were read so far.
    pub(super) fn length(&self) -> u64 {
        self.read
    }

    /// The kind of the next field, whose number follows from the one before; `None` at the end of a structure.
    pub(super) fn field(&mut self, number: &mut i64) -> io::Result<Option<u8>> {
        let byte = self.byte()?;
        match (byte & 0x0f, byte >> 4) {
            (0, _) => return Ok(None),
            (_, 0) => *number = self.signed()?,
            (_, distance) => *number = number.saturating_add(distance.into()),
        }
        Ok(Some(byte & 0x0f))
    }

    /// The kind of a list's items, and their number.
    pub(super) fn list(&mut self) -> io::Result<(u8, u64)> {
        let byte = self.byte()?;
        let count = if byte >> 4 == 15 { self.unsigned()? } else { u64::from(byte >> 4) };
        Ok((byte & 0x0f, count))
    }

    /// Passes over a value.
    pub(super) fn skip(&mut self, kind: u8, depth: usize) -> io::Result<()> {
        match kind {
            // Truth values, which are their own kind.
            1 | 2 => Ok(()),
            3 => self.bytes(1),
            4..=6 => self.unsigned().map(drop),
            7 => self.bytes(8),
            8 => {
                let length = self.unsigned()?;
                match length > self.most {
                    true => Err(implausible("a value", length)),
                    false => self.bytes(length),
                }
            }
            LIST | 10 if depth < DEEPEST => {
                let (kind, count) = self.list()?;
                if count > LONGEST_LIST {
                    return Err(damaged());
                }
                (0..count).try_for_each(|_| match kind {
                    1 | 2 => self.bytes(1),
                    kind => self.skip(kind, depth + 1),
                })
            }
            12 if depth < DEEPEST => {
                let mut number = 0;
                while let Some(kind) = self.field(&mut number)? {
                    self.skip(kind, depth + 1)?;
                }
                Ok(())
            }
            _ => Err(damaged()),
        }
    }

    /// A whole number.
    pub(super) fn signed(&mut self) -> io::Result<i64> {
        let folded = self.unsigned()?;
        Ok((folded >> 1) as i64 ^ -((folded & 1) as i64))
    }

    fn unsigned(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(cut_off())
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.source.read_exact(&mut byte)?;
        self.read += 1;
        Ok(byte[0])
    }

    fn bytes(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.source.by_ref().take(count), &mut io::sink())?;
        self.read = self.read.saturating_add(skipped);
        if skipped == count { Ok(()) } else { Err(cut_off()) }
    }
}
