//! Subscriptions that outlive their connections: networks that go and come, servers that change their transports, tokens that expire.

use std::{
    collections::HashSet,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use http::{HeaderValue, StatusCode};
use testkit::{BreakableProxy, TestServer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    time::timeout,
};
use tower::ServiceExt;
use tower_push::{
    Channel, Json, service,
    source::StartPosition,
    transport::{Chunked, LongPoll, Sse, WebSocket},
};
use tower_push_client::{Client, ClientItem, Transport};

use crate::support::{TRANSPORTS, client_for, next_item, next_text};

/// A network between the clients and a server, which the test can take away.
struct Network {
    server: TestServer,
    is_up: watch::Sender<bool>,
}

impl Network {
    async fn start(target: &TestServer) -> Self {
        let is_up = watch::Sender::new(true);
        let (target, watched) = (target.address, is_up.subscribe());
        let server = TestServer::start_with(move |mut client| {
            let mut is_up = watched.clone();
            async move {
                if !*is_up.borrow_and_update() {
                    return;
                }
                let mut server = TcpStream::connect(target).await.unwrap();
                server.set_nodelay(true).unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut client, &mut server) => {}
                    _ = is_up.changed() => {}
                }
            }
        })
        .await;
        Self { server, is_up }
    }
}

/// A listener whose queue of connections is full, so that the kernel drops the packets of further connects, and the queued connections.
async fn full_listener() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(connected) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        queued.push(connected.unwrap());
    }
    (listener, queued)
}

/// A connect that hangs ends in time, and says nothing about the transport.
#[tokio::test]
async fn connect_that_hangs_is_repeated() {
    let (listener, queued) = full_listener().await;
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let millisecond = Duration::from_millis(1);
    let client = Client::new().retry_delay(millisecond, millisecond);
    let mut stream = client.subscribe(url).unwrap();
    tokio::time::pause();
    for _ in 0..5 {
        let item = timeout(Duration::from_secs(20), stream.next()).await;
        let Some(Ok(ClientItem::Reconnecting { error, .. })) = item.unwrap() else {
            panic!()
        };
        let error = error.unwrap();
        assert!(error.is_connect(), "{error:?}");
    }
    tokio::time::resume();
    drop(queued);
    let serving = tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while socket.read_buf(&mut head).await.is_ok_and(|n| n > 0) {
                if head.ends_with(b"\r\n\r\n") {
                    let head = String::from_utf8(head).unwrap();
                    assert!(head.contains("accept: text/event-stream"), "{head}");
                    let response =
                        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: hi\n\n";
                    socket.write_all(response.as_bytes()).await.unwrap();
                    return;
                }
            }
        }
    });
    assert_eq!(next_text(&mut stream).await, "hi");
    serving.await.unwrap();
}

/// The server of every transport: `/` for all but Durable Streams, and `/durable`.
fn router(channel: Channel) -> Router {
    let durable = LongPoll::new().durable_only();
    Router::new()
        .route_service("/", service(channel.clone()))
        .route_service("/durable", service(channel).transport(durable))
}

fn path(transport: Transport) -> &'static str {
    match transport {
        Transport::DurableLongPoll => "/durable",
        _ => "/",
    }
}

fn all_transports() -> impl Iterator<Item = Transport> {
    TRANSPORTS.into_iter().chain([Transport::DurableLongPoll])
}

fn new_channel() -> Channel {
    Channel::builder().start(StartPosition::Oldest).build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_an_outage_arrive_after_it() {
    for transport in all_transports() {
        let channel = new_channel();
        let server = TestServer::start(router(channel.clone())).await;
        let network = Network::start(&server).await;
        let url = network.server.url(path(transport));
        let mut stream = client_for(transport).subscribe(url).unwrap();
        let mut next = 0;
        for _ in 0..3 {
            channel.publish(Json(next)).unwrap();
            assert_eq!(next_text(&mut stream).await, next.to_string());
            if transport == Transport::DurableLongPoll {
                // The cursor follows the batch.
                assert!(matches!(
                    next_item(&mut stream).await,
                    ClientItem::Cursor(_)
                ));
            }
            network.is_up.send_replace(false);
            let mut failures = 0;
            while failures < 3 {
                match next_item(&mut stream).await {
                    ClientItem::Reconnecting { error, .. } => {
                        assert!(error.is_some(), "{transport}");
                        failures += 1;
                    }
                    item => panic!("{transport}: {item:?}"),
                }
            }
            channel.publish(Json(next + 1)).unwrap();
            channel.publish(Json(next + 2)).unwrap();
            network.is_up.send_replace(true);
            for number in [next + 1, next + 2] {
                assert_eq!(next_text(&mut stream).await, number.to_string());
            }
            next += 3;
        }
    }
}

/// Answers a request with the transport of this number, and no other.
async fn respond(channel: Channel, phase: usize, request: Request) -> Response {
    let push = service(channel);
    let response = match phase {
        0 => push
            .transport(WebSocket::new())
            .oneshot(request)
            .await
            .map(into_axum),
        1 => push
            .transport(Sse::new())
            .oneshot(request)
            .await
            .map(into_axum),
        2 => push
            .transport(Chunked::default())
            .oneshot(request)
            .await
            .map(into_axum),
        _ => push
            .transport(LongPoll::new())
            .oneshot(request)
            .await
            .map(into_axum),
    };
    response.unwrap_or_else(|error: Infallible| match error {})
}

fn into_axum(response: http::Response<tower_push::PushBody>) -> Response {
    response.map(Body::new)
}

/// A server offers another transport after each outage: the client takes what it gets, and loses and repeats nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transport_changes_within_a_subscription() {
    let channel = new_channel();
    let phase = Arc::new(AtomicUsize::new(0));
    let (offered, served) = (phase.clone(), channel.clone());
    let router = Router::new().fallback(move |request: Request| {
        respond(served.clone(), offered.load(Ordering::SeqCst), request)
    });
    let server = TestServer::start(router).await;
    let proxy = BreakableProxy::start(server.address.port()).await;
    let client = Client::new().transports([
        Transport::WebSocket,
        Transport::Sse,
        Transport::Ndjson,
        Transport::LongPoll,
    ]);
    let client = client.retry_delay(Duration::from_millis(1), Duration::from_millis(1));
    let url = format!("http://{}/", proxy.address());
    let mut stream = client.subscribe(url).unwrap();
    let (mut number, mut connected) = (0, HashSet::new());
    for round in 0..8 {
        phase.store(round % 4, Ordering::SeqCst);
        proxy.break_connections();
        channel.publish(number.to_string()).unwrap();
        channel.publish((number + 1).to_string()).unwrap();
        let end = number + 2;
        while number < end {
            match next_item(&mut stream).await {
                ClientItem::Connected { transport } => drop(connected.insert(transport)),
                ClientItem::Gap(gap) => panic!("{gap:?}"),
                item => {
                    if let Some(event) = item.into_event() {
                        let text = number.to_string();
                        assert_eq!(event.payload().as_text(), Some(&*text));
                        number += 1;
                    }
                }
            }
        }
    }
    // An old connection may carry the events of a round before it breaks.
    assert!(connected.len() > 1, "{connected:?}");
}

/// A token expires while the client is connected. The first request with the old token gets a 401, and the client asks for another token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_token_is_replaced() {
    for transport in all_transports() {
        let (valid, renewed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let refusals = Arc::new(AtomicUsize::new(0));
        let check = {
            let (valid, renewed, refusals) = (valid.clone(), renewed.clone(), refusals.clone());
            move |request: Request, next: Next| {
                let token = valid.load(Ordering::SeqCst);
                let is_valid = request.headers()["authorization"] == *format!("Bearer {token}");
                if !is_valid {
                    refusals.fetch_add(1, Ordering::SeqCst);
                    // The application renews its token when it was refused.
                    renewed.store(token, Ordering::SeqCst);
                }
                async move {
                    match is_valid {
                        true => next.run(request).await,
                        false => (StatusCode::UNAUTHORIZED, "expired").into_response(),
                    }
                }
            }
        };
        let channel = new_channel();
        let router = router(channel.clone()).layer(from_fn(check));
        let server = TestServer::start(router).await;
        let proxy = BreakableProxy::start(server.address.port()).await;
        let client = client_for(transport).prepare_request(move |mut request| {
            let token = renewed.load(Ordering::SeqCst);
            let token = HeaderValue::try_from(format!("Bearer {token}")).unwrap();
            request.headers_mut().insert("authorization", token);
            std::future::ready(Ok(request))
        });
        let url = format!("http://{}{}", proxy.address(), path(transport));
        let mut stream = client.subscribe(url).unwrap();
        for number in 0..4 {
            if number > 0 {
                valid.fetch_add(1, Ordering::SeqCst);
                proxy.break_connections();
                // The old connection is gone, so that it gets no event.
                while !matches!(
                    next_item(&mut stream).await,
                    ClientItem::Reconnecting { .. }
                ) {}
            }
            channel.publish(Json(number)).unwrap();
            assert_eq!(next_text(&mut stream).await, number.to_string());
            if transport == Transport::DurableLongPoll {
                assert!(matches!(
                    next_item(&mut stream).await,
                    ClientItem::Cursor(_)
                ));
            }
        }
        assert_eq!(refusals.load(Ordering::SeqCst), 3, "{transport}");
    }
}
