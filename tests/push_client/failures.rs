//! Servers that refuse, fail, stop answering, or send what is no feed.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use http::{HeaderValue, StatusCode};
use testkit::TestServer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tower_push::{
    Event, PushSource,
    source::{Rejection, source_fn},
};
use tower_push_client::{Client, ClientItem, Error, RemoteSource, ReqwestService, Transport};

use crate::support::{client_for, errors_to_end, full_text, next_item, next_text};

/// A server that answers the first connections with these bytes, one after the other, and every later one with the last. The connection
/// closes after the response, unless the response ends with `KEEP_OPEN`.
async fn scripted_server(responses: Vec<Vec<u8>>) -> (TestServer, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    let responses = Arc::new(responses);
    let server = TestServer::start_with(move |mut socket| {
        let index = counter
            .fetch_add(1, Ordering::SeqCst)
            .min(responses.len() - 1);
        let responses = responses.clone();
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n")
                && socket.read_buf(&mut head).await.is_ok_and(|n| n > 0)
            {}
            let response = &responses[index];
            let body = response.strip_suffix(KEEP_OPEN).unwrap_or(response);
            let _ = socket.write_all(body).await;
            if body.len() < response.len() {
                std::future::pending::<()>().await;
            }
            let _ = socket.shutdown().await;
            // A close with unread input would reset the connection.
            let _ = tokio::io::copy(&mut socket, &mut tokio::io::sink()).await;
        }
    })
    .await;
    (server, connections)
}

const KEEP_OPEN: &[u8] = b"<keep open>";

fn response(head: &str, body: &[u8]) -> Vec<u8> {
    let head = head.replace('\n', "\r\n");
    [b"HTTP/1.1 ", head.as_bytes(), b"\r\n\r\n", body].concat()
}

fn sse(body: &str) -> Vec<u8> {
    response("200 OK\nContent-Type: text/event-stream", body.as_bytes())
}

/// Subscribes to a server that sends these responses. Returns the error that ends the stream, the errors before, and the number of
/// requests.
async fn outcome(transport: Transport, responses: Vec<Vec<u8>>) -> (Error, Vec<Error>, usize) {
    let (server, connections) = scripted_server(responses).await;
    let client = client_for(transport).max_event_len(1000);
    let mut stream = client.subscribe(server.url("/feed")).unwrap();
    let (error, errors) = errors_to_end(&mut stream).await;
    (error, errors, connections.load(Ordering::SeqCst))
}

#[tokio::test]
async fn refusal_keeps_its_body() {
    let body = b"you may not";
    let (error, errors, requests) =
        outcome(Transport::Sse, vec![response("403 Forbidden", body)]).await;
    assert!(error.is_status() && errors.is_empty());
    assert_eq!(error.status_code().unwrap(), 403);
    assert_eq!(error.body().unwrap(), "you may not");
    assert_eq!(requests, 1);
}

#[tokio::test]
async fn overload_is_retried() {
    let busy = response("503 Service Unavailable", b"busy");
    let no = response("404 Not Found", b"");
    let (error, errors, requests) = outcome(Transport::Sse, vec![busy.clone(), busy, no]).await;
    assert_eq!(error.status_code().unwrap(), 404);
    assert_eq!(errors.len(), 2);
    assert_eq!(errors[0].body().unwrap(), "busy");
    assert_eq!(requests, 3);
}

#[tokio::test]
async fn endless_error_body_is_bounded() {
    let body = [vec![b'x'; 200_000], KEEP_OPEN.to_vec()].concat();
    let (error, _, _) = outcome(Transport::Sse, vec![response("403 Forbidden", &body)]).await;
    assert_eq!(error.body().unwrap().len(), 64 * 1024);
}

#[tokio::test]
async fn redirects_are_followed_within_the_host() {
    let redirect = response("307 Temporary Redirect\nLocation: moved?to=here", b"");
    let (server, connections) = scripted_server(vec![redirect, sse("data: hi\n\n")]).await;
    let mut stream = client_for(Transport::Sse)
        .subscribe(server.url("/feed"))
        .unwrap();
    assert_eq!(next_text(&mut stream).await, "hi");
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn no_content_finishes() {
    for transport in [Transport::Sse, Transport::LongPoll] {
        let (server, _) = scripted_server(vec![response("204 No Content", b"")]).await;
        let mut stream = client_for(transport).subscribe(server.url("/")).unwrap();
        assert!(matches!(next_item(&mut stream).await, ClientItem::Finished));
        assert!(stream.next().await.is_none());
    }
}

/// A handshake that agrees to the sample key cannot agree to a random one.
#[tokio::test]
async fn wrong_accept_key_is_refused() {
    let head = "101 Switching Protocols\nConnection: upgrade\nUpgrade: websocket\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
    let (error, _, requests) = outcome(Transport::WebSocket, vec![response(head, b"")]).await;
    assert!(error.is_handshake(), "{error}");
    assert_eq!(requests, 1);
}

#[tokio::test]
async fn token_is_fresh_for_each_request() {
    let unauthorized = response("401 Unauthorized", b"who are you?");
    let first = sse("id: 1\ndata: a\n\n");
    // The token expires in the middle of the feed, and once more for good.
    let responses = vec![
        unauthorized.clone(),
        first,
        unauthorized.clone(),
        sse("data: b\n\n"),
        unauthorized,
    ];
    let (server, connections) = scripted_server(responses).await;
    let tokens = Arc::new(AtomicUsize::new(0));
    let counter = tokens.clone();
    let client = client_for(Transport::Sse).prepare_request(move |mut request| {
        let token = counter.fetch_add(1, Ordering::SeqCst);
        async move {
            let token = HeaderValue::try_from(format!("Bearer {token}"))?;
            request.headers_mut().insert("authorization", token);
            Ok(request)
        }
    });
    let mut stream = client.subscribe(server.url("/")).unwrap();
    assert_eq!(next_text(&mut stream).await, "a");
    assert_eq!(next_text(&mut stream).await, "b");
    let (error, _) = errors_to_end(&mut stream).await;
    assert_eq!(error.status_code().unwrap(), 401);
    assert_eq!(error.body().unwrap(), "who are you?");
    assert_eq!(tokens.load(Ordering::SeqCst), 6);
    assert_eq!(connections.load(Ordering::SeqCst), 6);
}

#[tokio::test]
async fn failed_preparation_is_retried() {
    let (server, _) = scripted_server(vec![sse("data: hi\n\n")]).await;
    let calls = AtomicUsize::new(0);
    let client = client_for(Transport::Sse).prepare_request(move |request| {
        let is_first = calls.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            match is_first {
                true => Err("no token yet".into()),
                false => Ok(request),
            }
        }
    });
    let mut stream = client.subscribe(server.url("/")).unwrap();
    let ClientItem::Reconnecting { error, .. } = next_item(&mut stream).await else {
        panic!()
    };
    assert!(error.unwrap().is_prepare());
    assert_eq!(next_text(&mut stream).await, "hi");
}

/// A hanging preparation says nothing about the transport.
#[tokio::test(start_paused = true)]
async fn preparation_that_hangs_is_repeated() {
    let (server, _) = scripted_server(vec![sse("data: hi\n\n")]).await;
    let calls = AtomicUsize::new(0);
    let client = Client::new().prepare_request(move |request| {
        let hangs = calls.fetch_add(1, Ordering::SeqCst) < 4;
        async move {
            if hangs {
                pending::<()>().await;
            }
            assert_eq!(request.headers()["accept"], "text/event-stream");
            Ok(request)
        }
    });
    let mut stream = client.subscribe(server.url("/")).unwrap();
    for _ in 0..4 {
        let item = timeout(Duration::from_secs(60), stream.next()).await;
        let Some(Ok(ClientItem::Reconnecting { error, .. })) = item.unwrap() else {
            panic!()
        };
        assert!(error.unwrap().is_prepare());
    }
    assert_eq!(next_text(&mut stream).await, "hi");
}

/// The time for the response begins when the request is prepared.
#[tokio::test(start_paused = true)]
async fn slow_preparation_leaves_the_server_its_time() {
    let almost = Duration::from_secs(29);
    let server = TestServer::start_with(move |mut socket| async move {
        let mut head = Vec::new();
        socket.read_buf(&mut head).await.unwrap();
        tokio::time::sleep(almost).await;
        socket.write_all(&sse("data: hi\n\n")).await.unwrap();
        pending::<()>().await;
    })
    .await;
    let client = Client::new().prepare_request(move |request| async move {
        tokio::time::sleep(almost).await;
        Ok(request)
    });
    let mut stream = client.subscribe(server.url("/")).unwrap();
    let connected = timeout(3 * almost, stream.next()).await;
    let Some(Ok(ClientItem::Connected { .. })) = connected.unwrap() else {
        panic!()
    };
    assert_eq!(next_text(&mut stream).await, "hi");
}

#[tokio::test]
async fn unreachable_server_is_retried() {
    let server = TestServer::start_with(|_| async {}).await;
    let url = format!("http://me:secret@{}/feed?token=secret", server.address);
    drop(server);
    let reqwest = Client::with_service(ReqwestService::new(reqwest_013::Client::new()));
    for client in [Client::new(), reqwest] {
        let mut stream = client.subscribe(&url).unwrap();
        let ClientItem::Reconnecting { error, .. } = next_item(&mut stream).await else {
            panic!()
        };
        let error = error.unwrap();
        assert!(error.is_request() && error.is_connect(), "{error:?}");
        let text = format!("{} {error:?} {stream:?}", full_text(&error));
        assert!(text.contains("/feed"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn cut_before_a_response_is_no_error_of_connecting() {
    let server = TestServer::start_with(|_| async {}).await;
    let mut stream = Client::new().subscribe(server.url("/")).unwrap();
    let ClientItem::Reconnecting { error, .. } = next_item(&mut stream).await else {
        panic!()
    };
    let error = error.unwrap();
    assert!(error.is_request() && !error.is_connect(), "{error:?}");
}

#[tokio::test]
async fn held_back_response_leads_to_the_next_transport() {
    let held_back = response("200 OK\nContent-Type: text/event-stream", KEEP_OPEN);
    let batch = b"[{\"id\":\"1\",\"data\":\"hi\"}]";
    let head = format!(
        "200 OK\nContent-Type: application/json\nContent-Length: {}",
        batch.len()
    );
    let (server, _) = scripted_server(vec![held_back, response(&head, batch)]).await;
    let client = Client::new().first_byte_timeout(Duration::from_millis(50));
    let mut stream = client.subscribe(server.url("/")).unwrap();
    assert_eq!(next_text(&mut stream).await, "hi");
}

/// What can never work fails at once, and not as an endless row of failed requests.
#[test]
fn url_that_cannot_be_requested_is_refused() {
    for url in [
        "",
        "/feed",
        "ftp://me:secret@host/",
        "http://",
        "http://:80/",
        "http://me:secret@host:65536/",
        "http://me:secret@host:+80/",
        "mailto:x",
        "not a url",
        "https://me:secret@host/",
        "wss://me:secret@host/",
        "HTTPS://host/",
    ] {
        let error = Client::new().subscribe(url).unwrap_err();
        assert!(error.is_invalid_url(), "{url}");
        let source = RemoteSource::new(Client::new(), url).unwrap_err();
        for error in [error, source] {
            let text = format!("{error} {error:?}");
            assert!(!text.contains("secret"), "{url}: {text}");
        }
    }
}

#[test]
fn url_with_tls_needs_another_http_client() {
    let reqwest = Client::with_service(ReqwestService::new(reqwest_013::Client::new()));
    for url in ["https://host/", "wss://host:8443/", "HTTPS://host/"] {
        assert!(reqwest.subscribe(url).is_ok(), "{url}");
        let error = Client::new().subscribe(url).unwrap_err();
        assert!(error.to_string().contains("Client::with_service"), "{url}");
    }
    for url in ["http://host", "ws://host:/", "ws://[::1]:80/"] {
        assert!(Client::new().subscribe(url).is_ok(), "{url}");
    }
}

#[tokio::test]
async fn redirect_to_tls_needs_another_http_client() {
    let server = TestServer::start_with(|mut socket| async move {
        let mut head = [0; 1024];
        let _ = socket.read(&mut head).await;
        let port = socket.local_addr().unwrap().port();
        let head = format!("301 Moved Permanently\nLocation: https://127.0.0.1:{port}/");
        let _ = socket.write_all(&response(&head, b"")).await;
    })
    .await;
    let mut stream = Client::new().subscribe(server.url("/")).unwrap();
    let (error, errors) = errors_to_end(&mut stream).await;
    assert!(error.is_redirect() && errors.is_empty(), "{error}");
    assert!(
        error.to_string().contains("Client::with_service"),
        "{error}"
    );
}

/// A server that opens each WebSocket before it refuses the client gets two requests.
#[tokio::test]
async fn websocket_that_is_refused_with_401_twice_ends_the_stream() {
    let subscriptions = Arc::new(AtomicUsize::new(0));
    let counted = subscriptions.clone();
    let refusing = source_fn(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        let rejection = Rejection::new(StatusCode::UNAUTHORIZED);
        async { Err::<stream::Empty<Event>, _>(rejection) }
    });
    let server = TestServer::start(tower_push::service(refusing.respond_early())).await;
    let client = client_for(Transport::WebSocket);
    let mut stream = client.subscribe(server.url("/")).unwrap();
    let error = loop {
        match stream.next().await.expect("an error is the last item") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("4401"), "{error}");
    assert_eq!(subscriptions.load(Ordering::SeqCst), 2);
}
