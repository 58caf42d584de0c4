//! Numbers as people read them.

use std::time::Duration;

/// `48s`, `1m 05s`, `2h 03m`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// `12.3 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A count or a rate with about three significant digits: `0.27`, `4.1`, `310`, `61 440`.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "-".into(),
        0.0..1.0 => format!("{value:.2}"),
        1.0..100.0 => format!("{value:.1}"),
        _ => grouped(value.round()),
    }
}

/// With its sign: `+3.1`, `-12.0`.
pub(crate) fn signed(value: f64) -> String {
    format!("{value:+.1}")
}

/// `92.9 MB`.
pub(crate) fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        0.0..1e6 => format!("{:.0} kB", count / 1e3),
        1e6..1e9 => format!("{:.1} MB", count / 1e6),
        _ => format!("{:.2} GB", count / 1e9),
    }
}

/// Thousands set apart by spaces.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |rest| ("-", rest));
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(duration(Duration::from_millis(48_400)), "48s");
        assert_eq!(duration(Duration::from_secs(65)), "1m 05s");
        assert_eq!(duration(Duration::from_secs(7_380)), "2h 03m");
        assert_eq!(
            [0.268, 4.06, 310.2, 61_440.0, -1234.0].map(number),
            ["0.27", "4.1", "310", "61 440", "-1 234"]
        );
        assert_eq!(bytes(92_871_040), "92.9 MB");
        assert_eq!((signed(3.14), percent(0.705)), ("+3.1".into(), "70.5 %".into()));
    }
}
