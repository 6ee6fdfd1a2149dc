//! Times as RFC 3339 has them, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

/// Year, month and day of a day since 1970.
fn civil(days: i64) -> (i64, i64, i64) {
    // Years begin in March here, so that the day that leap years have more is their last; 400 years have 146,097 days.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

fn parts(time: SystemTime) -> (i64, u32) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(0), since.subsec_nanos())
}

/// To the second.
pub fn seconds(time: SystemTime) -> String {
    let (s, _) = parts(time);
    let (year, month, day) = civil(s.div_euclid(86_400));
    let of_day = s.rem_euclid(86_400);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

/// To the nanosecond, without zeros at the end.
pub fn nanoseconds(time: SystemTime) -> String {
    let whole = seconds(time);
    match parts(time).1 {
        0 => whole,
        n => format!("{}.{}Z", whole.trim_end_matches('Z'), format!("{n:09}").trim_end_matches('0')),
    }
}

/// Hours and minutes, in UTC.
pub fn clock(time: SystemTime) -> String {
    let of_day = parts(time).0.rem_euclid(86_400);
    format!("{:02}:{:02}", of_day / 3600, of_day / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates() {
        let at = |s, n| UNIX_EPOCH + Duration::new(s, n);
        assert_eq!(seconds(at(0, 5)), "1970-01-01T00:00:00Z");
        assert_eq!(nanoseconds(at(951_782_400, 120_000_000)), "2000-02-29T00:00:00.12Z");
        assert_eq!(nanoseconds(at(1_709_251_199, 1)), "2024-02-29T23:59:59.000000001Z");
        assert_eq!(nanoseconds(at(1_735_689_599, 0)), "2024-12-31T23:59:59Z");
        assert_eq!(clock(at(86_399, 0)), "23:59");
    }
}
