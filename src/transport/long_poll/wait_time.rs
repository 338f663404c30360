//! The time that a poll waits for its first event: the time that the client asks for, within a range.

use std::{ops::RangeInclusive, time::Duration};

use http::{HeaderMap, HeaderName, request::Parts};
use tower_push_proto::decimal;

use crate::{source::query, transport::response::insert_ascii};

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The query parameter with which clients that cannot set the header `Prefer` ask for a wait time.
const TIMEOUT_PARAMETER: &str = "timeout";

/// The rules by which a poll gets its wait time.
#[derive(Clone, Debug)]
pub(super) struct WaitTimePolicy {
    /// The wait time of a client that asks for no wait time. The default may lie outside of `range`.
    pub(super) default: Duration,
    /// The wait times that a client may ask for. A time outside of the range is replaced by the nearer bound.
    pub(super) range: RangeInclusive<Duration>,
}

/// The wait time that was negotiated for one poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NegotiatedWaitTime {
    pub(super) duration: Duration,
    /// Whether the client has asked with the header `Prefer`, so that the response must confirm the wait time.
    is_from_prefer: bool,
}

impl WaitTimePolicy {
    /// Determines the wait time of a request. The header `Prefer` has precedence over the query. A malformed wait
    /// time counts as absent.
    pub(super) fn negotiate(&self, head: &Parts) -> NegotiatedWaitTime {
        let from_prefer = prefer_wait(&head.headers);
        let query = head.uri.query().unwrap_or_default();
        let requested = from_prefer.or_else(|| {
            query::decode_parameter(query, TIMEOUT_PARAMETER)
                .find_map(|value| parse_seconds(&value))
        });
        let clamp = |time: Duration| time.min(*self.range.end()).max(*self.range.start());
        NegotiatedWaitTime {
            duration: requested.map_or(self.default, clamp),
            is_from_prefer: from_prefer.is_some(),
        }
    }
}

impl NegotiatedWaitTime {
    /// Confirms the wait time in the response if the client asked with `Prefer`
    /// ([RFC 7240 §3](https://www.rfc-editor.org/rfc/rfc7240#section-3)).
    pub(super) fn insert_preference_applied(self, headers: &mut HeaderMap) {
        if self.is_from_prefer {
            let applied = format!("wait={}", self.duration.as_secs());
            insert_ascii(headers, PREFERENCE_APPLIED, &applied);
        }
    }
}

/// Returns the wait time in the header `Prefer`. If the header has several `wait` preferences, only the first one counts
/// ([RFC 7240 §2](https://www.rfc-editor.org/rfc/rfc7240#section-2)).
fn prefer_wait(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(PREFER).into_iter();
    let preferences = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    let (_, value) = preferences
        .filter_map(|preference| preference.split(';').next()?.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))?;
    let value = value.trim();
    let unquoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    parse_seconds(unquoted.unwrap_or(value))
}

fn parse_seconds(text: &str) -> Option<Duration> {
    decimal::parse_saturating(text.as_bytes()).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const DEFAULT_SECS: u64 = 25;

    /// Returns the wait time in seconds and the value of `Preference-Applied`.
    fn negotiate(uri: &str, prefer: &[&[u8]]) -> (u64, Option<String>) {
        let mut request = Request::get(uri);
        for value in prefer {
            request = request.header(PREFER, *value);
        }
        let policy = WaitTimePolicy {
            default: Duration::from_secs(DEFAULT_SECS),
            range: Duration::from_secs(5)..=Duration::from_secs(60),
        };
        let wait_time = policy.negotiate(&request.body(()).unwrap().into_parts().0);
        let mut headers = HeaderMap::new();
        wait_time.insert_preference_applied(&mut headers);
        let applied = headers.get(PREFERENCE_APPLIED);
        let applied = applied.map(|value| value.to_str().unwrap().to_owned());
        (wait_time.duration.as_secs(), applied)
    }

    #[test]
    fn prefer_header_is_applied_and_confirmed() {
        let confirmed = |seconds: u64| (seconds, Some(format!("wait={seconds}")));
        assert_eq!(negotiate("/", &[]), (DEFAULT_SECS, None));
        assert_eq!(negotiate("/", &[b"wait=10"]), confirmed(10));
        assert_eq!(
            negotiate("/", &[b"respond-async, WAIT = \"10\" ; x=y"]),
            confirmed(10)
        );
        assert_eq!(
            negotiate("/", &[b"handling=strict", b"wait=10"]),
            confirmed(10)
        );
        assert_eq!(negotiate("/", &[b"wait=10, wait=20"]), confirmed(10));
    }

    #[test]
    fn query_parameter_is_applied() {
        assert_eq!(negotiate("/?timeout=10", &[]), (10, None));
        assert_eq!(negotiate("/?timeout=10", &[b"wait=20"]).0, 20);
        assert_eq!(negotiate("/?timeout=x&timeout=10", &[]), (10, None));
    }

    #[test]
    fn wait_time_is_clamped_to_range() {
        for (requested, seconds) in [("0", 5), ("4", 5), ("60", 60), ("61", 60)] {
            assert_eq!(negotiate(&format!("/?timeout={requested}"), &[]).0, seconds);
        }
        let huge = "9".repeat(10 * 1024);
        assert_eq!(negotiate("/", &[format!("wait={huge}").as_bytes()]).0, 60);
    }

    #[test]
    fn malformed_values_are_ignored() {
        let default = (DEFAULT_SECS, None);
        for prefer in [
            b"" as &[u8],
            b"wait",
            b"wait=",
            b"wait=-1",
            b"wait=+1",
            b"wait=1.5",
            b"wait=1s",
            b"wait=\"1",
            b"awaits=1",
            b",;=,",
            b"wait=\xff",
        ] {
            assert_eq!(negotiate("/", &[prefer]), default, "{prefer:?}");
        }
        for query in [
            "timeout",
            "timeout=",
            "timeout=-1",
            "timeout=%ff",
            "timeouts=1",
        ] {
            assert_eq!(negotiate(&format!("/?{query}"), &[]), default, "{query}");
        }
    }
}
