//! Files to upload: their content, hashes, and reading them while they are sent.

use std::fmt;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha1::{Digest, Sha1};
use sha2::Sha256;

use super::client::SourceFailure;
use super::error::{HubError, Result};
use crate::formats::files::hexadecimal;

/// Length of the beginning by which the hub tells text from data.
const SAMPLE_BYTES: u64 = 512;

/// Content of a file.
#[derive(Clone, Debug)]
enum Content {
    Path(PathBuf),
    Bytes(Arc<[u8]>),
}

/// A file to upload, by its path in the repository.
#[derive(Clone, Debug)]
pub struct UploadFile {
    /// Path in the repository, `/`-separated.
    pub path: String,
    content: Content,
    size: u64,
}

/// Identity of a file: to git, and to the storage of large files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hashes {
    /// SHA-1 of the file as a blob of git.
    pub(super) git: String,
    pub(super) sha256: String,
}

impl UploadFile {
    /// A file on this machine.
    ///
    /// # Errors
    /// When it cannot be examined.
    pub fn of_path(path: impl Into<String>, file: &Path) -> Result<Self> {
        let metadata = file.metadata().map_err(|cause| unreadable(file, cause))?;
        Ok(Self { path: path.into(), content: Content::Path(file.into()), size: metadata.len() })
    }

    /// A file that is nowhere on this machine.
    #[must_use]
    pub fn of_text(path: impl Into<String>, text: &str) -> Self {
        let bytes: Arc<[u8]> = text.as_bytes().into();
        Self { path: path.into(), size: bytes.len() as u64, content: Content::Bytes(bytes) }
    }

    /// The files of a directory and of those below it, sorted by path. Hidden ones are left out.
    ///
    /// # Errors
    /// When a directory cannot be listed, or a name is not UTF-8.
    pub fn of_directory(directory: &Path) -> Result<Vec<Self>> {
        let mut files = Vec::new();
        collect(directory, "", &mut files)?;
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(files)
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its first bytes.
    pub(super) fn sample(&self) -> Result<Vec<u8>> {
        self.read(0, self.size.min(SAMPLE_BYTES))
    }

    /// Everything that it holds.
    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        self.read(0, self.size)
    }

    fn read(&self, start: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(start, length)?
            .read_to_end(&mut bytes)
            .map_err(|cause| unreadable(Path::new(&self.path), cause))?;
        Ok(bytes)
    }

    /// A range of its bytes.
    fn open(&self, start: u64, length: u64) -> Result<Box<dyn Read>> {
        Ok(match &self.content {
            Content::Bytes(bytes) => {
                let mut cursor = Cursor::new(Arc::clone(bytes));
                cursor.set_position(start);
                Box::new(cursor.take(length))
            }
            Content::Path(path) => {
                let mut file =
                    std::fs::File::open(path).map_err(|cause| unreadable(path, cause))?;
                file.seek(SeekFrom::Start(start)).map_err(|cause| unreadable(path, cause))?;
                Box::new(file.take(length))
            }
        })
    }

    /// A range of its bytes to send; tells `sent` how many have been read, and stops with an error when
    /// `is_cancelled` says so or the file ends too early.
    pub(super) fn part<'a>(
        &'a self,
        start: u64,
        length: u64,
        sent: &'a dyn Fn(u64),
        is_cancelled: &'a dyn Fn() -> bool,
    ) -> Result<Box<dyn Read + 'a>> {
        let content = self.open(start, length)?;
        Ok(Box::new(Part { content, file: &self.path, read: 0, length, sent, is_cancelled }))
    }

    /// Reads the file once for both hashes.
    pub(super) fn hashes(&self, is_cancelled: &dyn Fn() -> bool) -> Result<Hashes> {
        let mut content = self.open(0, self.size)?;
        let (mut git, mut sha256) = (Sha1::new(), Sha256::new());
        git.update(format!("blob {}\0", self.size));
        let mut buffer = vec![0; 1 << 20];
        loop {
            if is_cancelled() {
                return Err(HubError::Cancelled);
            }
            let count = content
                .read(&mut buffer)
                .map_err(|cause| unreadable(Path::new(&self.path), cause))?;
            let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else { break };
            git.update(chunk);
            sha256.update(chunk);
        }
        Ok(Hashes { git: hexadecimal(&git.finalize()), sha256: hexadecimal(&sha256.finalize()) })
    }
}

fn collect(directory: &Path, prefix: &str, files: &mut Vec<UploadFile>) -> Result<()> {
    let entries = std::fs::read_dir(directory).map_err(|cause| unreadable(directory, cause))?;
    for entry in entries {
        let path = entry.map_err(|cause| unreadable(directory, cause))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            let cause = io::Error::new(io::ErrorKind::InvalidData, "its name is not UTF-8");
            return Err(unreadable(&path, cause));
        };
        if name.starts_with('.') {
            continue;
        }
        let inside = format!("{prefix}{name}");
        match path.is_dir() {
            true => collect(&path, &format!("{inside}/"), files)?,
            false => files.push(UploadFile::of_path(inside, &path)?),
        }
    }
    Ok(())
}

fn unreadable(path: &Path, cause: io::Error) -> HubError {
    HubError::File { path: path.into(), cause }
}

/// A range of a file that is being sent.
struct Part<'a> {
    content: Box<dyn Read>,
    file: &'a str,
    read: u64,
    length: u64,
    sent: &'a dyn Fn(u64),
    is_cancelled: &'a dyn Fn() -> bool,
}

impl fmt::Debug for Part<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of {} bytes of {}", self.read, self.length, self.file)
    }
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.is_cancelled)() {
            return Err(io::Error::other(SourceFailure::Cancelled));
        }
        let failed =
            |kind| io::Error::other(SourceFailure::File { path: self.file.into(), cause: kind });
        let count = self.content.read(buffer).map_err(|error| failed(error.kind()))?;
        if count == 0 && self.read < self.length && !buffer.is_empty() {
            return Err(failed(io::ErrorKind::UnexpectedEof));
        }
        self.read += count as u64;
        (self.sent)(self.read);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_of_sha256sum() {
        let file = UploadFile::of_text("hello", "hello world\n");
        let hashes = file.hashes(&|| false).unwrap();
        // git hash-object, sha256sum
        assert_eq!(hashes.git, "3b18e512dba79e4c8300dd08aeb37f8e728b8dad");
        assert_eq!(
            hashes.sha256,
            "a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447"
        );
    }

    #[test]
    fn parts_are_ranges_and_a_file_that_shrinks_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights");
        std::fs::write(&path, "0123456789").unwrap();
        let file = UploadFile::of_path("weights", &path).unwrap();
        let mut text = String::new();
        file.part(3, 4, &|_| (), &|| false).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "3456");
        std::fs::write(&path, "01234").unwrap();
        let error = file.part(3, 4, &|_| (), &|| false).unwrap().read_to_string(&mut text);
        assert!(error.is_err());
    }

    #[test]
    fn hidden_files_are_left_out_and_folders_are_walked() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("more")).unwrap();
        for name in ["b.json", ".partial-b.json", "more/a.txt"] {
            std::fs::write(directory.path().join(name), name).unwrap();
        }
        let files = UploadFile::of_directory(directory.path()).unwrap();
        let paths: Vec<&str> = files.iter().map(|file| &*file.path).collect();
        assert_eq!(paths, ["b.json", "more/a.txt"]);
    }
}
