/// Parses a time as RFC 3339 writes it, in UTC, into nanoseconds since 1970. Returns `None` for any other text.
pub(crate) fn parse_utc_nanoseconds(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let [year, month, day] = parse_numbers(date, '-')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let [hour, minute, second] = parse_numbers(time, ':')?;
    let seconds = days_since_1970(year, month, day)? * 86_400 + hour * 3600 + minute * 60 + second;
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: i64 = format!("{fraction:0<9}").parse().ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

fn parse_numbers(text: &str, separator: char) -> Option<[i64; 3]> {
    let mut numbers = text.split(separator).map(|number| {
        let is_number = (1..=4).contains(&number.len());
        let number: u16 = is_number.then(|| number.parse().ok()).flatten()?;
        Some(i64::from(number))
    });
    let [first, second, third] = [numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some([first, second, third])
}

/// Returns the number of days between 1970-01-01 and a date of the Gregorian calendar.
fn days_since_1970(year: i64, month: i64, day: i64) -> Option<i64> {
    const DAYS_BEFORE_MONTH: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let before_month = DAYS_BEFORE_MONTH.get(usize::try_from(month - 1).ok()?)?;
    // `leap_days` counts the leap days up to the end of the month before.
    let leap_year = if month > 2 { year } else { year - 1 };
    let leap_days = |year: i64| year / 4 - year / 100 + year / 400;
    let leap_days = leap_days(leap_year) - leap_days(1969);
    Some((year - 1970) * 365 + leap_days + before_month + day - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_parsed() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-11-29T08:08:30.753606348Z", 1_795_939_710_753_606_348),
            ("2024-02-29T23:59:59.5Z", 1_709_251_199_500_000_000),
            ("2024-03-01T00:00:00Z", 1_709_251_200_000_000_000),
            ("2100-03-01T00:00:00Z", 4_107_542_400_000_000_000),
        ] {
            assert_eq!(parse_utc_nanoseconds(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "2026-11-29T08:08:30",
            "2026-11-29T08:08:30+01:00",
            "2026-13-29T08:08:30Z",
            "2026-00-29T08:08:30Z",
            "2026-11-29T08:08:30.1234567890Z",
            "2026-11-29T08:08:30.xZ",
            "2026-11-29-01T08:08:30Z",
            "99999-11-29T08:08:30Z",
            "9999-11-29T08:08:30Z",
        ] {
            assert_eq!(parse_utc_nanoseconds(text), None, "{text}");
        }
    }
}
