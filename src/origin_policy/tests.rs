use http::{HeaderName, HeaderValue, Request, Uri, Version, header::HOST};
use proptest::prelude::*;

use super::*;

fn request_head(version: Version, host: &str) -> Parts {
    let mut head = Request::new(()).into_parts().0;
    head.version = version;
    if version == Version::HTTP_2 {
        let uri = Uri::builder().scheme("https").authority(host);
        head.uri = uri.path_and_query("/").build().unwrap();
    } else {
        head.headers.insert(HOST, host.parse().unwrap());
    }
    head
}

fn with_header(mut head: Parts, name: HeaderName, value: &[u8]) -> Parts {
    let value = HeaderValue::from_bytes(value).unwrap();
    head.headers.append(name, value);
    head
}

/// Returns whether the policy allows a request of this `Host` and `Origin`. HTTP/1.1 and HTTP/2 must agree.
fn allows(policy: &OriginPolicy, host: &str, origin: &[u8]) -> bool {
    let [http1, http2] = [Version::HTTP_11, Version::HTTP_2]
        .map(|version| policy.allows(&with_header(request_head(version, host), ORIGIN, origin)));
    assert_eq!(http1, http2, "{host} {origin:?}");
    http1
}

#[track_caller]
fn assert_same_origin(host: &str, origin: &str, expected: bool) {
    let policy = OriginPolicy::default();
    assert_eq!(
        allows(&policy, host, origin.as_bytes()),
        expected,
        "{host} {origin}"
    );
}

#[test]
fn same_host_and_port_is_same_origin() {
    for (host, origin) in [
        ("example.com", "https://example.com"),
        ("example.com", "http://example.com"),
        ("example.com", "wss://example.com"),
        ("example.com", "https://example.com:443"),
        ("example.com", "http://example.com:80"),
        ("example.com:443", "https://example.com"),
        ("example.com:80", "http://example.com"),
        ("example.com:80", "ws://example.com"),
        ("example.com:8443", "https://example.com:8443"),
        ("example.com:8443", "http://example.com:8443"),
        ("Example.COM", "HTTPS://eXample.com"),
        ("example.com.", "https://example.com."),
        ("my_app:3000", "http://my_app:3000"),
        ("127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("[::1]", "https://[::1]"),
        ("[::1]:3000", "http://[::1]:3000"),
        ("[2001:DB8::1]:443", "https://[2001:db8:0::1]"),
    ] {
        assert_same_origin(host, origin, true);
    }
}

#[test]
fn other_origins_are_not_same_origin() {
    for (host, origin) in [
        ("example.com", "null"),
        ("example.com", "file://"),
        ("example.com", "file:///"),
        ("example.com", "file://example.com"),
        ("example.com", "https://example.com:0"),
        ("example.com:0", "https://example.com:0"),
        ("example.com", ""),
        ("example.com", "*"),
        ("example.com", "example.com"),
        ("example.com", "//example.com"),
        ("example.com", "://example.com"),
        ("example.com", "https:example.com"),
        ("example.com", "https://"),
        ("example.com", "https://example.com:8443"),
        ("example.com", "https://example.com:80"),
        ("example.com", "http://example.com:443"),
        ("example.com:443", "http://example.com"),
        ("example.com:80", "https://example.com"),
        ("example.com:8443", "https://example.com"),
        ("example.com", "https://example.com.evil.org"),
        ("example.com", "https://evil-example.com"),
        ("example.com", "https://evilexample.com"),
        ("example.com", "https://app.example.com"),
        ("app.example.com", "https://example.com"),
        ("example.com", "https://example.co"),
        ("example.com", "https://example.com."),
        ("example.com.", "https://example.com"),
        ("example.com", "https://example.com/"),
        ("example.com", "https://example.com/path"),
        ("example.com", "https://example.com?query"),
        ("example.com", "https://example.com#fragment"),
        ("example.com", "https://example.com@evil.org"),
        ("example.com", "https://evil.org@example.com"),
        ("example.com", "https://user:pass@example.com"),
        ("example.com", "https://example.com\\@evil.org"),
        ("example.com", "https://example%2ecom"),
        ("example.com", "https://example.com:"),
        ("example.com", "https://example.com:+443"),
        ("example.com", "https://example.com:443:443"),
        ("example.com", "https://example.com:65979"),
        ("example.com", "https://example.com https://evil.org"),
        ("example.com", "https://evil.org https://example.com"),
        ("example.com", "https://example.com,https://evil.org"),
        ("example.com", "chrome-extension://example.com"),
        ("example.com:80", "app://example.com:80"),
        ("example.com", "1https://example.com"),
        ("[::1]", "https://[::2]"),
        ("[::1]:3000", "http://[::1]"),
        ("[::1]", "https://::1"),
        ("[::1]", "https://[::1"),
        ("[::1]", "https://[::1]evil.org"),
        ("[::1]", "https://[::1].evil.org:443"),
        ("[::1]", "https://[[::1]]"),
        ("[::1]", "https://[::1%251]"),
    ] {
        assert_same_origin(host, origin, false);
    }
}

#[test]
fn non_ascii_origin_is_refused() {
    let policy = OriginPolicy::same_origin().allow_if(|_, _| true);
    assert!(!allows(&policy, "example.com", b"https://example.com\xff"));
    assert!(!allows(
        &policy,
        "example.com",
        "https://exämple.com".as_bytes()
    ));
}

#[test]
fn two_origin_headers_are_refused() {
    let policy = OriginPolicy::same_origin().allow_if(|_, _| true);
    let one = with_header(
        request_head(Version::HTTP_11, "example.com"),
        ORIGIN,
        b"https://example.com",
    );
    assert!(policy.allows(&one));
    assert!(!policy.allows(&with_header(one, ORIGIN, b"https://example.com")));
}

#[test]
fn request_without_single_host_is_refused() {
    let policy = OriginPolicy::same_origin();
    let origin = |head| with_header(head, ORIGIN, b"https://example.com");
    let without_host = Request::new(()).into_parts().0;
    assert!(!policy.allows(&origin(without_host)));
    let twice = with_header(
        request_head(Version::HTTP_11, "example.com"),
        HOST,
        b"example.com",
    );
    assert!(!policy.allows(&origin(twice)));
    for host in ["user@example.com", "example.com/", "example.com:", ""] {
        assert!(
            !policy.allows(&origin(request_head(Version::HTTP_11, host))),
            "{host}"
        );
    }
}

#[test]
fn missing_host_passes_if_allowed() {
    let default = OriginPolicy::same_origin();
    let listed = OriginPolicy::only("https://example.com").unwrap();
    let without_host = || Request::new(()).into_parts().0;
    let empty_host = || request_head(Version::HTTP_11, "");
    for origin in ["http://localhost", "localhost", "file://", "null", ""] {
        for head in [without_host(), empty_host()] {
            let head = with_header(head, ORIGIN, origin.as_bytes());
            for policy in [&default, &listed] {
                assert!(!policy.allows(&head), "{origin}");
                assert!(policy.clone().allow_missing_host().allows(&head));
            }
        }
        for head in [
            with_header(empty_host(), HOST, b"example.com"),
            request_head(Version::HTTP_11, "localhost:3000"),
            with_header(request_head(Version::HTTP_2, "evil.org"), HOST, b""),
        ] {
            let head = with_header(head, ORIGIN, origin.as_bytes());
            assert!(!default.clone().allow_missing_host().allows(&head));
        }
    }
    let required = default.allow_missing_host().require_origin();
    assert!(!required.allows(&empty_host()));
}

#[test]
fn request_target_takes_precedence_over_host() {
    let policy = OriginPolicy::same_origin();
    let both = with_header(
        request_head(Version::HTTP_2, "example.com"),
        HOST,
        b"evil.org",
    );
    let allows = |origin| policy.allows(&with_header(both.clone(), ORIGIN, origin));
    assert!(allows(b"https://example.com"));
    assert!(!allows(b"https://evil.org"));
}

#[test]
fn missing_origin_passes_unless_required() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let head = request_head(version, "example.com");
        for policy in [
            OriginPolicy::same_origin(),
            OriginPolicy::any(),
            OriginPolicy::only("https://example.com").unwrap(),
            OriginPolicy::same_origin().allow_if(|_, _| false),
        ] {
            assert!(policy.allows(&head), "{policy:?}");
            assert!(!policy.require_origin().allows(&head));
        }
    }
}

#[test]
fn missing_origin_passes_for_listed_hosts_only() {
    let policy = OriginPolicy::only("http://localhost:3000").unwrap();
    let policy = policy.allow_origin("tauri://localhost").unwrap();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for (host, expected) in [
            ("localhost:3000", true),
            ("LOCALHOST:3000", true),
            ("localhost", false),
            ("localhost:3001", false),
            ("rebound.evil.org:3000", false),
            ("localhost.evil.org:3000", false),
        ] {
            assert_eq!(
                policy.allows(&request_head(version, host)),
                expected,
                "{host}"
            );
        }
    }
    let without_host = Request::new(()).into_parts().0;
    assert!(!policy.allows(&without_host));
    // Browsers always send an `Origin` with a WebSocket handshake.
    let websocket = with_header(without_host, SEC_WEBSOCKET_VERSION, b"13");
    assert!(policy.allows(&websocket));
    assert!(!policy.require_origin().allows(&websocket));
}

#[test]
fn cross_site_request_without_origin_is_refused() {
    let listed = OriginPolicy::only("https://example.com").unwrap();
    let same = OriginPolicy::same_origin().allow_if(|_, _| true);
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let site =
            |site: &[u8]| with_header(request_head(version, "example.com"), SEC_FETCH_SITE, site);
        for policy in [&listed, &same] {
            for value in ["same-origin", "none", "", "unknown-value"] {
                assert!(policy.allows(&site(value.as_bytes())), "{value}");
            }
            for value in ["cross-site", "same-site"] {
                let cross_origin = site(value.as_bytes());
                assert!(!policy.allows(&cross_origin), "{value}");
                assert!(OriginPolicy::any().allows(&cross_origin));
                // An allowed `Origin` takes precedence over `Sec-Fetch-Site`.
                let with_origin = with_header(cross_origin, ORIGIN, b"https://example.com");
                assert!(policy.allows(&with_origin));
            }
            let twice = with_header(site(b"same-origin"), SEC_FETCH_SITE, b"cross-site");
            assert!(!policy.allows(&twice));
        }
    }
}

#[test]
fn listed_origins_extend_same_origin() {
    let policy = OriginPolicy::same_origin()
        .allow_origin("https://App.example.com:443")
        .unwrap()
        .allow_origin("tauri://localhost")
        .unwrap()
        .require_origin();
    for (origin, expected) in [
        ("https://app.example.com", true),
        ("http://app.example.com", false),
        ("https://app.example.com:8443", false),
        ("https://app.example.com.evil.org", false),
        ("tauri://localhost", true),
        ("tauri://localhost:1", false),
        ("https://localhost", false),
        ("https://internal", true),
    ] {
        assert_eq!(
            allows(&policy, "internal", origin.as_bytes()),
            expected,
            "{origin}"
        );
    }
}

#[test]
fn only_refuses_same_origin() {
    let policy = OriginPolicy::only("http://localhost:3000").unwrap();
    assert!(allows(
        &policy,
        "rebound.evil.org:3000",
        b"http://localhost:3000"
    ));
    assert!(!allows(
        &policy,
        "rebound.evil.org:3000",
        b"http://rebound.evil.org:3000"
    ));
    assert!(OriginPolicy::only("localhost:3000").is_err());
}

#[test]
fn any_allows_every_origin() {
    for origin in ["https://evil.org", "null", "", "\\"] {
        let allowed = allows(&OriginPolicy::any(), "example.com", origin.as_bytes());
        assert!(allowed, "{origin}");
    }
}

#[test]
fn origins_without_host_are_allowed_by_name() {
    for (named, other) in [("null", "file://"), ("file://", "null")] {
        for policy in [
            OriginPolicy::same_origin().allow_origin(named).unwrap(),
            OriginPolicy::only(named).unwrap(),
        ] {
            assert!(allows(&policy, "example.com", named.as_bytes()));
            assert!(!allows(&policy, "example.com", other.as_bytes()));
            assert!(!allows(&policy, "example.com", b"file:///"));
        }
    }
    let debug = format!("{:?}", OriginPolicy::only("file://").unwrap());
    assert!(debug.contains("[file://]"), "{debug}");
}

#[test]
fn port_0_is_no_origin() {
    for text in ["https://example.com:0", "https://example.com:00"] {
        assert!(OriginPolicy::same_origin().allow_origin(text).is_err());
    }
}

#[test]
fn predicates_receive_only_origins_and_null() {
    let policy = OriginPolicy::same_origin()
        .allow_if(|origin, _| origin.ends_with(".example.org"))
        .allow_if(|origin, head| ["null", "file://"].contains(&origin) && head.uri.path() == "/");
    for (origin, expected) in [
        ("https://a.example.org", true),
        ("https://evil.net/.example.org", false),
        ("https://evil.net#.example.org", false),
        ("null", true),
        ("Null", false),
        ("file://", true),
        ("file:///", false),
        ("https://evil.net", false),
    ] {
        assert_eq!(
            allows(&policy, "example.com", origin.as_bytes()),
            expected,
            "{origin}"
        );
    }
}

#[test]
fn clone_has_its_own_rules() {
    let policy = OriginPolicy::same_origin();
    let more = policy.clone().allow_origin("https://a.org").unwrap();
    assert!(allows(&more, "example.com", b"https://a.org"));
    assert!(!allows(&policy, "example.com", b"https://a.org"));
}

#[test]
fn debug_shows_listed_origins() {
    let policy = OriginPolicy::same_origin()
        .allow_origin("https://a.org")
        .unwrap();
    assert_eq!(
        format!("{policy:?}"),
        "OriginPolicy { base: SameOrigin, listed: [https://a.org:443], predicates: 0, is_origin_required: false, is_missing_host_allowed: false }"
    );
}

/// Returns every spelling of the same origin that can be composed of [`PIECES`].
fn same_origin_spellings(host: &str) -> Vec<String> {
    let (name, port) = match host.strip_prefix("[::1]") {
        Some(port) => ("[::1]", port),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let schemes = [
        ("http", ":80"),
        ("https", ":443"),
        ("ws", ":80"),
        ("wss", ":443"),
    ];
    let spellings = |(scheme, default): (&str, &str)| match port {
        "" => vec![
            format!("{scheme}://{name}"),
            format!("{scheme}://{name}{default}"),
        ],
        _ if port == default => vec![
            format!("{scheme}://{name}"),
            format!("{scheme}://{name}{default}"),
        ],
        _ => vec![format!("{scheme}://{name}{port}")],
    };
    schemes.into_iter().flat_map(spellings).collect()
}

/// Pieces that random origins are composed of.
const PIECES: [&str; 23] = [
    "file://",
    "http://",
    "https://",
    "wss://",
    "http",
    "s",
    "://",
    "/",
    "example.com",
    "EXAMPLE.com",
    "evil",
    ".",
    "@",
    ":",
    ":80",
    ":443",
    ":8080",
    "[::1]",
    "[",
    "]",
    "null",
    " ",
    "%",
];

proptest! {
    #[test]
    fn same_origin_needs_equal_spelling(
        host in proptest::sample::select(vec![
            "example.com", "example.com:80", "example.com:443", "example.com:8080", "[::1]", "[::1]:8080",
        ]),
        pieces in proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..5),
    ) {
        let origin = pieces.concat();
        let expected = same_origin_spellings(host).contains(&origin.to_ascii_lowercase());
        prop_assert_eq!(allows(&OriginPolicy::default(), host, origin.as_bytes()), expected);
    }

    #[test]
    fn arbitrary_bytes_are_not_same_origin(host: Vec<u8>, origin: Vec<u8>) {
        let mut head = Request::new(()).into_parts().0;
        let origin = [&b"https://"[..], &origin].concat();
        for (name, value) in [(HOST, host), (ORIGIN, origin)] {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                head.headers.insert(name, value);
            }
        }
        let value = |name| head.headers.get(name).map(|v| v.as_bytes().to_ascii_lowercase());
        let origin_ends_with_host = value(ORIGIN)
            .is_none_or(|origin| value(HOST).is_some_and(|host| origin.ends_with(&host)));
        prop_assert!(origin_ends_with_host || !OriginPolicy::same_origin().allows(&head));
    }
}
