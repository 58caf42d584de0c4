//! The pages of a Parquet file, looked through before it is read.
//!
//! The `parquet` crate makes room for what the header of a page announces, and it cannot be kept from that: a file of
//! a few bytes may announce a page of two gigabytes, or a text of any length in its header. Headers are in Thrift's
//! compact protocol.

use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};

use parquet::basic::Type;
use parquet::file::metadata::ParquetMetaData;

/// Bytes of a page when it is unpacked. Writers make pages of about 1 MB, and larger ones for values that are.
const LARGEST_PAGE: u64 = 256 << 20;
/// Bytes of a value of a fixed length: numbers and identifiers.
const LONGEST_FIXED: i32 = 1 << 16;
/// Items of a list in a header, which has none yet. The crate counts truth values that take no room one by one.
const LONGEST_LIST: u64 = 4096;
/// Structures within structures in a header; there are three.
const DEEPEST: usize = 8;

/// Numbers of a page header's fields.
const UNPACKED_SIZE: i64 = 2;
const PACKED_SIZE: i64 = 3;
const DICTIONARY: i64 = 7;

/// Refuses a file with a page, or values, of implausible sizes. Returns the size of the largest dictionary, which
/// bounds the length of a value that stands in the file once and in many rows.
///
/// # Errors
/// When the file cannot be read, or says so.
pub(super) fn check(file: &File, metadata: &ParquetMetaData) -> io::Result<u64> {
    for column in metadata.file_metadata().schema_descr().columns() {
        let is_fixed = column.physical_type() == Type::FIXED_LEN_BYTE_ARRAY;
        if is_fixed && column.type_length() > LONGEST_FIXED {
            return Err(implausible("values of a fixed length", column.type_length()));
        }
    }
    let mut reader = BufReader::new(file);
    let mut largest = 0;
    for column in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        let (start, length) = column.byte_range();
        let (mut at, end) = (start, start.saturating_add(length));
        while at < end {
            reader.seek(SeekFrom::Start(at))?;
            let mut header = Header { reader: &mut reader, read: 0, most: end - at };
            let page = match header.page() {
                // What is no header is found by the crate too.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                page => page?,
            };
            if page.is_dictionary {
                largest = largest.max(page.unpacked);
            }
            at = at.saturating_add(header.read).saturating_add(page.packed);
        }
    }
    Ok(largest)
}

fn implausible(what: &str, bytes: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it announces {what} of {bytes} bytes"))
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the header of a page is damaged")
}

fn no_header() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

/// The parts of a page's header that are of interest.
#[derive(Default)]
struct Page {
    unpacked: u64,
    packed: u64,
    is_dictionary: bool,
}

/// A header that is being read.
struct Header<'a, 'f> {
    reader: &'a mut BufReader<&'f File>,
    /// Bytes that were read.
    read: u64,
    /// Bytes to the end of the column.
    most: u64,
}

impl Header<'_, '_> {
    fn page(&mut self) -> io::Result<Page> {
        let mut page = Page::default();
        let mut number = 0;
        while let Some(kind) = self.field(&mut number)? {
            match (number, kind) {
                (UNPACKED_SIZE, 5) => page.unpacked = self.size()?,
                (PACKED_SIZE, 5) => page.packed = self.size()?,
                _ => {
                    page.is_dictionary |= number == DICTIONARY;
                    self.skip(kind, 0)?;
                }
            }
        }
        if page.unpacked > LARGEST_PAGE {
            return Err(implausible("a page", page.unpacked));
        }
        Ok(page)
    }

    /// The kind of the next field, whose number follows from the one before; `None` at the end of a structure.
    fn field(&mut self, number: &mut i64) -> io::Result<Option<u8>> {
        let byte = self.byte()?;
        match (byte & 0x0f, byte >> 4) {
            (0, _) => return Ok(None),
            (_, 0) => *number = self.signed()?,
            (_, distance) => *number = number.saturating_add(distance.into()),
        }
        Ok(Some(byte & 0x0f))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> io::Result<()> {
        match kind {
            // Truth values, which are their own kind.
            1 | 2 => Ok(()),
            3 => self.bytes(1),
            4..=6 => self.unsigned().map(drop),
            7 => self.bytes(8),
            8 => {
                let length = self.unsigned()?;
                match length > self.most {
                    true => Err(implausible("a value in a page's header", length)),
                    false => self.bytes(length),
                }
            }
            9 | 10 if depth < DEEPEST => {
                let byte = self.byte()?;
                let count = if byte >> 4 == 15 { self.unsigned()? } else { u64::from(byte >> 4) };
                if count > LONGEST_LIST {
                    return Err(damaged());
                }
                (0..count).try_for_each(|_| match byte & 0x0f {
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

    /// A size. By a negative one the crate goes back, and reads the same page for ever.
    fn size(&mut self) -> io::Result<u64> {
        let size = self.signed()?;
        u64::try_from(size).map_err(|_| implausible("a page", size))
    }

    fn signed(&mut self) -> io::Result<i64> {
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
        Err(no_header())
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.reader.read_exact(&mut byte)?;
        self.read += 1;
        Ok(byte[0])
    }

    fn bytes(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.reader.by_ref().take(count), &mut io::sink())?;
        self.read = self.read.saturating_add(skipped);
        if skipped == count { Ok(()) } else { Err(no_header()) }
    }
}

#[cfg(test)]
mod tests {
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;

    /// A Parquet file of one column whose page has `size` in its header, as a varint.
    fn announced(size: &[u8]) -> io::Result<u64> {
        use std::sync::Arc;

        use arrow_array::{ArrayRef, RecordBatch, StringArray};
        use parquet::arrow::ArrowWriter;
        use parquet::file::properties::WriterProperties;

        let directory = tempfile::tempdir()?;
        let path = directory.path().join("x.parquet");
        let column: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(100)]));
        let batch = RecordBatch::try_from_iter([("prompt", column)]).unwrap();
        let properties = WriterProperties::builder().set_dictionary_enabled(false).build();
        let file = File::create(&path)?;
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let metadata = ParquetRecordBatchReaderBuilder::try_new(File::open(&path)?).unwrap();
        let mut bytes = std::fs::read(&path)?;
        // `PAR1`, the kind of the page, then the field of the unpacked size, which takes two bytes.
        assert_eq!(bytes[..7], *b"PAR1\x15\x00\x15");
        bytes.splice(7..9, size.iter().copied());
        std::fs::write(&path, bytes)?;
        check(&File::open(&path)?, metadata.metadata())
    }

    #[test]
    fn a_page_that_announces_gigabytes_is_refused_before_room_is_made_for_it() {
        assert_eq!(announced(&[0x80, 0x02]).unwrap(), 0);
        let error = announced(&[0xfe, 0xff, 0xff, 0xff, 0x0f]).unwrap_err().to_string();
        assert_eq!(error, "it announces a page of 2147483647 bytes");
    }

    #[test]
    fn a_list_without_end_in_a_header_is_not_counted() {
        // A field 2 of two bytes, and then a list (9) of 2^31 - 1 truth values.
        let error = announced(&[0x02, 0x19, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07]).unwrap_err();
        assert_eq!(error.to_string(), "the header of a page is damaged");
    }

    #[test]
    fn a_page_of_less_than_nothing_is_not_read_for_ever() {
        let error = announced(&[0x03]).unwrap_err().to_string();
        assert_eq!(error, "it announces a page of -2 bytes");
    }
}
