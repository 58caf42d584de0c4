//! One process per run.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::error::{Error, Result};
use crate::files::run_directory_error;

/// An exclusive lock on a file, which the operating system releases when the process ends in
/// whatever way. The file stays: removing it would race with the next process.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    pub(crate) fn acquire(path: &Path) -> Result<Self> {
        let fail = |error: &std::io::Error| run_directory_error(path, "lock this run", error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| fail(&error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(path, &mut file)),
            Err(TryLockError::Error(error)) => return Err(fail(&error)),
        }
        let holder = format!("{}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(holder.as_bytes()))
            .map_err(|error| fail(&error))?;
        Ok(Self { file })
    }

    /// Whether a process holds the lock of this file. Nothing is written.
    pub(super) fn is_held(path: &Path) -> bool {
        let Ok(file) = File::open(path) else { return false };
        match file.try_lock_shared() {
            Ok(()) => {
                // Closing the file, which follows, unlocks it as well.
                let _ = file.unlock();
                false
            }
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(_)) => false,
        }
    }
}

/// Unlocking rather than closing alone: a process that is being started at this moment, by any thread,
/// holds a copy of the file until it is another program.
impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file, which follows, unlocks it as well.
        let _ = self.file.unlock();
    }
}

fn in_use(path: &Path, file: &mut File) -> Error {
    let mut holder = String::new();
    // Where locks are mandatory the holder's number cannot be read; the message does without.
    let _ = file.read_to_string(&mut holder);
    let by = match holder.trim() {
        "" => "another process".to_owned(),
        pid => format!("process {pid}"),
    };
    let run = path.parent().unwrap_or(path);
    Error::run_directory(run, format!("{by} is working on this run"))
        .with_hint("wait for it or stop it, or choose another name with `--name`")
}
