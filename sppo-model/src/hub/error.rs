//! Reasons for the hub not to do what it was asked.

use std::io;
use std::path::PathBuf;

/// Shorthand for results of this module.
pub(super) type Result<T> = std::result::Result<T, HubError>;

/// A failure of a request to the hub, in one sentence. None shows a token or a signed address.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// There is no token.
    #[error("the hub asks who you are, and there is no token")]
    NoToken,
    /// The hub does not know the token.
    #[error("the hub does not know this token")]
    WrongToken,
    /// The name cannot be that of a repository or a revision.
    #[error("`{0}` cannot be the name of a repository or of a revision")]
    InvalidName(String),
    /// The repository is another's, or the token may not write.
    #[error("this token may not write to `{repository}`{}", because(.reason))]
    NoPermission {
        /// Id of the repository.
        repository: String,
        /// The hub's own words; may be empty.
        reason: String,
    },
    /// There is no repository of this name, or none that the token may see.
    #[error("the hub has no repository `{0}`, or this token may not see it")]
    NoSuchRepository(String),
    /// The hub cannot be reached, or answers too slowly or not at all.
    #[error("the hub cannot be reached: {0}")]
    Unreachable(String),
    /// The hub was asked in offline mode.
    #[error("HF_HUB_OFFLINE forbids to ask the hub")]
    Offline,
    /// The hub refuses for another reason.
    #[error("the hub refuses {doing} (HTTP {status}){}", because(.message))]
    Refused {
        /// The request, as a noun.
        doing: &'static str,
        /// The HTTP status.
        status: u16,
        /// The hub's own words; may be empty.
        message: String,
    },
    /// The answer is not one of the protocol's.
    #[error("the hub's answer to {0} makes no sense")]
    Malformed(&'static str),
    /// Something else than the announced content arrived.
    #[error("something else than the announced content arrived")]
    Damaged,
    /// A file on this machine cannot be read or written.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// The caller asked to stop.
    #[error("stopped on request")]
    Cancelled,
}

fn because(reason: &str) -> String {
    match reason {
        "" => String::new(),
        reason => format!(": {reason}"),
    }
}

impl HubError {
    /// Advice for the user, where there is some.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NoToken => {
                "set HF_TOKEN to a token that may write, or log in with `hf auth login`"
            }
            Self::WrongToken => "check HF_TOKEN, or log in again with `hf auth login`",
            Self::InvalidName(_) => {
                "give `name` or `owner/name`, of letters, digits, `-`, `_` and `.`, and a branch for --revision"
            }
            Self::NoPermission { .. } => {
                "choose another name, or a token with write access to this owner's repositories"
            }
            Self::NoSuchRepository(_) => "check the owner and the name",
            Self::Unreachable(_) => {
                "check the network (HF_ENDPOINT names a mirror), and repeat the command: what is uploaded stays"
            }
            Self::Offline => "unset HF_HUB_OFFLINE",
            Self::Refused { .. } | Self::Malformed(_) | Self::Damaged => {
                "repeat the command later: what is uploaded stays"
            }
            Self::File { .. } => "check that the file can be read, or the directory be written",
            Self::Cancelled => return None,
        })
    }
}
