//! Addresses of services.

use hyper::Uri;
use sppo_plugin::PluginError;

/// Parameters of a query that carry secrets.
const SECRET_PARAMETERS: [&str; 6] =
    ["key", "api_key", "api-key", "apikey", "token", "access_token"];

/// An address of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The URI that requests go to.
    pub(crate) uri: Uri,
    /// The same without the query, for people and records.
    pub shown: String,
}

impl Address {
    /// Completes what the user gave with the protocol's own path: an address without a path gets
    /// `protocol_path`, and one that ends in a version such as `/v1` what comes after it. Base addresses of
    /// chat APIs are completed as their clients do. Any other path is taken as it stands.
    ///
    /// # Errors
    /// A configuration error if this is no HTTP address, or holds a password or a key.
    pub fn parse(text: &str, protocol_path: &str) -> Result<Self, PluginError> {
        // A password in it must not be repeated.
        let refused = |reason: &str| {
            PluginError::configuration(format!("endpoints: {reason}"))
                .with_hint("give addresses such as `http://localhost:8000`")
        };
        let text = text.trim();
        if may_be_shown(text) && !text.contains("://") {
            return Err(refused("an address must begin with http:// or https://")
                .with_hint(format!("write `http://{text}`, or `https://{text}`")));
        }
        let uri: Uri = text.parse().map_err(|_| refused("there is one that is no URL"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(refused("an address must begin with http:// or https://"));
        }
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(refused("there is an address without a host"));
        };
        if authority.as_str().contains('@') {
            return Err(refused(
                "an address holds a user name or password, which would be recorded",
            )
            .with_hint("use `api_key_env` or `api_key_file`"));
        }
        let query = uri.query().unwrap_or_default();
        let secret = query.split('&').any(|part| {
            let name = part.split('=').next().unwrap_or_default().to_ascii_lowercase();
            SECRET_PARAMETERS.contains(&name.as_str())
        });
        if secret {
            return Err(refused("the query of an address holds a key, which would be recorded")
                .with_hint("use `api_key_env` or `api_key_file`, and `api_key_header`"));
        }
        let path = completed(uri.path(), protocol_path);
        let shown = format!("{scheme}://{authority}{path}");
        let whole = if query.is_empty() { shown.clone() } else { format!("{shown}?{query}") };
        let uri = whole.parse().map_err(|_| refused("there is one that is no URL"))?;
        Ok(Self { uri, shown })
    }
}

/// The end of the path of a chat API, which its clients append to a base address.
const CHAT: &str = "/chat/completions";
/// Last parts of paths that are base addresses of chat APIs.
const CHAT_BASES: [&str; 6] =
    ["openai", "api", "inference", "openai-compatible", "compatible-mode", "compat"];

/// The path that a user gave, with what the protocol adds to it.
fn completed(given: &str, protocol_path: &str) -> String {
    let base = given.trim_end_matches('/');
    let last = base.rsplit('/').next().unwrap_or_default();
    // The version is part of the address already.
    let own = protocol_path.strip_prefix("/v1").unwrap_or(protocol_path);
    let is_chat = own == CHAT;
    if base.is_empty() {
        protocol_path.to_owned()
    } else if base.ends_with(own) {
        if is_chat { base.to_owned() } else { given.to_owned() }
    } else if is_version(last) {
        format!("{base}{own}")
    } else if is_chat && base.ends_with("/chat") {
        format!("{base}/completions")
    } else if is_chat && (given.ends_with('/') || CHAT_BASES.contains(&last) || is_deployment(base))
    {
        format!("{base}{CHAT}")
    } else {
        given.to_owned()
    }
}

/// Whether a part of a path is a version: `v1`, `v4`, `v1beta`.
fn is_version(part: &str) -> bool {
    let rest = part.strip_prefix('v').unwrap_or_default();
    rest.starts_with(|first: char| first.is_ascii_digit())
        && rest.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '.')
}

/// Whether a path is that of one of Azure's deployments.
fn is_deployment(base: &str) -> bool {
    base.rsplit('/').nth(1) == Some("deployments")
}

/// Whether a text holds nothing that may be a password or a key.
fn may_be_shown(text: &str) -> bool {
    !text.is_empty() && !text.contains(['@', '?', ' '])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_addresses_are_completed_as_clients_do() {
        let chat =
            |text: &str| Address::parse(text, "/v1/chat/completions").unwrap().uri.to_string();
        for (given, expected) in [
            ("http://h:1", "http://h:1/v1/chat/completions"),
            ("http://h:1/", "http://h:1/v1/chat/completions"),
            ("http://h:1/v1", "http://h:1/v1/chat/completions"),
            ("http://h:1/v1//", "http://h:1/v1/chat/completions"),
            ("http://h:1/v1/chat", "http://h:1/v1/chat/completions"),
            ("http://h:1/v1/chat/completions", "http://h:1/v1/chat/completions"),
            ("http://h:1/v1/chat/completions/", "http://h:1/v1/chat/completions"),
            ("http://h:1/v1beta/openai/", "http://h:1/v1beta/openai/chat/completions"),
            ("http://h:1/v1beta/openai", "http://h:1/v1beta/openai/chat/completions"),
            ("http://h:1/v1beta", "http://h:1/v1beta/chat/completions"),
            ("http://h:1/api/paas/v4/", "http://h:1/api/paas/v4/chat/completions"),
            ("http://h:1/api/v3", "http://h:1/api/v3/chat/completions"),
            ("http://h:1/openai/v1", "http://h:1/openai/v1/chat/completions"),
            ("http://h:1/compatible-mode/v1", "http://h:1/compatible-mode/v1/chat/completions"),
            ("http://h:1/my/gateway/", "http://h:1/my/gateway/chat/completions"),
            (
                "http://h:1/openai/deployments/gpt?api-version=2024-10-21",
                "http://h:1/openai/deployments/gpt/chat/completions?api-version=2024-10-21",
            ),
            ("http://h:1/v1?api-version=1", "http://h:1/v1/chat/completions?api-version=1"),
            ("HTTP://h:1/v1", "http://h:1/v1/chat/completions"),
            // These may be whole.
            ("http://h:1/my/judge", "http://h:1/my/judge"),
            ("http://h:1/judge.py", "http://h:1/judge.py"),
        ] {
            assert_eq!(chat(given), expected, "{given}");
        }
        for (given, path, expected) in [
            ("http://h:1/v1", "/v1/score", "http://h:1/v1/score"),
            ("http://h:1/v1/score/", "/v1/score", "http://h:1/v1/score/"),
            ("http://h:1/v2/", "/classify", "http://h:1/v2/classify"),
            ("http://h:1/classify", "/classify", "http://h:1/classify"),
            ("http://h:1/rewards/", "/get_reward", "http://h:1/rewards/"),
        ] {
            assert_eq!(Address::parse(given, path).unwrap().uri, expected, "{given}");
        }
    }

    #[test]
    fn an_address_without_a_scheme_is_refused_with_the_one_to_write() {
        let hint = |text: &str| Address::parse(text, "/x").unwrap_err().hint.unwrap();
        assert!(hint("localhost:8000").contains("`http://localhost:8000`"));
        assert!(hint("api.host.com/v1").contains("`https://api.host.com/v1`"));
        assert!(!hint("user:sEcReT@host").contains("sEcReT"));
        assert!(!hint("host/v1?key=sEcReT").contains("sEcReT"));
    }

    #[test]
    fn paths_are_completed_and_secrets_refused() {
        let shown = |text: &str| Address::parse(text, "/v1/chat/completions").unwrap().shown;
        assert_eq!(shown("http://localhost:8000"), "http://localhost:8000/v1/chat/completions");
        assert_eq!(shown("https://host/v1/"), "https://host/v1/chat/completions");
        assert_eq!(shown("https://host/proxy/v1"), "https://host/proxy/v1/chat/completions");
        assert_eq!(shown("https://host/my/judge?version=2"), "https://host/my/judge");
        let sent = Address::parse("https://host/my/judge?version=2", "/x").unwrap().uri;
        assert_eq!(sent, "https://host/my/judge?version=2");
        assert_eq!(
            Address::parse("http://h:1/v1", "/classify").unwrap().shown,
            "http://h:1/v1/classify"
        );
        for bad in ["localhost:8000", "ftp://host", "http://", "http://u:sEcReT@host", "", "h h"] {
            let error = Address::parse(bad, "/x").unwrap_err();
            assert!(!error.to_string().contains("sEcReT"), "{error}");
        }
        let error = Address::parse("https://host?key=sEcReT", "/x").unwrap_err();
        assert!(!error.to_string().contains("sEcReT"), "{error}");
    }
}
