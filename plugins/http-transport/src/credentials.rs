//! Keys of services: read from where the user keeps them, sent in one header, shown nowhere.

use std::fmt;

use fs_err as fs;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use sppo_plugin::PluginError;

use crate::settings::TransportSettings;

const REDACTED: &str = "***";

/// Headers that carry secrets; these come from [`ApiKey`] alone.
const SECRET_HEADERS: [&str; 6] =
    ["authorization", "proxy-authorization", "api-key", "x-api-key", "cookie", "x-goog-api-key"];

/// The key of a service, and the header that carries it.
pub(crate) struct ApiKey {
    key: String,
    header: HeaderName,
    value: HeaderValue,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {REDACTED}", self.header)
    }
}

impl ApiKey {
    /// The key that the settings point at, if they do. Errors name the setting and never its value,
    /// which may be the key itself, written in the wrong place.
    pub(crate) fn load(settings: &TransportSettings<'_>) -> Result<Option<Self>, PluginError> {
        let (setting, key) = match (settings.api_key_env, settings.api_key_file) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(PluginError::configuration(
                    "`api_key_env` and `api_key_file` are both given",
                )
                .with_hint("leave one of them out"));
            }
            (Some(variable), None) => ("api_key_env", from_environment(variable)?),
            (None, Some(path)) => {
                let text = fs::read_to_string(path).map_err(|error| {
                    PluginError::configuration(format!("api_key_file: {error}"))
                        .with_hint("give the path of a file that holds the key and nothing else")
                })?;
                ("api_key_file", text)
            }
        };
        let key = key.trim().to_owned();
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(PluginError::configuration(format!(
                "{setting}: the key is empty or holds spaces or other characters that no key has"
            ))
            .with_hint("store the key alone, on one line"));
        }
        let header = HeaderName::try_from(&settings.api_key_header.0).map_err(|_| {
            PluginError::configuration("api_key_header: this is not the name of a header")
        })?;
        let text = match header == AUTHORIZATION {
            true => format!("Bearer {key}"),
            false => key.clone(),
        };
        let mut value = HeaderValue::try_from(text).map_err(|_| {
            PluginError::configuration(format!("{setting}: this key cannot be sent in a header"))
        })?;
        value.set_sensitive(true);
        Ok(Some(Self { key, header, value }))
    }

    /// The header to send.
    pub(crate) fn header(&self) -> (&HeaderName, &HeaderValue) {
        (&self.header, &self.value)
    }

    /// The text without the key, which a service may repeat in what it says.
    pub(crate) fn redact(&self, text: &str) -> String {
        text.replace(&self.key, REDACTED)
    }
}

fn from_environment(variable: &str) -> Result<String, PluginError> {
    let name = variable.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let value = if name { std::env::var(variable).ok() } else { None };
    value.ok_or_else(|| {
        PluginError::configuration("api_key_env: there is no environment variable of this name")
            .with_hint("give the name of the variable, not the key, and export it")
    })
}

/// The other headers of the settings.
pub(crate) fn plain_headers(
    settings: &TransportSettings<'_>,
) -> Result<Vec<(HeaderName, HeaderValue)>, PluginError> {
    let header = |(name, value): (&String, &String)| {
        let invalid = || {
            PluginError::configuration(format!("headers: `{name}` cannot be sent as it stands"))
                .with_hint("a header has a name of letters and `-`, and one line of text")
        };
        let name = HeaderName::try_from(name).map_err(|_| invalid())?;
        if SECRET_HEADERS.contains(&name.as_str()) {
            return Err(PluginError::configuration(format!(
                "headers: `{name}` carries a key, which would be recorded with the run"
            ))
            .with_hint("use `api_key_env` or `api_key_file`, and `api_key_header` for its name"));
        }
        Ok((name, HeaderValue::try_from(value).map_err(|_| invalid())?))
    };
    settings.headers.iter().map(header).collect()
}
