//! A Parquet file's description of itself, looked through before the file is read.
//!
//! The `parquet` crate makes room for what a file announces, and it cannot be kept from that: a file of a few bytes may
//! announce a page of two gigabytes, a column of a billion columns, or columns within columns without end.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};

use parquet::basic::Type;
use parquet::file::metadata::ParquetMetaData;

use super::thrift::{LIST, Thrift, WHOLE_NUMBER, damaged, implausible};

/// Bytes of a page when it is unpacked. Writers make pages of about 1 MB, and larger ones for values that are.
const LARGEST_PAGE: u64 = 256 << 20;
/// Bytes of a value of a fixed length: numbers and identifiers.
const LONGEST_FIXED: i32 = 1 << 16;
/// Columns within columns.
const DEEPEST_COLUMN: usize = 100;
/// Bytes behind the footer: its length, and the name of the format.
const TAIL: u64 = 8;

/// Numbers of a page header's fields.
const UNPACKED_SIZE: i64 = 2;
const PACKED_SIZE: i64 = 3;
const DICTIONARY: i64 = 7;
/// The number of a footer's field with the columns, and of a column's field with the number of those within it.
const COLUMNS: i64 = 2;
const CHILDREN: i64 = 5;

/// Refuses a file with columns within columns of implausible numbers.
///
/// # Errors
/// When the file cannot be read, or says so.
pub(super) fn check_footer(file: &File) -> io::Result<()> {
    let mut reader = BufReader::new(file);
    let Some(end) = reader.seek(SeekFrom::End(0))?.checked_sub(TAIL) else { return Ok(()) };
    reader.seek(SeekFrom::Start(end))?;
    let (mut length, mut name) = ([0; 4], [0; 4]);
    reader.read_exact(&mut length)?;
    reader.read_exact(&mut name)?;
    let length = u64::from(u32::from_le_bytes(length));
    let start = end.checked_sub(length).filter(|_| name == *b"PAR1");
    let Some(start) = start else { return Ok(()) };
    reader.seek(SeekFrom::Start(start))?;
    or_found_later(columns(&mut Thrift::new(&mut reader, length))).map(drop)
}

/// A description that ends too soon is found by the crate too.
fn or_found_later<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        found => found.map(Some),
    }
}

fn columns<R: Read>(footer: &mut Thrift<'_, R>) -> io::Result<()> {
    let mut number = 0;
    while let Some(kind) = footer.field(&mut number)? {
        if (number, kind) == (COLUMNS, LIST) {
            let (_, count) = footer.list()?;
            return tree(footer, count);
        }
        footer.skip(kind, 0)?;
    }
    Ok(())
}

/// The columns in the order of a tree, each with the number of those within it.
fn tree<R: Read>(footer: &mut Thrift<'_, R>, count: u64) -> io::Result<()> {
    // Of the columns around this place, those within them that are to come.
    let mut open: Vec<u64> = Vec::new();
    let mut announced: u64 = 0;
    for _ in 0..count {
        let children = children(footer)?;
        announced = announced.saturating_add(children);
        while open.pop_if(|left| *left == 0).is_some() {}
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        if children > 0 {
            open.push(children);
        }
        if announced >= count || open.len() > DEEPEST_COLUMN {
            return Err(damaged());
        }
    }
    Ok(())
}

fn children<R: Read>(footer: &mut Thrift<'_, R>) -> io::Result<u64> {
    let (mut number, mut children) = (0, 0);
    while let Some(kind) = footer.field(&mut number)? {
        match (number, kind) {
            (CHILDREN, WHOLE_NUMBER) => {
                children = u64::try_from(footer.signed()?).map_err(|_| damaged())?;
            }
            _ => footer.skip(kind, 0)?,
        }
    }
    Ok(children)
}

/// Refuses a file with a page, or values, of implausible sizes. Returns the size of the largest dictionary, which
/// bounds the length of a value that stands in the file once and in many rows.
///
/// # Errors
/// When the file cannot be read, or says so.
pub(super) fn check_pages(file: &File, metadata: &ParquetMetaData) -> io::Result<u64> {
    for column in metadata.file_metadata().schema_descr().columns() {
        let is_fixed = column.physical_type() == Type::FIXED_LEN_BYTE_ARRAY;
        if is_fixed && column.type_length() > LONGEST_FIXED {
            return Err(implausible("values", column.type_length()));
        }
    }
    let mut reader = BufReader::new(file);
    let mut largest = 0;
    for column in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        let (start, length) = column.byte_range();
        let (mut at, end) = (start, start.saturating_add(length));
        while at < end {
            reader.seek(SeekFrom::Start(at))?;
            let mut header = Thrift::new(&mut reader, end - at);
            let Some(page) = or_found_later(page(&mut header))? else { break };
            if page.is_dictionary {
                largest = largest.max(page.unpacked);
            }
            at = at.saturating_add(header.length()).saturating_add(page.packed);
        }
    }
    Ok(largest)
}

/// The parts of a page's header that are of interest.
#[derive(Default)]
struct Page {
    unpacked: u64,
    packed: u64,
    is_dictionary: bool,
}

fn page<R: Read>(header: &mut Thrift<'_, R>) -> io::Result<Page> {
    let mut page = Page::default();
    let mut number = 0;
    while let Some(kind) = header.field(&mut number)? {
        match (number, kind) {
            (UNPACKED_SIZE, WHOLE_NUMBER) => page.unpacked = size(header)?,
            (PACKED_SIZE, WHOLE_NUMBER) => page.packed = size(header)?,
            _ => {
                page.is_dictionary |= number == DICTIONARY;
                header.skip(kind, 0)?;
            }
        }
    }
    if page.unpacked > LARGEST_PAGE {
        return Err(implausible("a page", page.unpacked));
    }
    Ok(page)
}

/// A size. By a negative one the crate goes back, and reads the same page for ever.
fn size<R: Read>(header: &mut Thrift<'_, R>) -> io::Result<u64> {
    let size = header.signed()?;
    u64::try_from(size).map_err(|_| implausible("a page", size))
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
        check_pages(&File::open(&path)?, metadata.metadata())
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
        assert_eq!(error.to_string(), "its description is damaged");
    }

    #[test]
    fn a_page_of_less_than_nothing_is_not_read_for_ever() {
        let error = announced(&[0x03]).unwrap_err().to_string();
        assert_eq!(error, "it announces a page of -2 bytes");
    }

    /// A footer of columns with these numbers of columns within.
    fn footer(children: &[u64]) -> io::Result<()> {
        let mut bytes = vec![0x29, 0xfc, children.len() as u8];
        for &count in children {
            bytes.push(0x55);
            // The sign is the last bit.
            let mut left = count << 1;
            while left > 0x7f {
                bytes.push(left as u8 | 0x80);
                left >>= 7;
            }
            bytes.extend([left as u8, 0]);
        }
        bytes.push(0);
        columns(&mut Thrift::new(&mut bytes.as_slice(), 1000))
    }

    #[test]
    fn columns_within_columns_are_as_many_as_there_are() {
        footer(&[2, 0, 1, 0]).unwrap();
        for damage in [&[1_000_000_000, 0][..], &[2, 0], &[1, 1, 1], &[3, 3, 0, 0]] {
            assert_eq!(footer(damage).unwrap_err().to_string(), "its description is damaged");
        }
        let mut nested = vec![1; 110];
        nested.push(0);
        assert!(footer(&nested).is_err());
    }
}
