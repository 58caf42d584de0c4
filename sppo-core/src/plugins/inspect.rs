//! Reads a library's file. Nothing in it runs.

use std::fs::File;
use std::path::Path;

use object::read::ReadCache;
use object::{Architecture, BinaryFormat, Object, ObjectKind, ObjectSection};

use super::kinds;
use crate::plugin::Manifest;
use crate::plugin::abi::{
    INTERFACE_VERSION, MANIFEST_SYMBOL_PREFIX, MODULE_SYMBOL_PREFIX, ManifestText,
};

/// Limit of a manifest's size in bytes: a name and a line of text.
const LONGEST_MANIFEST: u64 = 4096;

/// A plugin as described by the file of its library.
#[derive(Clone, Debug)]
pub(super) struct LibraryPlugin {
    pub(super) manifest: Manifest,
    /// The symbol of its functions.
    pub(super) module_symbol: String,
    /// Advice for a user whose system lacks a library that it needs.
    pub(super) missing_library_hint: String,
    /// Its fault, if it cannot be opened.
    pub(super) trouble: Option<Trouble>,
}

/// Fault of a library or of a plugin in it, with advice.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Trouble {
    /// The fault, as the end of a sentence that begins with the plugin.
    pub message: String,
    /// Advice for the user.
    pub hint: String,
    /// Whether the file is a whole library that has nothing to do with this program.
    #[serde(skip)]
    pub(super) is_foreign: bool,
}

impl Trouble {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into(), is_foreign: false }
    }
}

/// The plugins in a library.
///
/// # Errors
/// When the file is no library for this machine, must not be trusted, or holds no plugin.
pub(super) fn inspect(path: &Path) -> Result<Vec<LibraryPlugin>, Trouble> {
    let unreadable = |error: std::io::Error| {
        Trouble::new(format!("cannot be read: {error}"), "check the path and its permissions")
    };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(Trouble::new(
            "is a directory, not a library",
            "name the library's file, or put the directory in `plugins.path`",
        ));
    }
    check_permissions(path)?;
    let cache = ReadCache::new(File::open(path).map_err(unreadable)?);
    if object::FileKind::parse(&cache).is_err() {
        return Err(Trouble::new(
            "is not a shared library",
            "name the file that `cargo build` makes of a `cdylib` crate",
        ));
    }
    let file = object::File::parse(&cache).map_err(|error| damaged(&error))?;
    check_machine(&file)?;
    plugins_in(&file)
}

fn damaged(error: &object::Error) -> Trouble {
    Trouble::new(
        format!("is damaged or cut short ({})", error.to_string().to_lowercase()),
        "build or copy it again",
    )
}

fn check_machine<'a>(file: &object::File<'a, &'a ReadCache<File>>) -> Result<(), Trouble> {
    let expected = if cfg!(windows) {
        BinaryFormat::Pe
    } else if cfg!(target_vendor = "apple") {
        BinaryFormat::MachO
    } else {
        BinaryFormat::Elf
    };
    let rebuild = "build it on this machine, or for its target";
    if file.format() != expected {
        return Err(Trouble::new(
            format!("is a library for another system ({:?} format)", file.format()),
            rebuild,
        ));
    }
    let here = match std::env::consts::ARCH {
        "x86_64" => Architecture::X86_64,
        "x86" => Architecture::I386,
        "aarch64" => Architecture::Aarch64,
        "arm" => Architecture::Arm,
        "riscv64" => Architecture::Riscv64,
        "powerpc64" => Architecture::PowerPc64,
        "s390x" => Architecture::S390x,
        "loongarch64" => Architecture::LoongArch64,
        // Left to the dynamic linker.
        _ => file.architecture(),
    };
    if file.architecture() != here || file.is_little_endian() != cfg!(target_endian = "little") {
        return Err(Trouble::new(
            format!(
                "was built for another processor ({:?}; this machine is {})",
                file.architecture(),
                std::env::consts::ARCH
            ),
            rebuild,
        ));
    }
    if file.kind() != ObjectKind::Dynamic {
        return Err(Trouble::new(
            "is not a shared library",
            "set `crate-type = [\"cdylib\"]` in the plugin's Cargo.toml and build it again",
        ));
    }
    Ok(())
}

fn plugins_in<'a>(
    file: &object::File<'a, &'a ReadCache<File>>,
) -> Result<Vec<LibraryPlugin>, Trouble> {
    let exports = file.exports().map_err(|error| damaged(&error))?;
    let names: Vec<&[u8]> = exports.iter().map(|export| exported_name(export.name())).collect();
    let mut plugins = Vec::new();
    for (export, name) in exports.iter().zip(&names) {
        let Some(owner) = name.strip_prefix(MANIFEST_SYMBOL_PREFIX.as_bytes()) else { continue };
        let bytes = bytes_at(file, export.address())?;
        let text = ManifestText::parse(&bytes).ok_or_else(unreadable_manifest)?;
        let module_symbol = format!("{MODULE_SYMBOL_PREFIX}{}", String::from_utf8_lossy(owner));
        let has_module = names.contains(&module_symbol.as_bytes());
        let trouble = wrong_version(&text).or_else(|| (!has_module).then(missing_symbol));
        plugins.push(LibraryPlugin {
            manifest: manifest(&text)?,
            module_symbol,
            missing_library_hint: text.missing_library_hint.to_owned(),
            trouble,
        });
    }
    if plugins.is_empty() {
        return Err(Trouble {
            is_foreign: true,
            ..Trouble::new(
                "is a shared library, but not an sppo plugin (it exports no manifest)",
                "export one with `sppo_core::export_oracle!` or `sppo_core::export_backend!`; \
                 `sppo plugin new` writes a complete crate",
            )
        });
    }
    Ok(plugins)
}

/// Apple's linker puts an underscore before every name.
fn exported_name(name: &[u8]) -> &[u8] {
    if cfg!(target_vendor = "apple") { name.strip_prefix(b"_").unwrap_or(name) } else { name }
}

fn bytes_at<'a>(
    file: &object::File<'a, &'a ReadCache<File>>,
    address: u64,
) -> Result<Vec<u8>, Trouble> {
    let holds = |section: &object::Section<'_, '_, &ReadCache<File>>| {
        address >= section.address() && address - section.address() < section.size()
    };
    let section = file.sections().find(holds).ok_or_else(unreadable_manifest)?;
    let available = section.size() - (address - section.address());
    section
        .data_range(address, available.min(LONGEST_MANIFEST))
        .map_err(|error| damaged(&error))?
        .map(<[u8]>::to_vec)
        .ok_or_else(unreadable_manifest)
}

fn unreadable_manifest() -> Trouble {
    Trouble::new(
        "has a manifest that this program cannot read",
        "rebuild the plugin with the `sppo-core` of this program's version",
    )
}

fn missing_symbol() -> Trouble {
    Trouble::new(
        "has a manifest but does not export the plugin's functions",
        "build it again without stripping exported symbols",
    )
}

fn wrong_version(text: &ManifestText<'_>) -> Option<Trouble> {
    let found = text.interface_version;
    let built = format!(
        "was built for plugin interface {found} (sppo-core {}), and this is sppo {} with interface \
         {INTERFACE_VERSION}",
        text.core_version,
        env!("CARGO_PKG_VERSION"),
    );
    let rebuild = format!("rebuild the plugin with sppo-plugin {}", env!("CARGO_PKG_VERSION"));
    match found.cmp(&INTERFACE_VERSION) {
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Less => Some(Trouble::new(built, rebuild)),
        std::cmp::Ordering::Greater => {
            Some(Trouble::new(built, format!("update sppo, or {rebuild}")))
        }
    }
}

pub(super) fn unknown_kind(name: &str) -> Trouble {
    Trouble::new(
        format!("is a plugin of a kind that this program does not know (`{name}`)"),
        "update sppo",
    )
}

fn manifest(text: &ManifestText<'_>) -> Result<Manifest, Trouble> {
    let kind = kinds::named(text.kind).ok_or_else(|| unknown_kind(text.kind))?;
    Ok(Manifest {
        kind,
        name: text.name.to_owned().into(),
        version: text.version.to_owned().into(),
        interface_version: text.interface_version,
        summary: text.summary.to_owned().into(),
    })
}

/// Refuses code that anyone may replace.
#[cfg(unix)]
fn check_permissions(path: &Path) -> Result<(), Trouble> {
    use std::os::unix::fs::MetadataExt;
    const WORLD_WRITABLE: u32 = 0o002;
    const STICKY: u32 = 0o1000;
    let unreadable = |error: std::io::Error| {
        Trouble::new(format!("cannot be read: {error}"), "check the path and its permissions")
    };
    let path = path.canonicalize().map_err(unreadable)?;
    if path.metadata().map_err(unreadable)?.mode() & WORLD_WRITABLE != 0 {
        return Err(Trouble::new(
            "may be changed by every user of this machine",
            format!("make sure that it is yours, then `chmod o-w {}`", path.display()),
        ));
    }
    if let Some(directory) = path.parent() {
        let mode = directory.metadata().map_err(unreadable)?.mode();
        if mode & WORLD_WRITABLE != 0 && mode & STICKY == 0 {
            return Err(Trouble::new(
                format!(
                    "may be replaced by every user of this machine (its directory {} is writable \
                     for all)",
                    directory.display()
                ),
                format!("`chmod o-w {}`, or move the library", directory.display()),
            ));
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_permissions(_path: &Path) -> Result<(), Trouble> {
    Ok(())
}
