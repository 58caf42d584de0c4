//! The way to an address: directly or by a proxy, as the environment says.
//!
//! The rules are curl's: `HTTP_PROXY` is for `http`, `HTTPS_PROXY` for `https`, `ALL_PROXY` for both, and
//! `NO_PROXY` names exceptions; capital letters or small ones. This machine itself is never asked by way of
//! a proxy.

use std::error::Error;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use sppo_core::plugin::PluginError;
use tokio::net::TcpStream;
use tower_service::Service;

/// Opens connections.
#[derive(Clone, Debug)]
pub(super) enum Route {
    Direct(HttpConnector),
    /// By a proxy that is asked to `CONNECT`.
    Tunnel(Tunnel<HttpConnector>),
    Socks(SocksV5<HttpConnector>),
}

impl Route {
    pub(super) fn to(uri: &Uri, connect_timeout: Duration) -> Result<Self, PluginError> {
        let mut connector = HttpConnector::new();
        // It opens connections for others too, who look at the scheme themselves.
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(connect_timeout));
        let Some((variable, value)) = proxy_variable(uri) else {
            return Ok(Self::Direct(connector));
        };
        // The value may hold a password.
        let refused = || {
            PluginError::configuration(format!(
                "the environment variable {variable} is no proxy's address"
            ))
            .with_hint("give `http://host:port` or `socks5://host:port`, or unset it")
        };
        let proxy = Matcher::builder().all(value.as_str()).build().intercept(uri);
        let proxy = proxy.ok_or_else(refused)?;
        match proxy.uri().scheme_str() {
            Some("http") => Ok(Self::tunnel(&proxy, connector)),
            Some("socks5" | "socks5h") => Ok(Self::socks(&proxy, connector)),
            _ => Err(refused()),
        }
    }

    fn tunnel(proxy: &Intercept, connector: HttpConnector) -> Self {
        let tunnel = Tunnel::new(proxy.uri().clone(), connector);
        Self::Tunnel(match proxy.basic_auth() {
            Some(credentials) => tunnel.with_auth(credentials.clone()),
            None => tunnel,
        })
    }

    fn socks(proxy: &Intercept, connector: HttpConnector) -> Self {
        // The proxy looks names up, for `socks5` too: here it would keep all others waiting.
        let socks = SocksV5::new(proxy.uri().clone(), connector);
        Self::Socks(match proxy.raw_auth() {
            Some((user, password)) => socks.with_auth(user.to_owned(), password.to_owned()),
            None => socks,
        })
    }
}

/// The variable that names the proxy for an address, and its value.
fn proxy_variable(uri: &Uri) -> Option<(&'static str, String)> {
    let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let excepted = value("no_proxy").or_else(|| value("NO_PROXY")).unwrap_or_default();
    let anything = Matcher::builder().all("http://proxy").no(excepted).build();
    if is_this_machine(uri) || anything.intercept(uri).is_none() {
        return None;
    }
    let names = match uri.scheme_str() {
        Some("https") => ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
        _ => ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"],
    };
    names.into_iter().find_map(|name| Some((name, value(name)?)))
}

fn is_this_machine(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

type AnyError = Box<dyn Error + Send + Sync>;

impl Service<Uri> for Route {
    type Response = TokioIo<TcpStream>;
    type Error = AnyError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, AnyError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), AnyError>> {
        match self {
            Self::Direct(connector) => connector.poll_ready(context).map_err(AnyError::from),
            Self::Tunnel(connector) => connector.poll_ready(context).map_err(AnyError::from),
            Self::Socks(connector) => connector.poll_ready(context).map_err(AnyError::from),
        }
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        match self {
            Self::Direct(connector) => boxed(connector.call(uri)),
            Self::Tunnel(connector) => boxed(connector.call(with_port(uri))),
            Self::Socks(connector) => boxed(connector.call(with_port(uri))),
        }
    }
}

/// Says which port `http` means. Proxies are asked for that of `https` where none is given.
fn with_port(uri: Uri) -> Uri {
    match (uri.scheme_str(), uri.host(), uri.port()) {
        (Some("http"), Some(host), None) => {
            let parts = Uri::builder().scheme("http").authority(format!("{host}:80"));
            parts.path_and_query("/").build().unwrap_or(uri)
        }
        _ => uri,
    }
}

fn boxed<E: Into<AnyError>>(
    connecting: impl Future<Output = Result<TokioIo<TcpStream>, E>> + Send + 'static,
) -> <Route as Service<Uri>>::Future {
    Box::pin(async { connecting.await.map_err(Into::into) })
}
