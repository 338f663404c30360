//! How long a poll waits: what the client asks for, within bounds.

use std::{ops::RangeInclusive, time::Duration};

use http::{HeaderMap, HeaderName, request::Parts};

use crate::{source::query, transport::response::insert_ascii};

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The query parameter, for clients that cannot set headers.
const TIMEOUT: &str = "timeout";

#[derive(Clone, Debug)]
pub(super) struct Waits {
    pub(super) default: Duration,
    pub(super) bounds: RangeInclusive<Duration>,
}

/// How long one poll waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) time: Duration,
    /// By the `Prefer` header, which wants to be told.
    is_preferred: bool,
}

impl Waits {
    /// Header before query, and what cannot be read does not count.
    pub(super) fn of(&self, head: &Parts) -> Wait {
        let preferred = preferred(&head.headers);
        let query = head.uri.query().unwrap_or_default();
        let asked =
            preferred.or_else(|| query::parameter_values(query, TIMEOUT).find_map(|v| seconds(&v)));
        let within = |time: Duration| time.min(*self.bounds.end()).max(*self.bounds.start());
        Wait {
            time: asked.map_or(self.default, within),
            is_preferred: preferred.is_some(),
        }
    }
}

impl Wait {
    /// Tells the client of the wait time that it got where it asked by `Prefer`
    /// ([RFC 7240 §3](https://www.rfc-editor.org/rfc/rfc7240#section-3)).
    pub(super) fn tell(self, headers: &mut HeaderMap) {
        if self.is_preferred {
            let applied = format!("wait={}", self.time.as_secs());
            insert_ascii(headers, PREFERENCE_APPLIED, &applied);
        }
    }
}

/// The first `wait` among the preferences
/// ([RFC 7240 §2](https://www.rfc-editor.org/rfc/rfc7240#section-2)): of several only that one counts.
fn preferred(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(PREFER).into_iter();
    let preferences = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    let wait = preferences
        .filter_map(|preference| preference.split(';').next()?.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"));
    let value = wait?.1.trim();
    let unquoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    seconds(unquoted.unwrap_or(value))
}

/// More than fits is longer than any bound.
fn seconds(text: &str) -> Option<Duration> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const DEFAULT: u64 = 25;

    /// In seconds, and what the client is told.
    fn wait(uri: &str, prefer: &[&[u8]]) -> (u64, Option<String>) {
        let mut request = Request::get(uri);
        for value in prefer {
            request = request.header(PREFER, *value);
        }
        let waits = Waits {
            default: Duration::from_secs(DEFAULT),
            bounds: Duration::from_secs(5)..=Duration::from_secs(60),
        };
        let wait = waits.of(&request.body(()).unwrap().into_parts().0);
        let mut headers = HeaderMap::new();
        wait.tell(&mut headers);
        let told = headers.get(PREFERENCE_APPLIED);
        let told = told.map(|value| value.to_str().unwrap().to_owned());
        (wait.time.as_secs(), told)
    }

    #[test]
    fn a_client_may_ask_by_header() {
        let told = |seconds: u64| (seconds, Some(format!("wait={seconds}")));
        assert_eq!(wait("/", &[]), (DEFAULT, None));
        assert_eq!(wait("/", &[b"wait=10"]), told(10));
        assert_eq!(
            wait("/", &[b"respond-async, WAIT = \"10\" ; x=y"]),
            told(10)
        );
        assert_eq!(wait("/", &[b"handling=strict", b"wait=10"]), told(10));
        assert_eq!(wait("/", &[b"wait=10, wait=20"]), told(10));
    }

    #[test]
    fn a_client_may_ask_by_query() {
        assert_eq!(wait("/?timeout=10", &[]), (10, None));
        assert_eq!(wait("/?timeout=10", &[b"wait=20"]).0, 20);
        assert_eq!(wait("/?timeout=x&timeout=10", &[]), (10, None));
    }

    #[test]
    fn it_gets_what_is_within_the_bounds() {
        for (asked, got) in [("0", 5), ("4", 5), ("60", 60), ("61", 60)] {
            assert_eq!(wait(&format!("/?timeout={asked}"), &[]).0, got);
        }
        let huge = "9".repeat(10 * 1024);
        assert_eq!(wait("/", &[format!("wait={huge}").as_bytes()]).0, 60);
    }

    #[test]
    fn what_cannot_be_read_is_ignored() {
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
            assert_eq!(wait("/", &[prefer]), (DEFAULT, None), "{prefer:?}");
        }
        for query in [
            "timeout",
            "timeout=",
            "timeout=-1",
            "timeout=%ff",
            "timeouts=1",
        ] {
            assert_eq!(wait(&format!("/?{query}"), &[]), (DEFAULT, None), "{query}");
        }
    }
}
