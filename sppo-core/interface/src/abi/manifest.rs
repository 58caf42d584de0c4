//! Identity of a plugin, as text in a constant of its library, to be read without opening it.

/// Symbols with these prefixes are exported once per plugin, followed by the plugin's crate.
pub const MANIFEST_SYMBOL_PREFIX: &str = "sppo_plugin_manifest.";
pub const MODULE_SYMBOL_PREFIX: &str = "sppo_plugin_module.";

/// The first line of a manifest.
const HEADING: &str = "sppo plugin manifest";

/// Bytes that [`manifest_bytes`] will make of these keys and values.
#[must_use]
pub const fn manifest_length(pairs: &[(&str, &str)]) -> usize {
    let mut length = HEADING.len() + 1;
    let mut index = 0;
    while index < pairs.len() {
        length += pairs[index].0.len() + 1 + pairs[index].1.len() + 1;
        index += 1;
    }
    length + 1
}

/// The manifest's text: the heading, `key=value` lines, and a zero byte.
#[must_use]
pub const fn manifest_bytes<const LENGTH: usize>(pairs: &[(&str, &str)]) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    let mut end = append(&mut bytes, 0, HEADING, b'\n');
    let mut index = 0;
    while index < pairs.len() {
        end = append(&mut bytes, end, pairs[index].0, b'=');
        end = append(&mut bytes, end, pairs[index].1, b'\n');
        index += 1;
    }
    bytes
}

const fn append(bytes: &mut [u8], start: usize, text: &str, last: u8) -> usize {
    let text = text.as_bytes();
    let mut index = 0;
    while index < text.len() {
        assert!(
            text[index] != b'\n' && text[index] != 0,
            "a plugin's name, summary and hint are one line"
        );
        bytes[start + index] = text[index];
        index += 1;
    }
    bytes[start + text.len()] = last;
    start + text.len() + 1
}

/// A manifest as it stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestText<'a> {
    pub kind: &'a str,
    pub name: &'a str,
    pub version: &'a str,
    pub interface_version: u32,
    /// The version of `sppo-core` that the plugin was built with.
    pub core_version: &'a str,
    pub summary: &'a str,
    /// Advice where the library needs another that is missing.
    pub missing_library_hint: &'a str,
}

impl<'a> ManifestText<'a> {
    /// Reads what [`manifest_bytes`] wrote; `None` when it is damaged. Unknown keys are left alone, so
    /// that newer manifests can still be read.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let end = bytes.iter().position(|&byte| byte == 0)?;
        let text = std::str::from_utf8(&bytes[..end]).ok()?;
        let lines = text.strip_prefix(HEADING)?.strip_prefix('\n')?;
        let value =
            |key: &str| lines.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        Some(Self {
            kind: value("kind")?,
            name: value("name")?,
            version: value("version")?,
            interface_version: value("interface")?.parse().ok()?,
            core_version: value("core")?,
            summary: value("summary")?,
            missing_library_hint: value("missing_library_hint").unwrap_or_default(),
        })
    }
}
