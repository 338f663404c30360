//! The heads of responses: the client follows a redirect to where the standard of URLs says, if this is the same host, and it waits at least as
//! long as `Retry-After` says.

#![no_main]

use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response};
use libfuzzer_sys::fuzz_target;
use tower_push_client::{Client, ClientItem, Subscriber};
use url::Url;

const FEED: &str = "https://host/a/b?q=1";

fuzz_target!(|input: (bool, &[u8])| {
    let (is_redirect, value) = input;
    let Ok(value) = HeaderValue::from_bytes(value) else {
        return;
    };
    match is_redirect {
        true => follow(value),
        false => wait(value),
    }
});

/// Responds to the first request of a subscriber, and ends the response.
fn respond(status: u16, name: &str, value: HeaderValue, now: Instant) -> Subscriber {
    let url = FEED.parse().unwrap();
    let mut subscriber = Subscriber::new(Client::new().subscriber_config(), url, None, now);
    subscriber.poll_request(now).unwrap();
    let response = Response::builder().status(status).header(name, value);
    subscriber.handle_response(&response.body(()).unwrap().into_parts().0, now);
    subscriber.handle_end(Ok(()), now);
    subscriber
}

fn follow(location: HeaderValue) {
    let now = Instant::now();
    let mut subscriber = respond(307, "location", location.clone(), now);
    let Some(request) = subscriber.poll_request(now) else {
        let error = subscriber.poll_item(|| now).unwrap().unwrap_err();
        assert!(error.is_redirect());
        assert!(!is_plain_path(location.as_bytes()), "{location:?}: {error}");
        return;
    };
    let text = location.to_str().unwrap();
    // Browsers take a backslash for a slash.
    if text.contains('\\') {
        return;
    }
    let followed = url_of(&request);
    let mut expected = Url::parse(FEED).unwrap().join(text).unwrap();
    expected.set_fragment(None);
    if expected.scheme() == "wss" {
        expected = Url::parse(&expected.as_str().replacen("wss", "https", 1)).unwrap();
    }
    assert_eq!(followed, expected, "{text}");
    assert_eq!(followed.host_str(), Some("host"));
    assert_eq!((followed.scheme(), followed.port()), ("https", None));
}

fn url_of(request: &Request<()>) -> Url {
    Url::parse(&request.uri().to_string()).unwrap()
}

/// Whether this is a path that every client follows.
fn is_plain_path(location: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~/?=&".contains(byte);
    location.iter().all(is_plain) && !location.starts_with(b"//")
}

fn wait(retry_after: HeaderValue) {
    const HOUR: u64 = 3600;
    let now = Instant::now();
    let mut subscriber = respond(503, "retry-after", retry_after.clone(), now);
    let Some(Ok(ClientItem::Reconnecting { delay, .. })) = subscriber.poll_item(|| now) else {
        panic!("{retry_after:?}");
    };
    assert!(delay <= Duration::from_secs(2 * HOUR));
    let digits = retry_after.as_bytes().trim_ascii();
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    if is_number {
        let seconds = std::str::from_utf8(digits).unwrap().parse().unwrap_or(u64::MAX);
        let floor = Duration::from_secs(seconds.min(HOUR));
        assert!(floor <= delay && delay <= 2 * floor.max(Duration::from_secs(1)));
    } else {
        // Without a `Date`, a date says nothing.
        assert!(delay <= Duration::from_secs(1));
    }
    assert!(subscriber.poll_request(now + delay).is_some());
}
