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
    /// `protocol_path`, and one that ends in `/v1` what comes after it.
    ///
    /// # Errors
    /// A configuration error if this is no HTTP address, or holds a password or a key.
    pub fn parse(text: &str, protocol_path: &str) -> Result<Self, PluginError> {
        // A password in it must not be repeated.
        let refused = |reason: &str| {
            PluginError::configuration(format!("endpoints: {reason}"))
                .with_hint("give addresses such as `http://localhost:8000`")
        };
        let uri: Uri = text.trim().parse().map_err(|_| refused("there is one that is no URL"))?;
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
        let path = match uri.path().trim_end_matches('/') {
            "" => protocol_path.to_owned(),
            given if given.ends_with("/v1") => {
                format!("{given}{}", protocol_path.trim_start_matches("/v1"))
            }
            _ => uri.path().to_owned(),
        };
        let shown = format!("{scheme}://{authority}{path}");
        let whole = if query.is_empty() { shown.clone() } else { format!("{shown}?{query}") };
        let uri = whole.parse().map_err(|_| refused("there is one that is no URL"))?;
        Ok(Self { uri, shown })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
