//! The way to an address: directly or by a proxy, as the environment says.
//!
//! The rules are curl's: `HTTP_PROXY` is for `http`, `HTTPS_PROXY` for `https`, `ALL_PROXY` for both, and
//! `NO_PROXY` names exceptions; capital letters or small ones. This machine itself is never asked by way of
//! a proxy.

use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use sppo_plugin::PluginError;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower_service::Service;

/// Opens connections to an address, in a limited time: that for the proxy and for TLS included.
#[derive(Clone)]
pub(crate) struct Connector {
    inner: HttpsConnector<Route>,
    limit: Duration,
}

impl Connector {
    pub(crate) fn new(uri: &Uri, limit: Duration, tls: ClientConfig) -> Result<Self, PluginError> {
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let inner = builder.enable_http1().wrap_connector(Route::to(uri, limit)?);
        Ok(Self { inner, limit })
    }

    /// Opens a connection and closes it again.
    pub(crate) async fn connect(mut self, uri: Uri) -> Result<(), AnyError> {
        poll_fn(|context| self.poll_ready(context)).await?;
        self.call(uri).await?;
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Route {
    Direct(HttpConnector),
    /// By a proxy that is asked to `CONNECT`.
    Tunnel(Tunnel<HttpConnector>),
    Socks(SocksV5<HttpConnector>),
}

impl Route {
    fn to(uri: &Uri, limit: Duration) -> Result<Self, PluginError> {
        let mut connector = HttpConnector::new();
        // It opens connections for others too, who look at the scheme themselves.
        connector.enforce_http(false);
        connector.set_nodelay(true);
        // Shared among the addresses of a host, so that one that does not answer leaves time for others.
        connector.set_connect_timeout(Some(limit));
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
        let socks = SocksV5::new(with_port(proxy.uri().clone(), 1080), connector);
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
    let anything = Matcher::builder().all("http://proxy").no(excepted.replace(' ', ",")).build();
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
type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, AnyError>> + Send>>;

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = AnyError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), AnyError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = timeout(self.limit, self.inner.call(uri));
        Box::pin(async { connecting.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))? })
    }
}

impl Service<Uri> for Route {
    type Response = TokioIo<TcpStream>;
    type Error = AnyError;
    type Future = Connecting<Self::Response>;

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
            Self::Tunnel(connector) => boxed(connector.call(with_own_port(uri))),
            Self::Socks(connector) => {
                let connecting = connector.call(with_own_port(uri));
                // It does not say that it is about the proxy.
                Box::pin(async {
                    connecting.await.map_err(|error| format!("proxy: {error}").into())
                })
            }
        }
    }
}

/// Says which port `http` means. Proxies are asked for that of `https` where none is given.
fn with_own_port(uri: Uri) -> Uri {
    match uri.scheme_str() {
        Some("http") => with_port(uri, 80),
        _ => uri,
    }
}

fn with_port(uri: Uri, port: u16) -> Uri {
    match (uri.scheme(), uri.host(), uri.port()) {
        (Some(scheme), Some(host), None) => {
            let parts = Uri::builder().scheme(scheme.clone()).authority(format!("{host}:{port}"));
            parts.path_and_query("/").build().unwrap_or(uri)
        }
        _ => uri,
    }
}

fn boxed<E: Into<AnyError>>(
    connecting: impl Future<Output = Result<TokioIo<TcpStream>, E>> + Send + 'static,
) -> Connecting<TokioIo<TcpStream>> {
    Box::pin(async { connecting.await.map_err(Into::into) })
}
