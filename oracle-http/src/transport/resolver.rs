//! Names of hosts, looked up now and then. The client's own resolver looks a name up for every request,
//! even where a connection is open already, and starts a thread to do so.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// How long a service that moves may be looked for where it was.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Remembers the host that was looked up last: an agent talks to one.
#[derive(Debug, Default)]
pub(super) struct RememberingResolver<R = DefaultResolver> {
    inner: R,
    last: Mutex<Option<Found>>,
}

#[derive(Debug)]
struct Found {
    uri: Uri,
    addresses: Vec<SocketAddr>,
    until: Instant,
}

impl<R: Resolver> RememberingResolver<R> {
    fn remembered(&self, uri: &Uri) -> Option<ResolvedSocketAddrs> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let found = last.as_ref().filter(|found| is_same_host(&found.uri, uri))?;
        (Instant::now() < found.until).then(|| {
            let mut addresses = self.empty();
            found.addresses.iter().for_each(|address| addresses.push(*address));
            addresses
        })
    }
}

impl<R: Resolver> Resolver for RememberingResolver<R> {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        if let Some(addresses) = self.remembered(uri) {
            return Ok(addresses);
        }
        let addresses = self.inner.resolve(uri, config, timeout)?;
        let found = Found {
            uri: uri.clone(),
            addresses: addresses.iter().copied().collect(),
            until: Instant::now() + REMEMBERED,
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        Ok(addresses)
    }
}

/// Whether two addresses name the same host and port.
fn is_same_host(a: &Uri, b: &Uri) -> bool {
    (a.scheme(), a.authority()) == (b.scheme(), b.authority())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU16, Ordering};

    use ureq::Agent;

    use super::*;

    /// Says how often it was asked by the port that it returns.
    #[derive(Debug, Default)]
    struct CountingResolver(AtomicU16);

    impl Resolver for CountingResolver {
        fn resolve(
            &self,
            _: &Uri,
            _: &Config,
            _: NextTimeout,
        ) -> Result<ResolvedSocketAddrs, Error> {
            let mut addresses = self.empty();
            addresses.push(([127, 0, 0, 1], self.0.fetch_add(1, Ordering::Relaxed)).into());
            Ok(addresses)
        }
    }

    #[test]
    fn a_host_is_looked_up_once_and_never_taken_for_another() {
        let resolver =
            RememberingResolver { inner: CountingResolver::default(), last: None.into() };
        let config = Agent::config_builder().build();
        let port = |uri: &str| {
            let timeout = NextTimeout::default();
            resolver.resolve(&uri.parse().unwrap(), &config, timeout).unwrap()[0].port()
        };
        let uris = [
            "http://judge:1/a",
            "http://judge:1/b",
            "http://judge:2/a",
            "https://judge:2/a",
            "https://judge:2/b",
        ];
        assert_eq!(uris.map(port), [0, 0, 1, 2, 2]);
    }
}
