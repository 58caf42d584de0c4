//! Dates for chat templates, as Python's `strftime` writes them.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

/// The date in UTC, of `SOURCE_DATE_EPOCH` where that is set, so that a run can be repeated.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let seconds = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|text| text.parse().ok())
        .or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|time| time.as_secs()))
        .unwrap_or_default();
    format_time(format, seconds)
}

fn format_time(format: &str, seconds: u64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] =
        ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let days = seconds / 86_400;
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let month_name = MONTHS[(month - 1) as usize % 12];
    let day_name = DAYS[(days % 7) as usize];
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let mut directive = characters.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = characters.next();
        }
        let padded = |value: u64| if unpadded { value.to_string() } else { format!("{value:02}") };
        text.push_str(&match directive {
            Some('Y') => year.to_string(),
            Some('y') => padded(year % 100),
            Some('m') => padded(month),
            Some('d') => padded(day),
            Some('H') => padded(hour),
            Some('I') => padded((hour + 11) % 12 + 1),
            Some('M') => padded(minute),
            Some('S') => padded(second),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_string(),
            Some('B') => month_name.to_string(),
            Some('b') => month_name[..3].to_string(),
            Some('A') => day_name.to_string(),
            Some('a') => day_name[..3].to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".to_string(),
            other => {
                let name = other.map(String::from).unwrap_or_default();
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now does not know %{name}"),
                ));
            }
        });
    }
    Ok(text)
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Counts whole
/// 400-year cycles of years that begin in March, so that the leap day comes last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (cycle, day_of_cycle) = (shifted / 146_097, shifted % 146_097);
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year =
        day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = cycle * 400 + year_of_cycle + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_agree_with_python() {
        // datetime.fromtimestamp(s, timezone.utc).strftime(...)
        let format = "%d %b %Y|%A %B %-d|%y-%m|%I:%M %p|%T %%";
        let cases = [
            (0, "01 Jan 1970|Thursday January 1|70-01|12:00 AM|00:00:00 %"),
            (951_868_799, "29 Feb 2000|Tuesday February 29|00-02|11:59 PM|23:59:59 %"),
            (1_763_953_200, "24 Nov 2025|Monday November 24|25-11|03:00 AM|03:00:00 %"),
            (4_107_542_400, "01 Mar 2100|Monday March 1|00-03|12:00 AM|00:00:00 %"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(format_time(format, seconds).unwrap(), expected);
        }
    }
}
