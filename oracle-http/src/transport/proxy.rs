//! Which proxy leads to an address, by the environment.
//!
//! The rules are curl's: `HTTP_PROXY` is for `http`, `HTTPS_PROXY` for `https`, `ALL_PROXY` for both, and
//! `NO_PROXY` names exceptions; capital letters or small ones. This machine itself is never asked by way of
//! a proxy.

use std::net::IpAddr;

use sppo_core::plugin::PluginError;
use ureq::Proxy;
use ureq::http::Uri;

/// The proxy for an address, if there is one.
pub(super) fn for_address(uri: &Uri) -> Result<Option<Proxy>, PluginError> {
    let variables = match uri.scheme_str() {
        Some("https") => ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
        _ => ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"],
    };
    if is_this_machine(uri) || Proxy::try_from_env().is_some_and(|any| any.is_no_proxy(uri)) {
        return Ok(None);
    }
    let set = variables.iter().find_map(|name| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
        Some((name, value))
    });
    let Some((name, value)) = set else { return Ok(None) };
    // The value may hold a password.
    Proxy::new(&value).map(Some).map_err(|_| {
        PluginError::configuration(format!("the environment variable {name} is no proxy's address"))
            .with_hint("give `http://host:port`, or unset it")
    })
}

fn is_this_machine(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
