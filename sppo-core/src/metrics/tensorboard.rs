//! TensorBoard event files: TFRecord frames (`tensorflow/core/lib/io/record_writer.h`) around `Event`
//! messages (`tensorflow/core/util/event.proto`), of which scalars need a handful of fields.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::MetricsEntry;
use crate::error::Result;
use crate::files::run_directory_error;

/// TensorBoard reads the files that have this in their names.
const MARK: &str = "tfevents";

#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins a new file in the directory and removes the older ones, whose scalars are written again.
    pub(super) fn replace(directory: &Path, time: f64) -> Result<Self> {
        let older = fs::read_dir(directory)
            .map_err(|error| run_directory_error(directory, "list this directory", &error))?;
        for entry in older.flatten() {
            if entry.file_name().to_string_lossy().contains(MARK) {
                crate::files::remove_any(&entry.path())?;
            }
        }
        let path = directory.join(format!("events.out.{MARK}.{}.sppo", time as u64));
        let file = File::create(&path)
            .map_err(|error| run_directory_error(&path, "write this file", &error))?;
        let mut events = Self { path, file };
        let mut version = Message::default();
        version.double(1, time).bytes(3, b"brain.Event:2");
        events.write(&frame(&version.0))?;
        Ok(events)
    }

    /// One event with all scalars of an entry.
    pub(super) fn append(&mut self, entry: &MetricsEntry) -> Result<()> {
        let scalars = entry.scalars();
        if scalars.is_empty() {
            return Ok(());
        }
        self.write(&frame(&event(entry.time, entry.global_step, &scalars)))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|error| run_directory_error(&self.path, "write this file", &error))
    }
}

/// `Event { wall_time = 1, step = 2, summary = 5 { value = 1 { tag = 1, simple_value = 2 } } }`.
fn event(time: f64, step: u64, scalars: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, value) in scalars {
        let mut scalar = Message::default();
        scalar.bytes(1, tag.as_bytes()).float(2, *value as f32);
        summary.bytes(1, &scalar.0);
    }
    let mut event = Message::default();
    event.double(1, time).varint(2, step).bytes(5, &summary.0);
    event.0
}

/// A protocol buffer under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u64, wire_type: u64) -> &mut Self {
        self.raw_varint(field << 3 | wire_type)
    }

    fn raw_varint(&mut self, mut value: u64) -> &mut Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn varint(&mut self, field: u64, value: u64) -> &mut Self {
        self.key(field, 0).raw_varint(value)
    }

    fn double(&mut self, field: u64, value: f64) -> &mut Self {
        self.key(field, 1).0.extend(value.to_le_bytes());
        self
    }

    fn float(&mut self, field: u64, value: f32) -> &mut Self {
        self.key(field, 5).0.extend(value.to_le_bytes());
        self
    }

    fn bytes(&mut self, field: u64, value: &[u8]) -> &mut Self {
        self.key(field, 2).raw_varint(value.len() as u64).0.extend(value);
        self
    }
}

/// Length, checksum of the length, data, checksum of the data.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_checksum(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_checksum(data).to_le_bytes());
    record
}

/// CRC-32C, rotated and offset so that checksums of data that hold checksums stay sound.
pub(super) fn masked_checksum(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}
