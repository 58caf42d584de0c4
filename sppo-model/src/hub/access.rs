//! The way to the hub as the environment gives it: its address, the user's token, and the cache on this machine.

use std::fmt;
use std::path::PathBuf;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Secret that proves who the user is. It is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token, without the spaces and line ends around it; `None` if nothing else is there, or something that no
    /// header can carry.
    fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let is_token = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_token.then(|| Self(text.to_owned()))
    }

    /// The value of the header `Authorization`.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// The text without the token, which a server may repeat in what it says.
    pub(super) fn redact(&self, text: &str) -> String {
        text.replace(&self.0, "***")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(***)")
    }
}

/// Address and token of the hub, and whether it may be asked.
#[derive(Clone, Debug)]
pub struct HubAccess {
    /// The address without a slash at its end: `HF_ENDPOINT`, or the public hub.
    pub endpoint: String,
    /// The token: `HF_TOKEN`, or the file that `hf auth login` writes.
    pub token: Option<Token>,
    /// Whether `HF_HUB_OFFLINE` forbids to ask it.
    pub offline: bool,
}

impl HubAccess {
    /// The way that the environment variables of Python's `huggingface_hub` give.
    #[must_use]
    pub fn from_environment() -> Self {
        let endpoint = text("HF_ENDPOINT").map(|address| address.trim_end_matches('/').to_owned());
        let is_true = |value: String| {
            ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
        };
        Self {
            endpoint: endpoint.unwrap_or_else(|| DEFAULT_ENDPOINT.into()),
            token: text("HF_TOKEN").as_deref().and_then(Token::new).or_else(stored_token),
            offline: text("HF_HUB_OFFLINE").is_some_and(is_true),
        }
    }

    /// An address that the hub gave: where a mirror stands in for the public hub, the mirror's.
    pub(super) fn at_endpoint(&self, address: &str) -> String {
        match address.strip_prefix(DEFAULT_ENDPOINT) {
            Some(path) => format!("{}{path}", self.endpoint),
            None => address.to_owned(),
        }
    }

    /// Whether an address is the hub's own, which may see the token.
    pub(super) fn is_own(&self, address: &str) -> bool {
        address.strip_prefix(&self.endpoint).is_some_and(|path| path.starts_with('/'))
    }
}

/// `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `~/.cache/huggingface/hub`; `None` without a home directory.
pub(crate) fn hub_cache() -> Option<PathBuf> {
    path("HF_HUB_CACHE").or_else(|| hub_home().map(|home| home.join("hub")))
}

fn hub_home() -> Option<PathBuf> {
    path("HF_HOME")
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache").join("huggingface")))
}

/// The token in `$HF_TOKEN_PATH`, else in `$HF_HOME/token`.
fn stored_token() -> Option<Token> {
    let file = path("HF_TOKEN_PATH").or_else(|| hub_home().map(|home| home.join("token")))?;
    Token::new(&std::fs::read_to_string(file).ok()?)
}

fn text(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|value| !value.is_empty())
}

fn path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> HubAccess {
        let token = Token::new(" hf_secret\n");
        HubAccess { endpoint: "https://mirror.example".into(), token, offline: false }
    }

    #[test]
    fn a_token_is_never_shown() {
        let access = access();
        assert!(!format!("{access:?}").contains("hf_secret"));
        let token = access.token.unwrap();
        assert_eq!(token.header(), "Bearer hf_secret");
        assert_eq!(token.redact("no hf_secret here"), "no *** here");
        assert_eq!(Token::new("two words"), None);
        assert_eq!(Token::new(" \n"), None);
    }

    #[test]
    fn only_the_hub_itself_sees_the_token() {
        let access = access();
        assert!(access.is_own("https://mirror.example/org/name"));
        assert!(!access.is_own("https://mirror.example.evil/org/name"));
        assert!(!access.is_own("https://storage.example/part"));
        let given = access.at_endpoint("https://huggingface.co/org/name");
        assert_eq!(given, "https://mirror.example/org/name");
    }
}
