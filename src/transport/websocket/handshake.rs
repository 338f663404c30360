//! The opening handshake: [RFC 6455 §4.2](https://www.rfc-editor.org/rfc/rfc6455#section-4.2) over HTTP/1.1,
//! [RFC 8441 §5](https://www.rfc-editor.org/rfc/rfc8441#section-5) over HTTP/2.

use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode, Version,
    header::{
        ALLOW, CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
    },
    request::Parts,
};
use hyper::upgrade::OnUpgrade;
#[cfg(feature = "deflate")]
use tower_push_proto::websocket::deflate;
use tower_push_proto::{
    header_list::{contains_token, single_value},
    websocket::handshake::{accept_key, choose_subprotocol},
};

use crate::{origin_policy::OriginPolicy, source::Rejection, transport::PushBody};

/// The upgrade token, and the `:protocol`. Both are compared without regard to case (RFC 9110 §7.8).
const WEBSOCKET: &str = "websocket";

/// The only version there is: that of RFC 6455.
const VERSION: &str = "13";

/// On which terms a WebSocket is to be had.
pub(super) struct Terms<'a, P> {
    pub origin: &'a OriginPolicy,
    /// The subprotocols that are spoken here, in any order: it is the client's that counts.
    pub protocols: &'a [P],
    /// Whether messages may be compressed.
    #[cfg(feature = "deflate")]
    pub deflate: bool,
}

/// What was agreed, and where the socket will come from.
#[derive(Debug)]
pub(super) struct Accepted {
    pub on_upgrade: OnUpgrade,
    pub response: Response<PushBody>,
    /// Which of the [`protocols`](Terms::protocols).
    pub protocol: Option<usize>,
    #[cfg(feature = "deflate")]
    pub deflate: Option<deflate::DeflateParams>,
}

/// Whether the request wants a WebSocket, rightly or wrongly.
pub(super) fn is_asked(head: &Parts) -> bool {
    match head.version {
        Version::HTTP_11 => contains_token(&head.headers, UPGRADE, WEBSOCKET),
        version if is_multiplexed(version) => {
            let protocol = protocol(head);
            head.method == Method::CONNECT && protocol.is_some_and(is_websocket)
        }
        // An `Upgrade` in HTTP/1.0 is to be ignored (RFC 9110 §7.8).
        _ => false,
    }
}

/// Agrees on a WebSocket, or says why not. The upgrade is taken out of the head's extensions only if all else is well.
pub(super) fn accept<P: AsRef<str>>(
    head: &mut Parts,
    terms: &Terms<'_, P>,
) -> Result<Accepted, Rejection> {
    let mut response = if is_multiplexed(head.version) {
        connect(head)?
    } else {
        switch(head)?
    };
    let chosen = choose_subprotocol(&head.headers, terms.protocols)
        .map_err(|_| bad_request("`Sec-WebSocket-Protocol` is to list tokens"))?;
    if !terms.origin.allows(head) {
        return Err(Rejection::new(StatusCode::FORBIDDEN).message("not for pages of this origin"));
    }
    let protocol = chosen.map(|(place, name)| {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, name);
        place
    });
    #[cfg(feature = "deflate")]
    let deflate = if terms.deflate {
        negotiate_deflate(&head.headers, response.headers_mut())
    } else {
        None
    };
    Ok(Accepted {
        on_upgrade: take_upgrade(head)?,
        response,
        protocol,
        #[cfg(feature = "deflate")]
        deflate,
    })
}

/// HTTP/1.1: 101, if all is as RFC 6455 §4.2.1 has it.
fn switch(head: &Parts) -> Result<Response<PushBody>, Rejection> {
    let headers = &head.headers;
    match (&head.method, is_asked(head)) {
        (&Method::GET, true) => {}
        // HEAD is answered as GET would be (RFC 9110 §9.3.2), but cannot be upgraded.
        (&Method::GET | &Method::HEAD, false) => {
            return Err(upgrade_required(
                "there is a WebSocket here: ask for it with `Upgrade: websocket`, in HTTP/1.1 \
                 (a proxy in between has to hand that on)",
            ));
        }
        _ => return Err(method_not_allowed("GET", "a WebSocket is asked for by GET")),
    }
    if !contains_token(headers, CONNECTION, "upgrade") {
        return Err(bad_request(
            "`Upgrade` without `Connection: upgrade` (a proxy in between has to hand on both)",
        ));
    }
    if has_body(headers) {
        // Its bytes would be read as the first frames.
        return Err(bad_request("a request for a WebSocket has no body"));
    }
    if single_value(headers, SEC_WEBSOCKET_VERSION).is_none_or(|version| version != VERSION) {
        return Err(wrong_version(head));
    }
    let accept = single_value(headers, SEC_WEBSOCKET_KEY)
        .and_then(|key| accept_key(key.as_bytes()))
        .ok_or_else(|| bad_request("`Sec-WebSocket-Key` is to be the base64 of 16 bytes, once"))?;
    let mut response = Response::new(PushBody::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
    answer.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// HTTP/2: 200 to an extended CONNECT. A key is not looked at, nor answered (RFC 8441 §5).
fn connect(head: &Parts) -> Result<Response<PushBody>, Rejection> {
    if head.method != Method::CONNECT {
        let message = "there is a WebSocket here: over HTTP/2 it is asked for by CONNECT";
        return Err(method_not_allowed("CONNECT", message));
    }
    match protocol(head) {
        Some(protocol) if is_websocket(protocol) => {}
        None if cfg!(feature = "http2") => {
            return Err(bad_request("CONNECT without `:protocol`: this is no proxy"));
        }
        // As RFC 9220 §3 has it.
        _ => {
            let message = if cfg!(feature = "http2") {
                "the only `:protocol` here is websocket"
            } else {
                "WebSockets over HTTP/2 need tower-push's feature `http2`"
            };
            return Err(Rejection::new(StatusCode::NOT_IMPLEMENTED).message(message));
        }
    }
    let is_versioned = head.headers.contains_key(SEC_WEBSOCKET_VERSION);
    if is_versioned
        && single_value(&head.headers, SEC_WEBSOCKET_VERSION).is_none_or(|v| v != VERSION)
    {
        return Err(wrong_version(head));
    }
    Ok(Response::new(PushBody::empty()))
}

#[cfg(feature = "deflate")]
fn negotiate_deflate(
    headers: &HeaderMap,
    answer: &mut HeaderMap,
) -> Option<deflate::DeflateParams> {
    let (agreed, extension) = deflate::negotiate(headers)?;
    answer.insert(http::header::SEC_WEBSOCKET_EXTENSIONS, extension);
    Some(agreed)
}

fn take_upgrade(head: &mut Parts) -> Result<OnUpgrade, Rejection> {
    let Some(on_upgrade) = head.extensions.remove() else {
        let message = "this server cannot upgrade: serve with hyper's `serve_connection_with_upgrades` \
            (`axum::serve` does), and keep the request's extensions on the way here";
        return Err(Rejection::new(StatusCode::INTERNAL_SERVER_ERROR).message(message));
    };
    #[cfg(feature = "http2")]
    head.extensions.remove::<hyper::ext::Protocol>();
    Ok(on_upgrade)
}

/// HTTP/2 and later, where an upgrade is of one stream, and by CONNECT.
fn is_multiplexed(version: Version) -> bool {
    version > Version::HTTP_11
}

/// An extended CONNECT's `:protocol`.
#[cfg(feature = "http2")]
fn protocol(head: &Parts) -> Option<&str> {
    let protocol = head.extensions.get::<hyper::ext::Protocol>();
    protocol.map(hyper::ext::Protocol::as_str)
}

#[cfg(not(feature = "http2"))]
fn protocol(_: &Parts) -> Option<&str> {
    None
}

fn is_websocket(protocol: &str) -> bool {
    protocol.eq_ignore_ascii_case(WEBSOCKET)
}

fn has_body(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    headers.contains_key(TRANSFER_ENCODING) || lengths.any(|length| length != "0")
}

fn bad_request(message: &'static str) -> Rejection {
    Rejection::new(StatusCode::BAD_REQUEST).message(message)
}

fn method_not_allowed(allowed: &'static str, message: &'static str) -> Rejection {
    Rejection::new(StatusCode::METHOD_NOT_ALLOWED)
        .message(message)
        .header(ALLOW, HeaderValue::from_static(allowed))
}

/// 426 is to say what to upgrade to (RFC 9110 §15.5.22), in a header of the connection, which HTTP/2 has none of (RFC 9113
/// §8.2.2).
fn wrong_version(head: &Parts) -> Rejection {
    const MESSAGE: &str = "`Sec-WebSocket-Version` is to be 13";
    let refused = match is_multiplexed(head.version) {
        true => bad_request(MESSAGE),
        false => upgrade_required(MESSAGE),
    };
    refused.header(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION))
}

fn upgrade_required(message: &'static str) -> Rejection {
    Rejection::new(StatusCode::UPGRADE_REQUIRED)
        .message(message)
        .header(CONNECTION, HeaderValue::from_static("Upgrade"))
        .header(UPGRADE, HeaderValue::from_static(WEBSOCKET))
}

#[cfg(test)]
mod tests {
    use http::{
        HeaderName, Request,
        header::{HOST, ORIGIN},
    };
    use http_body::Body;
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const DEFLATE: &str = "permessage-deflate";

    /// A request with the upgrade that a server gives it.
    fn head(version: Version, method: Method, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder()
            .version(version)
            .method(method)
            .uri(uri)
            .body(())
            .unwrap();
        let upgrade = hyper::upgrade::on(&mut request);
        let mut head = request.into_parts().0;
        head.extensions.insert(upgrade);
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            head.headers.append(name, value);
        }
        head
    }

    const GOOD: [(&str, &str); 5] = [
        ("host", "example.com"),
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", KEY),
    ];

    fn get() -> Parts {
        head(Version::HTTP_11, Method::GET, "/", &GOOD)
    }

    /// The good request with other values of a header, none of them if it is to be missing.
    fn get_but(name: &str, values: &[&str]) -> Parts {
        let mut head = get();
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        head.headers.remove(&name);
        for value in values {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            head.headers.append(&name, value);
        }
        head
    }

    fn with_method(mut head: Parts, method: Method) -> Parts {
        head.method = method;
        head
    }

    #[cfg(feature = "http2")]
    fn connect(protocol: Option<&'static str>, headers: &[(&str, &str)]) -> Parts {
        let uri = "https://example.com/";
        let mut head = head(Version::HTTP_2, Method::CONNECT, uri, headers);
        if let Some(protocol) = protocol {
            let protocol = hyper::ext::Protocol::from_static(protocol);
            head.extensions.insert(protocol);
        }
        head
    }

    fn accepted(head: &mut Parts) -> Result<Accepted, Rejection> {
        let terms = Terms {
            origin: &OriginPolicy::same_origin(),
            protocols: &["json", "ws+meta.nchan"],
            #[cfg(feature = "deflate")]
            deflate: true,
        };
        accept(head, &terms)
    }

    /// Status and headers of a refusal; the upgrade is still there.
    #[track_caller]
    fn refused(mut head: Parts) -> (u16, Vec<(String, String)>) {
        let had_upgrade = head.extensions.get::<OnUpgrade>().is_some();
        let (status, headers, message) = accepted(&mut head).unwrap_err().into_parts();
        assert!(!message.is_empty());
        assert_eq!(head.extensions.get::<OnUpgrade>().is_some(), had_upgrade);
        (status.as_u16(), sorted(&headers))
    }

    fn sorted(headers: &HeaderMap) -> Vec<(String, String)> {
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.to_string(), value.to_str().unwrap().to_owned())
        };
        let mut lines: Vec<_> = headers.iter().map(line).collect();
        lines.sort();
        lines
    }

    fn lines(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        expected.iter().map(owned).collect()
    }

    const UPGRADE_IT: [(&str, &str); 2] = [("connection", "Upgrade"), ("upgrade", "websocket")];
    const VERSION_13: (&str, &str) = ("sec-websocket-version", "13");

    #[test]
    fn the_key_of_the_rfc_is_answered_as_there() {
        let accept = accept_key(KEY.as_bytes()).unwrap();
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn http_1_1_switches_protocols() {
        let mut head = get();
        assert!(is_asked(&head));
        let accepted = accepted(&mut head).unwrap();
        assert_eq!(accepted.response.status(), 101);
        assert_eq!(
            sorted(accepted.response.headers()),
            lines(&[
                ("connection", "Upgrade"),
                ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
                ("upgrade", "websocket"),
            ])
        );
        assert!(accepted.response.body().is_end_stream());
        assert_eq!(accepted.protocol, None);
        assert!(head.extensions.get::<OnUpgrade>().is_none());
    }

    #[test]
    fn lists_in_any_case_and_in_several_lines_are_read() {
        for head in [
            get_but("upgrade", &["WebSocket"]),
            get_but("upgrade", &["h2c, websocket"]),
            get_but("upgrade", &["h2c", "websocket"]),
            get_but("upgrade", &[",, websocket\t,"]),
            get_but("connection", &["keep-alive, Upgrade"]),
            get_but("connection", &["keep-alive,UPGRADE"]),
            get_but("connection", &["keep-alive", "upgrade"]),
            get_but("content-length", &["0"]),
            get_but("sec-websocket-key", &["+/+/+/+/+/+/+/+/+/+/+w=="]),
        ] {
            assert!(is_asked(&head), "{head:?}");
            assert!(accepted(&mut head.clone()).is_ok(), "{head:?}");
        }
    }

    #[test]
    fn what_does_not_ask_is_told_to_upgrade() {
        let not_asked = (426, lines(&UPGRADE_IT));
        for head in [
            head(Version::HTTP_11, Method::GET, "/", &[]),
            head(Version::HTTP_11, Method::HEAD, "/", &[]),
            head(Version::HTTP_10, Method::GET, "/", &GOOD),
            head(Version::HTTP_09, Method::GET, "/", &GOOD),
            get_but("upgrade", &[]),
            get_but("upgrade", &["h2c"]),
            get_but("upgrade", &["websocket/13"]),
            get_but("upgrade", &["\"websocket\""]),
            get_but("upgrade", &["websockets"]),
            get_but("upgrade", &["web socket"]),
        ] {
            assert!(!is_asked(&head), "{head:?}");
            assert_eq!(refused(head.clone()), not_asked, "{head:?}");
        }
        let post = head(Version::HTTP_11, Method::POST, "/", &[]);
        assert_eq!(refused(post), (405, lines(&[("allow", "GET")])));
    }

    #[test]
    fn what_asks_wrongly_is_told_what_is_wrong() {
        let versioned: Vec<_> = [UPGRADE_IT[0], VERSION_13, UPGRADE_IT[1]].to_vec();
        let only_get = [("allow", "GET")];
        let mut no_upgrade = get();
        no_upgrade.extensions.remove::<OnUpgrade>();
        for (head, status, headers) in [
            (with_method(get(), Method::POST), 405, &only_get[..]),
            (with_method(get(), Method::HEAD), 405, &only_get),
            (with_method(get(), Method::OPTIONS), 405, &only_get),
            (with_method(get(), Method::CONNECT), 405, &only_get),
            (get_but("sec-websocket-version", &[]), 426, &versioned),
            (get_but("sec-websocket-version", &["8"]), 426, &versioned),
            (get_but("sec-websocket-version", &["013"]), 426, &versioned),
            (
                get_but("sec-websocket-version", &["13, 8"]),
                426,
                &versioned,
            ),
            (
                get_but("sec-websocket-version", &["13", "13"]),
                426,
                &versioned,
            ),
            (get_but("connection", &[]), 400, &[]),
            (get_but("connection", &["keep-alive"]), 400, &[]),
            (get_but("connection", &["upgraded"]), 400, &[]),
            (get_but("content-length", &["1"]), 400, &[]),
            (get_but("transfer-encoding", &["chunked"]), 400, &[]),
            (get_but("sec-websocket-key", &[]), 400, &[]),
            (get_but("sec-websocket-key", &[""]), 400, &[]),
            (get_but("sec-websocket-key", &[KEY, KEY]), 400, &[]),
            (get_but("sec-websocket-key", &[&KEY[4..]]), 400, &[]),
            (
                get_but("sec-websocket-key", &["dGhlIHNhbXBsZSBub25jZQo="]),
                400,
                &[],
            ),
            (
                get_but("sec-websocket-key", &["dGhlIHNhbXBsZSBub25jZQoK"]),
                400,
                &[],
            ),
            (
                get_but("sec-websocket-key", &["dGhlIHNhbXBsZSBub25jZ-=="]),
                400,
                &[],
            ),
            (
                get_but("sec-websocket-key", &["dGhlIHNhbXBsZSBub2=jZQ=="]),
                400,
                &[],
            ),
            (
                get_but("sec-websocket-key", &["dGhlIHNhbXBsZSBub25jZQ==, "]),
                400,
                &[],
            ),
            (get_but("sec-websocket-protocol", &["json, a b"]), 400, &[]),
            (
                get_but("sec-websocket-protocol", &["json", "a/b"]),
                400,
                &[],
            ),
            (get_but("sec-websocket-protocol", &["\"json\""]), 400, &[]),
            (get_but("sec-websocket-protocol", &["jsön"]), 400, &[]),
            (get_but("origin", &["https://evil.org"]), 403, &[]),
            (get_but("origin", &["null"]), 403, &[]),
            (no_upgrade, 500, &[]),
        ] {
            assert!(is_asked(&head), "{head:?}");
            assert_eq!(refused(head.clone()), (status, lines(headers)), "{head:?}");
        }
    }

    #[test]
    fn the_clients_first_subprotocol_that_is_here_is_taken() {
        for (asked, chosen) in [
            (&[][..], None),
            (&["other"], None),
            (&["JSON"], None),
            (&["", ","], None),
            (&["json"], Some((0, "json"))),
            (&["ws+meta.nchan, json"], Some((1, "ws+meta.nchan"))),
            (
                &["bearer.Zm9v", "ws+meta.nchan"],
                Some((1, "ws+meta.nchan")),
            ),
            (&["json,json", "ws+meta.nchan"], Some((0, "json"))),
        ] {
            let accepted = accepted(&mut get_but("sec-websocket-protocol", asked)).unwrap();
            let place = chosen.map(|(place, _)| place);
            assert_eq!(accepted.protocol, place, "{asked:?}");
            let answer = accepted.response.headers().get(SEC_WEBSOCKET_PROTOCOL);
            let name = chosen.map(|(_, name)| name);
            assert_eq!(answer.map(|v| v.to_str().unwrap()), name, "{asked:?}");
        }
    }

    #[cfg(feature = "deflate")]
    #[test]
    fn compression_is_agreed_on_where_both_want_it() {
        use http::header::SEC_WEBSOCKET_EXTENSIONS;

        for (offered, wanted) in [(true, true), (true, false), (false, true)] {
            let terms = Terms {
                origin: &OriginPolicy::any(),
                protocols: &[""; 0],
                deflate: wanted,
            };
            let offers = if offered { &[DEFLATE][..] } else { &[] };
            let mut head = get_but("sec-websocket-extensions", offers);
            let accepted = accept(&mut head, &terms).unwrap();
            let answer = accepted.response.headers().get(SEC_WEBSOCKET_EXTENSIONS);
            assert_eq!(accepted.deflate.is_some(), offered && wanted);
            assert_eq!(answer.is_some(), offered && wanted);
        }
    }

    #[cfg(feature = "http2")]
    #[test]
    fn http_2_answers_a_connect_with_200_and_no_more() {
        for headers in [
            &[][..],
            &[VERSION_13],
            &[VERSION_13, ("sec-websocket-key", "not looked at")],
            &[VERSION_13, ("origin", "https://example.com")],
        ] {
            for protocol in ["websocket", "WebSocket"] {
                let mut head = connect(Some(protocol), headers);
                assert!(is_asked(&head));
                let accepted = accepted(&mut head).unwrap();
                assert_eq!(accepted.response.status(), 200);
                assert_eq!(accepted.response.headers().len(), 0);
                assert!(accepted.response.body().is_end_stream());
                assert!(head.extensions.get::<OnUpgrade>().is_none());
                assert!(head.extensions.get::<hyper::ext::Protocol>().is_none());
            }
        }
    }

    #[cfg(feature = "http2")]
    #[test]
    fn http_2_agrees_on_the_same_things() {
        let mut head = connect(
            Some("websocket"),
            &[
                ("sec-websocket-protocol", "json"),
                ("sec-websocket-extensions", DEFLATE),
            ],
        );
        let accepted = accepted(&mut head).unwrap();
        assert_eq!(accepted.protocol, Some(0));
        let answer = accepted.response.headers();
        assert_eq!(answer[SEC_WEBSOCKET_PROTOCOL], "json");
        #[cfg(feature = "deflate")]
        assert!(answer.contains_key("sec-websocket-extensions"));
    }

    #[cfg(feature = "http2")]
    #[test]
    fn http_2_is_refused_without_headers_of_the_connection() {
        let websocket = |headers| connect(Some("websocket"), headers);
        let only_connect = [("allow", "CONNECT")];
        let mut no_upgrade = websocket(&[]);
        no_upgrade.extensions.remove::<OnUpgrade>();
        let plain_get = head(Version::HTTP_2, Method::GET, "https://example.com/", &GOOD);
        for (head, is, status, headers) in [
            (plain_get.clone(), false, 405, &only_connect[..]),
            (
                with_method(plain_get, Method::HEAD),
                false,
                405,
                &only_connect,
            ),
            (connect(None, &GOOD), false, 400, &[]),
            (connect(Some("connect-udp"), &[]), false, 501, &[]),
            (connect(Some("websockets"), &[]), false, 501, &[]),
            (
                websocket(&[("sec-websocket-version", "8")]),
                true,
                400,
                &[VERSION_13],
            ),
            (
                websocket(&[VERSION_13, VERSION_13]),
                true,
                400,
                &[VERSION_13],
            ),
            (
                websocket(&[("sec-websocket-protocol", "a b")]),
                true,
                400,
                &[],
            ),
            (websocket(&[("origin", "https://evil.org")]), true, 403, &[]),
            (
                websocket(&[("origin", "https://example.com.evil.org")]),
                true,
                403,
                &[],
            ),
            (no_upgrade, true, 500, &[]),
        ] {
            assert_eq!(is_asked(&head), is, "{head:?}");
            assert_eq!(refused(head.clone()), (status, lines(headers)), "{head:?}");
        }
    }

    const NAMES: [HeaderName; 10] = [
        HOST,
        ORIGIN,
        UPGRADE,
        CONNECTION,
        CONTENT_LENGTH,
        TRANSFER_ENCODING,
        SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_VERSION,
        SEC_WEBSOCKET_PROTOCOL,
        http::header::SEC_WEBSOCKET_EXTENSIONS,
    ];

    /// The same request in both versions.
    fn in_both_versions() -> Vec<Parts> {
        vec![
            get(),
            #[cfg(feature = "http2")]
            connect(Some("websocket"), &[VERSION_13]),
        ]
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_let_a_foreign_page_in(
            name in proptest::sample::select(&NAMES[..]),
            bytes: Vec<u8>,
            is_added: bool,
        ) {
            let bytes: Vec<_> = bytes.into_iter().filter(|b| !b.is_ascii_control()).collect();
            let value = HeaderValue::from_bytes(&bytes).unwrap();
            for mut head in in_both_versions() {
                let put = |head: &mut Parts| {
                    if is_added {
                        head.headers.append(&name, value.clone());
                    } else {
                        head.headers.insert(&name, value.clone());
                    }
                };
                let mut foreign = head.clone();
                let origin = HeaderValue::from_static("https://evil.org");
                foreign.headers.insert(ORIGIN, origin);
                put(&mut head);
                put(&mut foreign);
                let _ = is_asked(&head);
                let _ = accepted(&mut head);
                prop_assert!(accepted(&mut foreign).is_err());
            }
        }

        #[test]
        fn no_key_is_answered_but_16_bytes_in_base64(key in "[A-Za-z0-9+/=-]?[A-Za-z0-9+/]{20,23}={1,3}") {
            use ::base64::{Engine, engine::{GeneralPurpose, GeneralPurposeConfig}, alphabet};
            let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
            let decoded = GeneralPurpose::new(&alphabet::STANDARD, config).decode(&key);
            let is_good = decoded.is_ok_and(|bytes| bytes.len() == 16);
            prop_assert_eq!(accept_key(key.as_bytes()).is_some(), is_good);
        }

        #[test]
        fn every_16_bytes_are_a_key(bytes: [u8; 16]) {
            let mut key = bytes::BytesMut::new();
            tower_push_proto::base64::encode(&bytes, &mut key);
            let mut head = get_but("sec-websocket-key", &[std::str::from_utf8(&key).unwrap()]);
            let accepted = accepted(&mut head).unwrap();
            let expected = tungstenite::handshake::derive_accept_key(&key);
            prop_assert_eq!(&accepted.response.headers()[SEC_WEBSOCKET_ACCEPT], &expected);
        }
    }
}
