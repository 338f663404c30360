use std::time::Duration;

use http::{
    HeaderMap,
    header::{DATE, RETRY_AFTER},
};
use tower_push_proto::decimal;

/// Reads `Retry-After` ([RFC 9110 §10.2.3](https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3)): a number of seconds, or a date. A date is
/// compared with the `Date` of the response, so that the clocks of client and server need not agree.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Some(seconds) = decimal::parse_saturating(value.as_bytes()) {
        return Some(Duration::from_secs(seconds));
    }
    let time = httpdate::parse_http_date(value).ok()?;
    let date = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    Some(time.duration_since(date).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(retry_after_value: &'static str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static(retry_after_value));
        let date = HeaderValue::from_static("Sat, 28 Nov 2026 22:00:00 GMT");
        headers.insert(DATE, date);
        retry_after(&headers)
    }

    #[test]
    fn seconds_and_dates_are_read() {
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(
            read("99999999999999999999"),
            Some(Duration::from_secs(u64::MAX))
        );
        let date = "Sat, 28 Nov 2026 22:00:30 GMT";
        assert_eq!(read(date), Some(Duration::from_secs(30)));
        assert_eq!(read("Sat, 28 Nov 2026 21:00:00 GMT"), Some(Duration::ZERO));
        for unreadable in ["", "-1", "1.5", "soon"] {
            assert_eq!(read(unreadable), None);
        }
    }
}
