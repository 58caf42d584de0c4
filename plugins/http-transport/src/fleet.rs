//! The state of each endpoint, and the choice of the next one to ask.
//!
//! Each endpoint has a limit of requests at the same time. It grows by one per success until the first
//! sign of overload, then by one per round of successes; a sign of overload halves it (additive increase,
//! multiplicative decrease). An endpoint that only fails is dropped: left alone for a while, then tried
//! with a single request, and left alone for twice as long if that fails too.

use std::time::{Duration, Instant};

use crate::address::Address;
use crate::client::{Failure, FailureKind};
use crate::settings::ConcurrencyConfig;

/// Failures in a row after which an endpoint is dropped. Random faults of a service that works do not
/// get there: at one fault in three once in 6 000 requests.
const FAILURES_TO_DROP: u32 = 8;
const FIRST_REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(30);

/// All endpoints.
pub(crate) struct Fleet {
    endpoints: Vec<Endpoint>,
    max: f64,
    /// The time of the first failure since the last success.
    failing_since: Option<Instant>,
    /// The last failure, with its address.
    last_failure: Option<String>,
    /// The time of the last success.
    last_success: Option<Instant>,
}

struct Endpoint {
    address: Address,
    in_flight: usize,
    limit: f64,
    /// Whether there was no sign of overload so far.
    starting: bool,
    last_cut: Option<Instant>,
    failures: u32,
    /// Asked to be left alone until then.
    paused_until: Option<Instant>,
    dropped: Option<Dropped>,
}

struct Dropped {
    until: Instant,
    rest: Duration,
}

/// The endpoint to ask next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// This one; its number must be given back to [`Fleet::succeeded`] or [`Fleet::failed`].
    Endpoint { index: usize, is_probe: bool },
    /// None before this moment.
    NoneUntil(Instant),
    /// None before a request comes back.
    None,
}

/// A change of state that people should know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// An endpoint was dropped for the first time in a row.
    Dropped(String),
    /// An endpoint is back.
    Back(String),
}

impl Fleet {
    pub(crate) fn new(addresses: Vec<Address>, config: &ConcurrencyConfig) -> Self {
        let max = config.max.max(1) as f64;
        let endpoint = |address| Endpoint {
            address,
            in_flight: 0,
            limit: (config.start as f64).clamp(1.0, max),
            starting: true,
            last_cut: None,
            failures: 0,
            paused_until: None,
            dropped: None,
        };
        let endpoints = addresses.into_iter().map(endpoint).collect();
        Self { endpoints, max, failing_since: None, last_failure: None, last_success: None }
    }

    pub(crate) fn address(&self, index: usize) -> &Address {
        &self.endpoints[index].address
    }

    /// The limits of all endpoints together.
    pub(crate) fn limit(&self) -> usize {
        self.endpoints.iter().map(|endpoint| endpoint.limit as usize).sum()
    }

    /// The endpoint with the largest share of its limit free, `avoid` only if there is no other.
    pub(crate) fn choose(&mut self, avoid: Option<usize>, now: Instant) -> Choice {
        let mut best: Option<(bool, f64, usize)> = None;
        let mut earliest: Option<Instant> = None;
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            match endpoint.free_from(now) {
                Some(moment) if moment > now => {
                    earliest = Some(earliest.map_or(moment, |known| known.min(moment)));
                }
                Some(_) => {
                    let load = endpoint.in_flight as f64 / endpoint.limit;
                    let candidate = (avoid == Some(index), load, index);
                    if best.is_none_or(|best| (candidate.0, candidate.1) < (best.0, best.1)) {
                        best = Some(candidate);
                    }
                }
                None => {}
            }
        }
        match (best, earliest) {
            (Some((_, _, index)), _) => {
                let endpoint = &mut self.endpoints[index];
                endpoint.in_flight += 1;
                Choice::Endpoint { index, is_probe: endpoint.dropped.is_some() }
            }
            (None, Some(moment)) => Choice::NoneUntil(moment),
            (None, None) => Choice::None,
        }
    }

    /// The time of the last success, at any endpoint.
    pub(crate) fn last_success(&self) -> Option<Instant> {
        self.last_success
    }

    pub(crate) fn succeeded(&mut self, index: usize) -> Option<News> {
        self.failing_since = None;
        self.last_success = Some(Instant::now());
        let max = self.max;
        let endpoint = &mut self.endpoints[index];
        endpoint.in_flight -= 1;
        endpoint.failures = 0;
        let growth = if endpoint.starting { 1.0 } else { 1.0 / endpoint.limit };
        endpoint.limit = (endpoint.limit + growth).min(max);
        let back = endpoint.dropped.take().is_some();
        back.then(|| News::Back(endpoint.address.shown.clone()))
    }

    /// `sent` is when the request that failed was sent.
    pub(crate) fn failed(
        &mut self,
        index: usize,
        failure: &Failure,
        sent: Instant,
        now: Instant,
    ) -> Option<News> {
        self.failing_since.get_or_insert(now);
        let endpoint = &mut self.endpoints[index];
        self.last_failure = Some(format!("{}: {}", endpoint.address.shown, failure.message));
        endpoint.in_flight -= 1;
        // A request that was under way when the limit was cut says nothing about the new limit.
        let is_new = endpoint.last_cut.is_none_or(|cut| sent >= cut);
        if failure.kind == FailureKind::Overloaded && is_new {
            endpoint.limit = (endpoint.limit / 2.0).max(1.0);
            endpoint.starting = false;
            endpoint.last_cut = Some(now);
        }
        if let Some(wait) = failure.retry_after {
            // Not all who were told to wait should come back at the same moment.
            let until = now + wait + wait.mul_f64(0.1 * fastrand::f64());
            endpoint.paused_until = Some(endpoint.paused_until.map_or(until, |old| old.max(until)));
            // It speaks, so it is alive.
            return None;
        }
        endpoint.failures += 1;
        match &mut endpoint.dropped {
            // The others that were under way when it was dropped tell nothing new.
            Some(dropped) if now < dropped.until => None,
            Some(dropped) => {
                dropped.rest = (dropped.rest * 2).min(LONGEST_REST);
                dropped.until = now + dropped.rest;
                None
            }
            None if endpoint.failures >= FAILURES_TO_DROP => {
                endpoint.dropped = Some(Dropped { until: now + FIRST_REST, rest: FIRST_REST });
                endpoint.limit = 1.0;
                endpoint.starting = true;
                self.last_failure.clone().map(News::Dropped)
            }
            None => None,
        }
    }

    /// The time for which nothing has succeeded, and the last failure.
    pub(crate) fn outage(&self, now: Instant) -> Option<(Duration, &str)> {
        let since = self.failing_since?;
        Some((now.saturating_duration_since(since), self.last_failure.as_deref()?))
    }

    /// Forgets an outage, at the beginning of a round.
    pub(crate) fn forget_outage(&mut self) {
        self.failing_since = None;
    }
}

impl Endpoint {
    /// The moment from which it can take a request: `now` or later; `None` if not before one comes back.
    fn free_from(&self, now: Instant) -> Option<Instant> {
        let paused = self.paused_until.unwrap_or(now);
        match &self.dropped {
            // One request tries whether it is back.
            Some(_) if self.in_flight > 0 => None,
            Some(dropped) => Some(paused.max(dropped.until).max(now)),
            None if self.in_flight >= (self.limit as usize).max(1) => None,
            None => Some(paused.max(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(endpoints: usize, config: ConcurrencyConfig) -> Fleet {
        let address = |index| Address::parse(&format!("http://host{index}"), "/compare").unwrap();
        Fleet::new((0..endpoints).map(address).collect(), &config)
    }

    fn failure(kind: FailureKind) -> Failure {
        Failure { kind, message: "no".into(), retry_after: None }
    }

    fn take(fleet: &mut Fleet, now: Instant) -> usize {
        match fleet.choose(None, now) {
            Choice::Endpoint { index, .. } => index,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_limit_grows_to_its_bound_and_is_halved_once_per_overload() {
        let now = Instant::now();
        let mut fleet = fleet(1, ConcurrencyConfig { max: 32, start: 2 });
        for _ in 0..100 {
            take(&mut fleet, now);
            fleet.succeeded(0);
        }
        assert_eq!(fleet.limit(), 32);
        let sent: Vec<usize> = (0..32).map(|_| take(&mut fleet, now)).collect();
        assert_eq!(fleet.choose(None, now), Choice::None);
        let later = now + Duration::from_secs(1);
        for index in sent.into_iter().take(5) {
            fleet.failed(index, &failure(FailureKind::Overloaded), now, later);
        }
        assert_eq!(fleet.limit(), 16);
        for _ in 0..16 {
            fleet.succeeded(0);
        }
        assert_eq!(fleet.limit(), 16, "by one per round, of which this was almost one");
    }

    #[test]
    fn work_is_balanced_and_a_failed_request_goes_elsewhere() {
        let now = Instant::now();
        let mut fleet = fleet(3, ConcurrencyConfig { max: 4, start: 4 });
        let mut counts = [0; 3];
        for _ in 0..9 {
            counts[take(&mut fleet, now)] += 1;
        }
        assert_eq!(counts, [3, 3, 3]);
        assert!(!matches!(fleet.choose(Some(0), now), Choice::Endpoint { index: 0, .. }));
    }

    #[test]
    fn a_dead_endpoint_is_dropped_and_tried_again_at_growing_intervals() {
        let start = Instant::now();
        let mut fleet = fleet(1, ConcurrencyConfig { max: 64, start: 64 });
        let sent: Vec<usize> = (0..20).map(|_| take(&mut fleet, start)).collect();
        let news: Vec<News> = sent
            .iter()
            .filter_map(|_| fleet.failed(0, &failure(FailureKind::Transient), start, start))
            .collect();
        assert_eq!(news, [News::Dropped("http://host0/compare: no".into())]);
        let Choice::NoneUntil(first) = fleet.choose(None, start) else { panic!() };
        assert_eq!(first - start, FIRST_REST);
        let probe = fleet.choose(None, first);
        assert_eq!(probe, Choice::Endpoint { index: 0, is_probe: true });
        assert_eq!(fleet.choose(None, first), Choice::None, "one probe at a time");
        fleet.failed(0, &failure(FailureKind::Transient), first, first);
        let Choice::NoneUntil(second) = fleet.choose(None, first) else { panic!() };
        assert_eq!(second - first, 2 * FIRST_REST);
        assert!(fleet.outage(second).is_some_and(|(lasted, _)| lasted == second - start));
        take(&mut fleet, second);
        assert_eq!(fleet.succeeded(0), Some(News::Back("http://host0/compare".into())));
        assert_eq!((fleet.outage(second), fleet.limit()), (None, 2));
    }

    #[test]
    fn retry_after_pauses_an_endpoint_and_not_its_neighbour() {
        let now = Instant::now();
        let mut fleet = fleet(2, ConcurrencyConfig { max: 4, start: 4 });
        let index = take(&mut fleet, now);
        let retry_after = Some(Duration::from_secs(10));
        let told = Failure { retry_after, ..failure(FailureKind::Overloaded) };
        fleet.failed(index, &told, now, now);
        for _ in 0..4 {
            assert_eq!(take(&mut fleet, now), 1 - index);
        }
        let Choice::NoneUntil(moment) = fleet.choose(None, now) else { panic!() };
        assert!((10.0..=11.0).contains(&(moment - now).as_secs_f64()));
    }
}
