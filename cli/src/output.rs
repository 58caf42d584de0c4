//! Standard output and output files: data, and nothing else.

use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Serialize;
use sppo_core::Error;
use sppo_core::tables::TableFormat;
use tempfile::TempPath;

use crate::args::ReportArguments;
use crate::failure::{Failure, Result};

/// Standard output, out of reach of everyone but this module.
static DATA: OnceLock<File> = OnceLock::new();

/// Redirects everything that others write to standard output to standard error: a plugin that prints must
/// not spoil the data.
#[cfg(unix)]
pub(crate) fn keep_for_data() {
    use std::os::fd::AsFd;
    let Ok(data) = io::stdout().as_fd().try_clone_to_owned() else { return };
    // SAFETY: both descriptors are open, and the one that is replaced stays open as `data`.
    if unsafe { libc::dup2(libc::STDERR_FILENO, libc::STDOUT_FILENO) } >= 0 {
        // Only a second call could fail, and there is none.
        let _ = DATA.set(data.into());
    }
}

/// Standard output stays shared on this platform.
#[cfg(not(unix))]
pub(crate) fn keep_for_data() {}

fn with_stdout(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let written = match DATA.get() {
        Some(mut data) => write(&mut data),
        None => {
            let mut stdout = io::stdout().lock();
            write(&mut stdout).and_then(|()| stdout.flush())
        }
    };
    written.map_err(Failure::Output)
}

/// Writes text to standard output.
pub(crate) fn text(text: &str) -> Result<()> {
    with_stdout(|stdout| stdout.write_all(text.as_bytes()))
}

/// Writes one line to standard output.
pub(crate) fn line(line: &str) -> Result<()> {
    text(&format!("{line}\n"))
}

/// Writes a JSON document to standard output.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let document =
        serde_json::to_string_pretty(value).map_err(|error| Failure::Output(error.into()))?;
    line(&document)
}

/// Writes one JSON object on a line of its own.
pub(crate) fn json_line(value: &impl Serialize) -> Result<()> {
    let document = serde_json::to_string(value).map_err(|error| Failure::Output(error.into()))?;
    line(&document)
}

/// Writes a small file that the user asked for.
pub(crate) fn file(path: &Path, content: &[u8]) -> Result<()> {
    std::fs::write(path, content).map_err(|error| unwritable(path, &error).into())
}

/// A file that the user named, and the flag or argument that names it.
type Named<'a> = (&'a str, Option<&'a Path>);

/// Refuses outputs of which two are one file, by whatever paths: one of them would be lost. So would an input
/// that an output replaces.
///
/// # Errors
/// Names both flags.
pub(crate) fn require_distinct(outputs: &[Named<'_>], inputs: &[Named<'_>]) -> Result<()> {
    fn given<'a>(files: &[Named<'a>]) -> Vec<(&'a str, &'a Path)> {
        files.iter().filter_map(|(flag, path)| Some((*flag, (*path)?))).collect()
    }
    let (outputs, inputs) = (given(outputs), given(inputs));
    for (index, (flag, path)) in outputs.iter().enumerate() {
        let is_same = |(_, other): &&(&str, &Path)| is_same_file(path, other);
        if let Some((other, _)) = outputs[..index].iter().find(is_same) {
            let message = format!("is the same file as {other}: {}", path.display());
            return Err(Error::configuration(*flag, message)
                .with_hint("give each a file of its own: the one would replace the other")
                .into());
        }
        if let Some((input, _)) = inputs.iter().find(is_same) {
            let message = format!("would replace {input}: {} is the same file", path.display());
            return Err(Error::configuration(*flag, message)
                .with_hint("write to another file, and rename it when all is well")
                .into());
        }
    }
    Ok(())
}

/// Whether two paths lead to one file, through links or other spellings. Devices such as `/dev/null` are not
/// files in this sense.
fn is_same_file(one: &Path, other: &Path) -> bool {
    match (std::fs::metadata(one), std::fs::metadata(other)) {
        (Ok(one_is), Ok(other_is)) if one_is.is_file() && other_is.is_file() => {
            is_same_inode(&one_is, &other_is) || final_path(one) == final_path(other)
        }
        (Ok(_), Ok(_)) => false,
        _ => final_path(one) == final_path(other),
    }
}

#[cfg(unix)]
fn is_same_inode(one: &Metadata, other: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// There is no stable name of a file here but its path.
#[cfg(not(unix))]
fn is_same_inode(_one: &Metadata, _other: &Metadata) -> bool {
    false
}

/// The path without links, also of a file that is not there yet.
fn final_path(path: &Path) -> PathBuf {
    let in_its_directory = || {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(".")).canonicalize().ok()?;
        Some(parent.join(path.file_name()?))
    };
    path.canonicalize().ok().or_else(in_its_directory).unwrap_or_else(|| path.to_path_buf())
}

/// Destination of a table of rows: a file of the user, or JSON lines on standard output.
pub(crate) enum RowsTo {
    /// A JSONL or Parquet file.
    File {
        path: PathBuf,
        /// Whether the file was created here; if so, it is removed when there are no rows to write.
        is_new: bool,
    },
    /// Standard output, through a temporary file.
    Stdout(TempPath),
}

/// Report on a written table, as JSON.
#[derive(Serialize)]
struct RowsReport<'a> {
    output: &'a Path,
    rows: usize,
}

impl RowsTo {
    /// The named file, checked to be writable before hours of work go into it; or standard output.
    pub(crate) fn new(file: Option<&Path>) -> Result<Self> {
        match file {
            Some(path) => {
                TableFormat::to_write(path)?;
                let is_new = !path.exists();
                File::options()
                    .create(true)
                    .append(true)
                    .open(path)
                    .map_err(|error| unwritable(path, &error))?;
                Ok(Self::File { path: path.into(), is_new })
            }
            None => tempfile::Builder::new()
                .prefix("sppo-")
                .suffix(".jsonl")
                .tempfile()
                .map(|file| Self::Stdout(file.into_temp_path()))
                .map_err(Failure::Output),
        }
    }

    /// Path to write the rows to.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::File { path, .. } => path,
            Self::Stdout(path) => path,
        }
    }

    /// Brings the written rows to their destination. As JSON, reports on a file; on standard output the
    /// rows themselves are the report.
    pub(crate) fn finish(self, rows: usize, report: ReportArguments) -> Result<()> {
        if let Self::File { path, .. } = &self
            && report.json
        {
            return json(&RowsReport { output: path, rows });
        }
        if let Self::Stdout(path) = &self {
            let mut file = File::open(path).map_err(Failure::Output)?;
            with_stdout(|stdout| io::copy(&mut file, stdout).map(|_| ()))?;
        }
        Ok(())
    }
}

impl Drop for RowsTo {
    fn drop(&mut self) {
        if let Self::File { path, is_new: true } = self
            && std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == 0)
        {
            // An empty file does no harm if it stays.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn unwritable(path: &Path, error: &io::Error) -> Error {
    Error::input(path, format!("cannot write this file: {error}"))
        .with_hint("choose a path that this user may write")
}
