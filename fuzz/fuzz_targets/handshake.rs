//! Arbitrary handshakes. A WebSocket opens only if RFC 6455 or RFC 8441 allows it, and every other response is a valid refusal.

#![no_main]

use futures_util::{FutureExt, stream};
use http::{Method, Request, Version, header};
use hyper::{ext::Protocol, upgrade::OnUpgrade};
use libfuzzer_sys::fuzz_target;
use testkit::parse_headers;
use tokio::runtime;
use tower_push::{
    Push,
    transport::{Transport, WebSocket},
};

/// The subprotocols that the server supports.
const PROTOCOLS: [&str; 2] = ["json.tower-push", "ws+meta.nchan"];

fuzz_target!(|input: (u8, &[u8])| {
    let (flags, lines) = input;
    let choice = |from: u8| usize::from(flags >> from & 3);
    let mut request = Request::new(());
    let on_upgrade = hyper::upgrade::on(&mut request);
    let mut head = request.into_parts().0;
    head.version = [
        Version::HTTP_11,
        Version::HTTP_2,
        Version::HTTP_10,
        Version::HTTP_3,
    ][choice(0)];
    head.method = [Method::GET, Method::CONNECT, Method::HEAD, Method::POST][choice(2)].clone();
    if head.version >= Version::HTTP_2 {
        head.uri = "https://example.com/".parse().unwrap();
    }
    if let Some(protocol) = [None, Some("websocket"), Some("WebSocket"), Some("x")][choice(4)] {
        head.extensions.insert(Protocol::from_static(protocol));
    }
    let can_upgrade = flags & 0x40 != 0;
    if can_upgrade {
        head.extensions.insert(on_upgrade);
    }
    head.headers = parse_headers(lines);

    let transport = WebSocket::new();
    let is_websocket_request = transport.preference(&head).is_some();
    // The connection's task is never polled, because nothing is upgraded here.
    let runtime = runtime::Builder::new_current_thread().build().unwrap();
    let _entered = runtime.enter();
    let push = Push::new(stream::pending::<String>());
    let response = transport.respond(&mut head, push).now_or_never().unwrap();
    let has_upgrade = head.extensions.get::<OnUpgrade>().is_some();
    let header = |name| head.headers.get(name).map(|value| value.as_bytes());
    match response.status().as_u16() {
        101 | 200 => {
            assert!(is_websocket_request && can_upgrade && !has_upgrade);
            let is_http_1 = head.version == Version::HTTP_11;
            assert_eq!(response.status(), if is_http_1 { 101 } else { 200 });
            let answer = response.headers();
            if is_http_1 {
                assert_eq!(head.method, Method::GET);
                assert_eq!(header(header::SEC_WEBSOCKET_VERSION), Some(&b"13"[..]));
                assert_eq!(header(header::SEC_WEBSOCKET_KEY).map(<[u8]>::len), Some(24));
                assert_eq!(answer[header::SEC_WEBSOCKET_ACCEPT].len(), 28);
            } else {
                assert_eq!(head.method, Method::CONNECT);
                assert!(!answer.contains_key(header::SEC_WEBSOCKET_ACCEPT));
            }
            if let Some(protocol) = answer.get(header::SEC_WEBSOCKET_PROTOCOL) {
                assert!(PROTOCOLS.iter().any(|known| protocol == known));
                let requested = head.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
                let mut requested =
                    requested.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
                assert!(requested.any(|requested| requested.trim_ascii() == protocol.as_bytes()));
            }
            if answer.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
                assert!(head.headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS));
            }
        }
        status => {
            let answer = response.headers();
            assert_eq!(has_upgrade, can_upgrade);
            match status {
                400 | 403 => {}
                405 => assert!(answer.contains_key(header::ALLOW)),
                426 if head.version <= Version::HTTP_11 => {
                    assert!(answer.contains_key(header::UPGRADE));
                }
                426 => assert!(answer.contains_key(header::SEC_WEBSOCKET_VERSION)),
                500 => assert!(is_websocket_request && !can_upgrade),
                501 => assert!(head.version >= Version::HTTP_2),
                _ => panic!("{status}"),
            }
        }
    }
});
