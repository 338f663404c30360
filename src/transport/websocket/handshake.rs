//! Accepts the opening handshake: [RFC 6455 §4.2](https://www.rfc-editor.org/rfc/rfc6455#section-4.2) over HTTP/1.1,
//! [RFC 8441 §5](https://www.rfc-editor.org/rfc/rfc8441#section-5) over HTTP/2.

use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode, Version,
    header::{
        ALLOW, CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
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

#[cfg(feature = "server")]
use super::WebSocketAdopter;
use crate::{
    origin_policy::OriginPolicy,
    source::Rejection,
    transport::{PushBody, is_websocket_upgrade, method_rejection, response::allow_header},
};

/// The token in `Upgrade`, and the value of `:protocol`. The comparison ignores case (RFC 9110 §7.8).
const WEBSOCKET_TOKEN: &str = "websocket";

/// The `Sec-WebSocket-Version` of RFC 6455, which is the only version in use.
const WEBSOCKET_VERSION: &str = "13";

/// The subprotocols, origins and extensions that the server accepts in a handshake.
pub(super) struct HandshakePolicy<'a, P> {
    pub origin_policy: &'a OriginPolicy,
    /// The supported subprotocols, in any order: the order of the client's list decides.
    pub subprotocols: &'a [P],
    /// Whether a client that offers no supported subprotocol is refused.
    pub is_subprotocol_required: bool,
    /// Whether messages may be compressed.
    #[cfg(feature = "deflate")]
    pub allow_deflate: bool,
}

/// The result of a handshake that was accepted.
#[derive(Debug)]
pub(super) struct AcceptedHandshake {
    /// Resolves to the socket once `response` is sent.
    pub on_upgrade: OnUpgrade,
    pub response: Response<PushBody>,
    /// Lets the server take the socket back from hyper. `None` if the connection is not one of a [`Server`](crate::server::Server).
    #[cfg(feature = "server")]
    pub websocket_adopter: Option<WebSocketAdopter>,
    /// Whether the socket is one stream of an HTTP/2 connection instead of a whole connection.
    pub is_multiplexed: bool,
    /// The chosen subprotocol, if any. The response does not name the subprotocol yet, because the source may select another one.
    pub subprotocol: Option<HeaderValue>,
    /// The negotiated compression; `None` if messages are not compressed.
    #[cfg(feature = "deflate")]
    pub deflate_params: Option<deflate::DeflateParams>,
}

/// Returns whether the request asks for a WebSocket, even if the rest of its handshake is invalid.
pub(super) fn is_websocket_request(head: &Parts) -> bool {
    match head.version {
        Version::HTTP_11 => is_websocket_upgrade(head),
        version if is_multiplexed(version) => {
            let protocol = connect_protocol(head);
            head.method == Method::CONNECT && protocol.is_some_and(is_websocket_protocol)
        }
        // A server must ignore an `Upgrade` in HTTP/1.0 (RFC 9110 §7.8).
        _ => false,
    }
}

/// Returns the methods of a resource that is only a WebSocket. A `GET` or `HEAD` without an upgrade is answered with a hint to ask for an
/// upgrade.
pub(super) fn websocket_methods(version: Version) -> &'static [&'static str] {
    match is_multiplexed(version) {
        false => &["GET", "HEAD"],
        true if cfg!(feature = "http2") => &["CONNECT"],
        true => &[],
    }
}

/// Accepts the handshake of a request, or refuses it. The [`OnUpgrade`] is taken out of the request's extensions only if the handshake
/// is accepted.
pub(super) fn accept<P: AsRef<str>>(
    head: &mut Parts,
    policy: &HandshakePolicy<'_, P>,
) -> Result<AcceptedHandshake, Rejection> {
    let rejection = method_rejection(&head.method, websocket_methods(head.version));
    if let (&Method::OPTIONS, Some(rejection)) = (&head.method, rejection) {
        return Err(rejection);
    }
    #[cfg_attr(not(feature = "deflate"), expect(unused_mut))]
    let mut response = if is_multiplexed(head.version) {
        accept_extended_connect(head)?
    } else {
        accept_http1_upgrade(head)?
    };
    let subprotocol = choose_subprotocol(&head.headers, policy.subprotocols)
        .map_err(|_| bad_request("`Sec-WebSocket-Protocol` is to list tokens"))?;
    if !policy.origin_policy.allows(head) {
        return Err(Rejection::new(StatusCode::FORBIDDEN).message("not for pages of this origin"));
    }
    let subprotocol = subprotocol.map(|chosen| chosen.name);
    if policy.is_subprotocol_required && subprotocol.is_none() {
        return Err(subprotocol_required(policy.subprotocols));
    }
    #[cfg(feature = "deflate")]
    let deflate_params = if policy.allow_deflate {
        negotiate_deflate(&head.headers, response.headers_mut())
    } else {
        None
    };
    Ok(AcceptedHandshake {
        on_upgrade: take_on_upgrade(head)?,
        #[cfg(feature = "server")]
        websocket_adopter: head.extensions.remove(),
        response,
        is_multiplexed: is_multiplexed(head.version),
        subprotocol,
        #[cfg(feature = "deflate")]
        deflate_params,
    })
}

/// Checks a request of HTTP/1.1 (RFC 6455 §4.2.1), and makes its 101 response.
fn accept_http1_upgrade(head: &Parts) -> Result<Response<PushBody>, Rejection> {
    let headers = &head.headers;
    match (&head.method, is_websocket_request(head)) {
        (&Method::GET, true) => {}
        // A HEAD gets the headers of a GET (RFC 9110 §9.3.2), but cannot be upgraded.
        (&Method::GET | &Method::HEAD, false) => {
            return Err(upgrade_required(
                "there is a WebSocket here: ask for it with `Upgrade: websocket`, in HTTP/1.1 \
                 (a proxy in between has to hand that on)",
            ));
        }
        _ => {
            let message = "a WebSocket is asked for by GET";
            return Err(method_not_allowed(head.version, message));
        }
    }
    if !contains_token(headers, CONNECTION, "upgrade") {
        return Err(bad_request(
            "`Upgrade` without `Connection: upgrade` (a proxy in between has to hand on both)",
        ));
    }
    if has_body(headers) {
        // The bytes of the body would be read as the first frames.
        return Err(bad_request("a request for a WebSocket has no body"));
    }
    if single_value(headers, SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != WEBSOCKET_VERSION)
    {
        return Err(unsupported_version(head));
    }
    let accept = single_value(headers, SEC_WEBSOCKET_KEY)
        .and_then(|key| accept_key(key.as_bytes()))
        .ok_or_else(|| bad_request("`Sec-WebSocket-Key` is to be the base64 of 16 bytes, once"))?;
    let mut response = Response::new(PushBody::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET_TOKEN));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// Checks an extended CONNECT of HTTP/2, and makes its 200 response. A `Sec-WebSocket-Key` is neither checked nor answered (RFC
/// 8441 §5).
fn accept_extended_connect(head: &Parts) -> Result<Response<PushBody>, Rejection> {
    if head.method != Method::CONNECT {
        let message = "there is a WebSocket here: over HTTP/2 it is asked for by CONNECT";
        return Err(method_not_allowed(head.version, message));
    }
    match connect_protocol(head) {
        Some(protocol) if is_websocket_protocol(protocol) => {}
        None if cfg!(feature = "http2") => {
            return Err(bad_request("CONNECT without `:protocol`: this is no proxy"));
        }
        // RFC 9220 §3 asks for 501.
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
        && single_value(&head.headers, SEC_WEBSOCKET_VERSION).is_none_or(|v| v != WEBSOCKET_VERSION)
    {
        return Err(unsupported_version(head));
    }
    Ok(Response::new(PushBody::empty()))
}

/// Negotiates permessage-deflate, and adds the chosen extension to the response.
#[cfg(feature = "deflate")]
fn negotiate_deflate(
    request_headers: &HeaderMap,
    response_headers: &mut HeaderMap,
) -> Option<deflate::DeflateParams> {
    let accepted = deflate::negotiate(request_headers)?;
    response_headers.insert(
        http::header::SEC_WEBSOCKET_EXTENSIONS,
        accepted.response_extension,
    );
    Some(accepted.params)
}

/// Takes the [`OnUpgrade`] that the server put into the request's extensions.
fn take_on_upgrade(head: &mut Parts) -> Result<OnUpgrade, Rejection> {
    let Some(on_upgrade) = head.extensions.remove() else {
        let message = "this server cannot upgrade: serve with hyper's `serve_connection_with_upgrades` \
            (`axum::serve` does), and keep the request's extensions on the way here";
        return Err(Rejection::new(StatusCode::INTERNAL_SERVER_ERROR).message(message));
    };
    #[cfg(feature = "http2")]
    head.extensions.remove::<hyper::ext::Protocol>();
    Ok(on_upgrade)
}

/// Returns whether the version is HTTP/2 or later, in which an extended CONNECT upgrades a single stream.
fn is_multiplexed(version: Version) -> bool {
    version > Version::HTTP_11
}

/// Returns the `:protocol` of an extended CONNECT.
#[cfg(feature = "http2")]
fn connect_protocol(head: &Parts) -> Option<&str> {
    let protocol = head.extensions.get::<hyper::ext::Protocol>();
    protocol.map(hyper::ext::Protocol::as_str)
}

#[cfg(not(feature = "http2"))]
fn connect_protocol(_: &Parts) -> Option<&str> {
    None
}

fn is_websocket_protocol(protocol: &str) -> bool {
    protocol.eq_ignore_ascii_case(WEBSOCKET_TOKEN)
}

fn has_body(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    headers.contains_key(TRANSFER_ENCODING) || lengths.any(|length| length != "0")
}

fn subprotocol_required<P: AsRef<str>>(supported: &[P]) -> Rejection {
    let names: Vec<&str> = supported.iter().map(AsRef::as_ref).collect();
    let message = format!(
        "`Sec-WebSocket-Protocol` is to name one of: {}",
        names.join(", ")
    );
    Rejection::new(StatusCode::BAD_REQUEST).message(message)
}

fn bad_request(message: &'static str) -> Rejection {
    Rejection::new(StatusCode::BAD_REQUEST).message(message)
}

fn method_not_allowed(version: Version, message: &'static str) -> Rejection {
    Rejection::new(StatusCode::METHOD_NOT_ALLOWED)
        .message(message)
        .header(ALLOW, allow_header(websocket_methods(version)))
}

/// Refuses a `Sec-WebSocket-Version`. The status is 426, which must have an `Upgrade` header (RFC 9110 §15.5.22), or 400 on HTTP/2, which
/// forbids that header (RFC 9113 §8.2.2).
fn unsupported_version(head: &Parts) -> Rejection {
    const MESSAGE: &str = "`Sec-WebSocket-Version` is to be 13";
    let rejection = match is_multiplexed(head.version) {
        true => bad_request(MESSAGE),
        false => upgrade_required(MESSAGE),
    };
    rejection.header(
        SEC_WEBSOCKET_VERSION,
        HeaderValue::from_static(WEBSOCKET_VERSION),
    )
}

fn upgrade_required(message: &'static str) -> Rejection {
    Rejection::new(StatusCode::UPGRADE_REQUIRED)
        .message(message)
        .header(CONNECTION, HeaderValue::from_static("Upgrade"))
        .header(UPGRADE, HeaderValue::from_static(WEBSOCKET_TOKEN))
}

#[cfg(test)]
mod tests {
    use http::{
        HeaderName, Request,
        header::{HOST, ORIGIN, SEC_WEBSOCKET_PROTOCOL},
    };
    use http_body::Body;
    use proptest::prelude::*;

    use super::*;

    /// The example key of RFC 6455 §1.3.
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    #[cfg(any(feature = "deflate", feature = "http2"))]
    const DEFLATE: &str = "permessage-deflate";

    /// Makes the head of a request that the server can upgrade.
    fn request_head(
        version: Version,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
    ) -> Parts {
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

    /// The headers of a valid handshake over HTTP/1.1.
    const VALID_HEADERS: [(&str, &str); 5] = [
        ("host", "example.com"),
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", KEY),
    ];

    fn valid_get() -> Parts {
        request_head(Version::HTTP_11, Method::GET, "/", &VALID_HEADERS)
    }

    /// Makes a valid request, and replaces all lines of one header.
    fn get_with(name: &str, values: &[&str]) -> Parts {
        let mut head = valid_get();
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
    fn connect_request(protocol: Option<&'static str>, headers: &[(&str, &str)]) -> Parts {
        let uri = "https://example.com/";
        let mut head = request_head(Version::HTTP_2, Method::CONNECT, uri, headers);
        if let Some(protocol) = protocol {
            let protocol = hyper::ext::Protocol::from_static(protocol);
            head.extensions.insert(protocol);
        }
        head
    }

    /// Handles the request with a policy that allows all subprotocols, origins and extensions of these tests.
    fn accept_head(head: &mut Parts) -> Result<AcceptedHandshake, Rejection> {
        let policy = HandshakePolicy {
            origin_policy: &OriginPolicy::same_origin(),
            subprotocols: &["json", "ws+meta.nchan"],
            is_subprotocol_required: false,
            #[cfg(feature = "deflate")]
            allow_deflate: true,
        };
        accept(head, &policy)
    }

    /// Returns the status and the headers of the refusal. Checks that the upgrade is still in the extensions.
    #[track_caller]
    fn refuse(mut head: Parts) -> (u16, Vec<(String, String)>) {
        let had_upgrade = head.extensions.get::<OnUpgrade>().is_some();
        let (status, headers, message) = accept_head(&mut head).unwrap_err().into_parts();
        assert!(!message.is_empty());
        assert_eq!(head.extensions.get::<OnUpgrade>().is_some(), had_upgrade);
        (status.as_u16(), sorted_lines(&headers))
    }

    fn sorted_lines(headers: &HeaderMap) -> Vec<(String, String)> {
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.to_string(), value.to_str().unwrap().to_owned())
        };
        let mut lines: Vec<_> = headers.iter().map(line).collect();
        lines.sort();
        lines
    }

    fn owned_lines(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        expected.iter().map(owned).collect()
    }

    const UPGRADE_LINES: [(&str, &str); 2] = [("connection", "Upgrade"), ("upgrade", "websocket")];
    const VERSION_LINE: (&str, &str) = ("sec-websocket-version", "13");

    #[test]
    fn rfc_example_key_is_answered() {
        let accept = accept_key(KEY.as_bytes()).unwrap();
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn http1_upgrade_switches_protocols() {
        let mut head = valid_get();
        assert!(is_websocket_request(&head));
        let accepted = accept_head(&mut head).unwrap();
        assert_eq!(accepted.response.status(), 101);
        assert_eq!(
            sorted_lines(accepted.response.headers()),
            owned_lines(&[
                ("connection", "Upgrade"),
                ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
                ("upgrade", "websocket"),
            ])
        );
        assert!(accepted.response.body().is_end_stream());
        assert_eq!(accepted.subprotocol, None);
        assert!(head.extensions.get::<OnUpgrade>().is_none());
    }

    #[test]
    fn header_lists_are_parsed_in_any_form() {
        for head in [
            get_with("upgrade", &["WebSocket"]),
            get_with("upgrade", &["h2c, websocket"]),
            get_with("upgrade", &["h2c", "websocket"]),
            get_with("upgrade", &[",, websocket\t,"]),
            get_with("connection", &["keep-alive, Upgrade"]),
            get_with("connection", &["keep-alive,UPGRADE"]),
            get_with("connection", &["keep-alive", "upgrade"]),
            get_with("content-length", &["0"]),
            get_with("sec-websocket-key", &["+/+/+/+/+/+/+/+/+/+/+w=="]),
        ] {
            assert!(is_websocket_request(&head), "{head:?}");
            assert!(accept_head(&mut head.clone()).is_ok(), "{head:?}");
        }
    }

    #[test]
    fn plain_request_is_told_to_upgrade() {
        let not_asked = (426, owned_lines(&UPGRADE_LINES));
        for head in [
            request_head(Version::HTTP_11, Method::GET, "/", &[]),
            request_head(Version::HTTP_11, Method::HEAD, "/", &[]),
            request_head(Version::HTTP_10, Method::GET, "/", &VALID_HEADERS),
            request_head(Version::HTTP_09, Method::GET, "/", &VALID_HEADERS),
            get_with("upgrade", &[]),
            get_with("upgrade", &["h2c"]),
            get_with("upgrade", &["websocket/13"]),
            get_with("upgrade", &["\"websocket\""]),
            get_with("upgrade", &["websockets"]),
            get_with("upgrade", &["web socket"]),
        ] {
            assert!(!is_websocket_request(&head), "{head:?}");
            assert_eq!(refuse(head.clone()), not_asked, "{head:?}");
        }
        let post = request_head(Version::HTTP_11, Method::POST, "/", &[]);
        assert_eq!(
            refuse(post),
            (405, owned_lines(&[("allow", "GET, HEAD, OPTIONS")]))
        );
    }

    #[test]
    fn invalid_handshake_is_refused() {
        let versioned: Vec<_> = [UPGRADE_LINES[0], VERSION_LINE, UPGRADE_LINES[1]].to_vec();
        let only_get = [("allow", "GET, HEAD, OPTIONS")];
        let mut no_upgrade = valid_get();
        no_upgrade.extensions.remove::<OnUpgrade>();
        for (head, status, headers) in [
            (with_method(valid_get(), Method::POST), 405, &only_get[..]),
            (with_method(valid_get(), Method::HEAD), 405, &only_get),
            (with_method(valid_get(), Method::CONNECT), 405, &only_get),
            (get_with("sec-websocket-version", &[]), 426, &versioned),
            (get_with("sec-websocket-version", &["8"]), 426, &versioned),
            (get_with("sec-websocket-version", &["013"]), 426, &versioned),
            (
                get_with("sec-websocket-version", &["13, 8"]),
                426,
                &versioned,
            ),
            (
                get_with("sec-websocket-version", &["13", "13"]),
                426,
                &versioned,
            ),
            (get_with("connection", &[]), 400, &[]),
            (get_with("connection", &["keep-alive"]), 400, &[]),
            (get_with("connection", &["upgraded"]), 400, &[]),
            (get_with("content-length", &["1"]), 400, &[]),
            (get_with("transfer-encoding", &["chunked"]), 400, &[]),
            (get_with("sec-websocket-key", &[]), 400, &[]),
            (get_with("sec-websocket-key", &[""]), 400, &[]),
            (get_with("sec-websocket-key", &[KEY, KEY]), 400, &[]),
            (get_with("sec-websocket-key", &[&KEY[4..]]), 400, &[]),
            (
                get_with("sec-websocket-key", &["dGhlIHNhbXBsZSBub25jZQo="]),
                400,
                &[],
            ),
            (
                get_with("sec-websocket-key", &["dGhlIHNhbXBsZSBub25jZQoK"]),
                400,
                &[],
            ),
            (
                get_with("sec-websocket-key", &["dGhlIHNhbXBsZSBub25jZ-=="]),
                400,
                &[],
            ),
            (
                get_with("sec-websocket-key", &["dGhlIHNhbXBsZSBub2=jZQ=="]),
                400,
                &[],
            ),
            (
                get_with("sec-websocket-key", &["dGhlIHNhbXBsZSBub25jZQ==, "]),
                400,
                &[],
            ),
            (get_with("sec-websocket-protocol", &["json, a b"]), 400, &[]),
            (
                get_with("sec-websocket-protocol", &["json", "a/b"]),
                400,
                &[],
            ),
            (get_with("sec-websocket-protocol", &["\"json\""]), 400, &[]),
            (get_with("sec-websocket-protocol", &["jsön"]), 400, &[]),
            (get_with("origin", &["https://evil.org"]), 403, &[]),
            (get_with("origin", &["null"]), 403, &[]),
            (no_upgrade, 500, &[]),
        ] {
            assert!(is_websocket_request(&head), "{head:?}");
            assert_eq!(
                refuse(head.clone()),
                (status, owned_lines(headers)),
                "{head:?}"
            );
        }
    }

    #[test]
    fn first_supported_subprotocol_is_chosen() {
        for (asked, chosen) in [
            (&[][..], None),
            (&["other"], None),
            (&["JSON"], None),
            (&["", ","], None),
            (&["json"], Some("json")),
            (&["ws+meta.nchan, json"], Some("ws+meta.nchan")),
            (&["bearer.Zm9v", "ws+meta.nchan"], Some("ws+meta.nchan")),
            (&["json,json", "ws+meta.nchan"], Some("json")),
        ] {
            let mut head = get_with("sec-websocket-protocol", asked);
            let accepted = accept_head(&mut head.clone()).unwrap();
            let name = accepted.subprotocol.as_ref().map(|v| v.to_str().unwrap());
            assert_eq!(name, chosen, "{asked:?}");
            let policy = HandshakePolicy {
                origin_policy: &OriginPolicy::any(),
                subprotocols: &["json", "ws+meta.nchan"],
                is_subprotocol_required: true,
                #[cfg(feature = "deflate")]
                allow_deflate: true,
            };
            match accept(&mut head, &policy) {
                Ok(accepted) => assert_eq!(accepted.subprotocol.unwrap(), chosen.unwrap()),
                Err(rejection) => {
                    assert_eq!((rejection.status().as_u16(), chosen), (400, None));
                    let message = rejection.to_string();
                    assert!(message.ends_with("json, ws+meta.nchan"), "{message}");
                }
            }
        }
    }

    #[cfg(feature = "deflate")]
    #[test]
    fn deflate_needs_offer_and_permission() {
        use http::header::SEC_WEBSOCKET_EXTENSIONS;

        for (offered, allowed) in [(true, true), (true, false), (false, true)] {
            let policy = HandshakePolicy {
                origin_policy: &OriginPolicy::any(),
                subprotocols: &[""; 0],
                is_subprotocol_required: false,
                allow_deflate: allowed,
            };
            let offers = if offered { &[DEFLATE][..] } else { &[] };
            let mut head = get_with("sec-websocket-extensions", offers);
            let accepted = accept(&mut head, &policy).unwrap();
            let answer = accepted.response.headers().get(SEC_WEBSOCKET_EXTENSIONS);
            assert_eq!(accepted.deflate_params.is_some(), offered && allowed);
            assert_eq!(answer.is_some(), offered && allowed);
        }
    }

    #[cfg(feature = "http2")]
    #[test]
    fn http2_connect_gets_bare_200() {
        for headers in [
            &[][..],
            &[VERSION_LINE],
            &[VERSION_LINE, ("sec-websocket-key", "not looked at")],
            &[VERSION_LINE, ("origin", "https://example.com")],
        ] {
            for protocol in ["websocket", "WebSocket"] {
                let mut head = connect_request(Some(protocol), headers);
                assert!(is_websocket_request(&head));
                let accepted = accept_head(&mut head).unwrap();
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
    fn http2_negotiates_like_http1() {
        let mut head = connect_request(
            Some("websocket"),
            &[
                ("sec-websocket-protocol", "json"),
                ("sec-websocket-extensions", DEFLATE),
            ],
        );
        let accepted = accept_head(&mut head).unwrap();
        assert_eq!(accepted.subprotocol.unwrap(), "json");
        #[cfg(feature = "deflate")]
        assert!(
            accepted
                .response
                .headers()
                .contains_key("sec-websocket-extensions")
        );
    }

    #[cfg(feature = "http2")]
    #[test]
    fn http2_refusal_has_no_connection_headers() {
        let websocket = |headers| connect_request(Some("websocket"), headers);
        let only_connect = [("allow", "CONNECT, OPTIONS")];
        let mut no_upgrade = websocket(&[]);
        no_upgrade.extensions.remove::<OnUpgrade>();
        let plain_get = request_head(
            Version::HTTP_2,
            Method::GET,
            "https://example.com/",
            &VALID_HEADERS,
        );
        for (head, is_websocket, status, headers) in [
            (plain_get.clone(), false, 405, &only_connect[..]),
            (
                with_method(plain_get, Method::HEAD),
                false,
                405,
                &only_connect,
            ),
            (connect_request(None, &VALID_HEADERS), false, 400, &[]),
            (connect_request(Some("connect-udp"), &[]), false, 501, &[]),
            (connect_request(Some("websockets"), &[]), false, 501, &[]),
            (
                websocket(&[("sec-websocket-version", "8")]),
                true,
                400,
                &[VERSION_LINE],
            ),
            (
                websocket(&[VERSION_LINE, VERSION_LINE]),
                true,
                400,
                &[VERSION_LINE],
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
            assert_eq!(is_websocket_request(&head), is_websocket, "{head:?}");
            assert_eq!(
                refuse(head.clone()),
                (status, owned_lines(headers)),
                "{head:?}"
            );
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

    /// Returns the same request over HTTP/1.1 and over HTTP/2.
    fn in_both_versions() -> Vec<Parts> {
        vec![
            valid_get(),
            #[cfg(feature = "http2")]
            connect_request(Some("websocket"), &[VERSION_LINE]),
        ]
    }

    proptest! {
        #[test]
        fn arbitrary_header_never_admits_foreign_origin(
            name in proptest::sample::select(&NAMES[..]),
            bytes: Vec<u8>,
            is_additional: bool,
        ) {
            let bytes: Vec<_> = bytes.into_iter().filter(|b| !b.is_ascii_control()).collect();
            let value = HeaderValue::from_bytes(&bytes).unwrap();
            for mut head in in_both_versions() {
                let add_header = |head: &mut Parts| {
                    if is_additional {
                        head.headers.append(&name, value.clone());
                    } else {
                        head.headers.insert(&name, value.clone());
                    }
                };
                let mut foreign = head.clone();
                let origin = HeaderValue::from_static("https://evil.org");
                foreign.headers.insert(ORIGIN, origin);
                add_header(&mut head);
                add_header(&mut foreign);
                let _ = is_websocket_request(&head);
                let _ = accept_head(&mut head);
                prop_assert!(accept_head(&mut foreign).is_err());
            }
        }

        #[test]
        fn accept_key_needs_16_bytes_in_base64(key in "[A-Za-z0-9+/=-]?[A-Za-z0-9+/]{20,23}={1,3}") {
            use ::base64::{Engine, engine::{GeneralPurpose, GeneralPurposeConfig}, alphabet};
            let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
            let decoded = GeneralPurpose::new(&alphabet::STANDARD, config).decode(&key);
            let is_good = decoded.is_ok_and(|bytes| bytes.len() == 16);
            prop_assert_eq!(accept_key(key.as_bytes()).is_some(), is_good);
        }

        #[test]
        fn any_16_bytes_are_a_valid_key(bytes: [u8; 16]) {
            let mut key = bytes::BytesMut::new();
            tower_push_proto::base64::encode(&bytes, &mut key);
            let mut head = get_with("sec-websocket-key", &[std::str::from_utf8(&key).unwrap()]);
            let accepted = accept_head(&mut head).unwrap();
            let expected = tungstenite::handshake::derive_accept_key(&key);
            prop_assert_eq!(&accepted.response.headers()[SEC_WEBSOCKET_ACCEPT], &expected);
        }
    }
}
