//! Opens a library that has passed all checks of its file. It stays open.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use libloading::Library;

use super::added::AddedPlugins;
use super::inspect::{self, LibraryPlugin, Trouble};
use super::kinds;
use crate::files::size_and_sha256;
use crate::plugin::abi::{
    AbiHeaderRef, AbiManifest, INTERFACE_VERSION, LibraryError, OpenedModule, connection_for,
};

/// A plugin of an open library.
#[derive(Clone)]
pub(super) struct Opened {
    path: PathBuf,
    symbol: String,
    pub(super) module: Arc<dyn OpenedModule>,
    /// For instance ``oracle `rules` ``.
    pub(super) label: &'static str,
    /// SHA-256 of the library, in hexadecimal.
    pub(super) sha256: String,
}

static OPEN: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

/// Opens a plugin, or returns it if it is open.
///
/// # Errors
/// When the library has changed since it was added, the system cannot open it, or it is not what its
/// manifest says.
pub(super) fn open(
    path: &Path,
    plugin: &LibraryPlugin,
    added: &AddedPlugins,
) -> Result<Opened, Trouble> {
    let mut all = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let is_same = |open: &&Opened| open.path == path && open.symbol == plugin.module_symbol;
    if let Some(opened) = all.iter().find(is_same) {
        return Ok(opened.clone());
    }
    let (_, sha256) = size_and_sha256(path)
        .map_err(|error| Trouble::new(format!("cannot be read: {error}"), "check the path"))?;
    added.check(path, &sha256)?;
    let header = module_header(path, plugin)?;
    let opened = kinds::open(plugin.manifest.kind, header)
        .ok_or_else(|| inspect::unknown_kind(plugin.manifest.kind.name()))?
        .map_err(|error| not_of_this_interface(error, path))?;
    let module: Arc<dyn OpenedModule> = opened.into();
    check_identity(plugin, &module.manifest())?;
    let label: &'static str = plugin.manifest.label().leak();
    module.connect(connection_for(label));
    let symbol = plugin.module_symbol.clone();
    let opened = Opened { path: path.to_owned(), symbol, module, label, sha256 };
    all.push(opened.clone());
    Ok(opened)
}

fn module_header(path: &Path, plugin: &LibraryPlugin) -> Result<AbiHeaderRef, Trouble> {
    let cannot_open = |error: libloading::Error| {
        // The error itself says that it failed, its source says why.
        let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        Trouble::new(format!("cannot be opened: {reason}"), &plugin.missing_library_hint)
    };
    // SAFETY: the constructors of a library run. The user has named it, put it where plugins are looked
    // for or added it, and it says that it is a plugin of this interface.
    let library = unsafe { Library::new(path) }.map_err(cannot_open)?;
    // Its functions, its constants and its threads may be in use until the program ends.
    let library: &'static Library = Box::leak(Box::new(library));
    // SAFETY: the symbol is the library's `LibHeader`, which begins with the header.
    let header = unsafe { library.get::<AbiHeaderRef>(plugin.module_symbol.as_str()) }
        .map_err(cannot_open)?;
    Ok(*header)
}

fn not_of_this_interface(error: LibraryError, path: &Path) -> Trouble {
    match error {
        LibraryError::AbiInstability(report) => layout_trouble(&report.to_string(), path),
        other => Trouble::new(
            format!("does not follow the plugin interface: {}", first_line(&other.to_string())),
            rebuild(),
        ),
    }
}

fn layout_trouble(report: &str, path: &Path) -> Trouble {
    let message = "claims this program's plugin interface but lays out its data differently";
    match keep_report(report, path) {
        Some(file) => {
            Trouble::new(format!("{message}; all differences are in {}", file.display()), rebuild())
        }
        None => Trouble::new(message, rebuild()),
    }
}

/// Such a report has hundreds of lines.
fn keep_report(report: &str, path: &Path) -> Option<PathBuf> {
    let mut file =
        tempfile::Builder::new().prefix("sppo-plugin-layout-").suffix(".txt").tempfile().ok()?;
    writeln!(file, "{}\n\n{report}", path.display()).ok()?;
    Some(file.keep().ok()?.1)
}

fn rebuild() -> String {
    format!("rebuild the plugin with an unchanged sppo-plugin {}", env!("CARGO_PKG_VERSION"))
}

fn first_line(text: &str) -> &str {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
}

fn check_identity(plugin: &LibraryPlugin, code: &AbiManifest) -> Result<(), Trouble> {
    let manifest = &plugin.manifest;
    if code.name.as_str() == manifest.name && code.interface_version == INTERFACE_VERSION {
        return Ok(());
    }
    Err(Trouble::new(
        format!(
            "calls itself `{}` (interface {}) in its manifest and `{}` (interface {}) in its code",
            manifest.name, manifest.interface_version, code.name, code.interface_version
        ),
        "its file was altered or badly linked: build it again",
    ))
}
