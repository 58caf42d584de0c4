//! Waiting times before the next attempt.

use std::time::{Duration, SystemTime};

use crate::settings::RetryConfig;

/// Full jitter: a random time up to a bound that doubles with every attempt, so that clients which
/// failed together do not come back together.
pub(crate) fn delay(config: &RetryConfig, failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(30);
    let bound = config.first_delay_seconds * f64::from(1_u32 << doublings);
    Duration::from_secs_f64(fastrand::f64() * bound.min(config.longest_delay_seconds))
}

/// Upper limit of a wait: longer than anybody waits, and short enough to be added to the time.
const LONGEST_WAIT: Duration = Duration::from_secs(366 * 24 * 3600);

/// The time that a `Retry-After` header asks for: seconds, or a date.
pub(crate) fn retry_after(header: &str) -> Option<Duration> {
    let header = header.trim();
    let wait = match header.parse::<f64>() {
        Ok(seconds) if seconds >= LONGEST_WAIT.as_secs_f64() => LONGEST_WAIT,
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        Err(_) => {
            let date = httpdate::parse_http_date(header).ok()?;
            date.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO)
        }
    };
    Some(wait.min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_spread_up_to_a_doubling_bound() {
        let config = RetryConfig {
            first_delay_seconds: 0.5,
            longest_delay_seconds: 3.0,
            ..RetryConfig::default()
        };
        for (failures, bound) in [(1, 0.5), (2, 1.0), (3, 2.0), (4, 3.0), (4_000, 3.0)] {
            let delays: Vec<f64> =
                (0..400).map(|_| delay(&config, failures).as_secs_f64()).collect();
            let (least, most) = (
                delays.iter().fold(9.0, |a: f64, b| a.min(*b)),
                delays.iter().fold(0.0, |a: f64, b| a.max(*b)),
            );
            assert!(most <= bound && most > 0.9 * bound && least < 0.1 * bound, "{least} {most}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after(" 2 "), Some(Duration::from_secs(2)));
        assert_eq!(retry_after("0.25"), Some(Duration::from_millis(250)));
        assert_eq!(retry_after("Fri, 01 Jan 1999 00:00:00 GMT"), Some(Duration::ZERO));
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        let wait = retry_after(&later).unwrap().as_secs();
        assert!((97..=100).contains(&wait), "{wait}");
        for invalid in ["", "soon", "-1", "NaN"] {
            assert_eq!(retry_after(invalid), None, "{invalid}");
        }
        for overflowing in ["9223372036854775807", "1e300", "inf", "Fri, 31 Dec 9999 00:00:00 GMT"]
        {
            assert_eq!(retry_after(overflowing), Some(LONGEST_WAIT), "{overflowing}");
        }
    }
}
