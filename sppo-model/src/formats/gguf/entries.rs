//! Metadata of a GGUF file to be written: keys and values in order, in the form that they have in the file.

/// The numbers of value types in GGUF.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const FLAG: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Keys and values of a file to be written, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GgufEntries {
    /// A key, and the bytes of its value's type and value.
    entries: Vec<(String, Vec<u8>)>,
}

impl GgufEntries {
    /// Entries as they stand in a file: the key, and the bytes of the value's type and value.
    pub(super) fn of_file<'a>(entries: impl Iterator<Item = (&'a str, &'a [u8])>) -> Self {
        Self { entries: entries.map(|(key, value)| (key.into(), value.to_vec())).collect() }
    }

    /// The number of entries.
    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    /// The entries as they stand in a file.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (key, value) in &self.entries {
            push_text(&mut bytes, key);
            bytes.extend(value);
        }
        bytes
    }

    /// Sets a key to a non-negative integer of 32 bits.
    pub fn set_integer(&mut self, key: &str, value: u32) {
        self.set(key, U32, value.to_le_bytes().to_vec());
    }

    /// Sets a key to a number of single precision.
    pub fn set_number(&mut self, key: &str, value: f32) {
        self.set(key, F32, value.to_le_bytes().to_vec());
    }

    /// Sets a key to a truth value.
    pub fn set_flag(&mut self, key: &str, value: bool) {
        self.set(key, FLAG, vec![value.into()]);
    }

    /// Sets a key to a text.
    pub fn set_text(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        push_text(&mut bytes, value);
        self.set(key, TEXT, bytes);
    }

    /// Sets a key to a list of texts.
    pub fn set_texts(&mut self, key: &str, values: &[impl AsRef<str>]) {
        let mut bytes = array(TEXT, values.len());
        values.iter().for_each(|value| push_text(&mut bytes, value.as_ref()));
        self.set(key, ARRAY, bytes);
    }

    /// Sets a key to a list of integers of 32 bits.
    pub fn set_integers(&mut self, key: &str, values: &[i32]) {
        let mut bytes = array(I32, values.len());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.set(key, ARRAY, bytes);
    }

    /// Sets a key to a list of numbers of single precision.
    pub fn set_numbers(&mut self, key: &str, values: &[f32]) {
        let mut bytes = array(F32, values.len());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.set(key, ARRAY, bytes);
    }

    /// Sets a key to a list of truth values.
    pub fn set_flags(&mut self, key: &str, values: &[bool]) {
        let mut bytes = array(FLAG, values.len());
        bytes.extend(values.iter().map(|&value| u8::from(value)));
        self.set(key, ARRAY, bytes);
    }

    /// Removes the keys that begin so.
    pub fn remove_all(&mut self, prefix: &str) {
        self.entries.retain(|(key, _)| !key.starts_with(prefix));
    }

    /// Puts a value in the place of an earlier one, or at the end.
    fn set(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        let value = [&kind.to_le_bytes()[..], &value].concat();
        match self.entries.iter_mut().find(|(known, _)| known == key) {
            Some((_, known)) => *known = value,
            None => self.entries.push((key.into(), value)),
        }
    }
}

/// Entries of one architecture to be written; keys are given without its name, with which they begin.
#[derive(Debug)]
pub struct ArchitectureEntries<'a> {
    entries: &'a mut GgufEntries,
    architecture: &'a str,
}

impl<'a> ArchitectureEntries<'a> {
    /// Entries of this architecture, added to those of a file.
    pub fn new(entries: &'a mut GgufEntries, architecture: &'a str) -> Self {
        Self { entries, architecture }
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// Sets a key to a count.
    pub fn set_count(&mut self, key: &str, value: usize) {
        self.entries.set_integer(&self.full(key), u32::try_from(value).unwrap_or(u32::MAX));
    }

    /// Sets a key to a number.
    pub fn set_number(&mut self, key: &str, value: f64) {
        self.entries.set_number(&self.full(key), value as f32);
    }

    /// Sets a key to a text.
    pub fn set_text(&mut self, key: &str, value: &str) {
        self.entries.set_text(&self.full(key), value);
    }

    /// Sets a key to a list of truth values.
    pub fn set_flags(&mut self, key: &str, values: &[bool]) {
        self.entries.set_flags(&self.full(key), values);
    }
}

/// The beginning of a list of so many values of a type.
fn array(kind: u32, length: usize) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(length as u64).to_le_bytes()].concat()
}

/// Appends a text and its length before it.
pub(super) fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}
