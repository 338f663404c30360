//! Connections that are cut at every byte, and transports that change.

use std::time::Duration;

use testkit::TestServer;
use tower_push::{
    Channel, Json, service,
    source::StartPosition,
    transport::{LongPoll, Sse, WebSocket},
};
use tower_push_client::{Client, ClientItem, Transport};

use crate::support::{
    CuttingProxy, TRANSPORTS, client_for, next_text, numbered_channel, texts_to_end,
};

const EVENTS: u64 = 4;

/// Cuts the first connection after each number of bytes, up to the number that the whole feed takes.
async fn cut_at_every_byte(transport: Transport) {
    let channel = numbered_channel(EVENTS);
    channel.close();
    cut_feed_at_every_byte(transport, TestServer::start(service(channel)).await).await;
}

/// Cuts the first connection to `server`, which has events with the numbers up to `EVENTS`.
async fn cut_feed_at_every_byte(transport: Transport, server: TestServer) {
    let expected: Vec<String> = (0..EVENTS).map(|number| number.to_string()).collect();
    let mut cut_after = 0;
    loop {
        let proxy = CuttingProxy::start(&server, cut_after).await;
        let mut stream = client_for(transport)
            .subscribe(proxy.server.url("/"))
            .unwrap();
        assert_eq!(
            texts_to_end(&mut stream).await,
            expected,
            "{transport}, cut after {cut_after}"
        );
        if !proxy.has_cut() {
            break;
        }
        cut_after += 1;
    }
    assert!(cut_after > 200, "{transport}: {cut_after} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sse_survives_cuts() {
    cut_at_every_byte(Transport::Sse).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ndjson_survives_cuts() {
    cut_at_every_byte(Transport::Ndjson).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_seq_survives_cuts() {
    cut_at_every_byte(Transport::JsonSeq).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn multipart_survives_cuts() {
    cut_at_every_byte(Transport::Multipart).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_poll_survives_cuts() {
    cut_at_every_byte(Transport::LongPoll).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websocket_survives_cuts() {
    cut_at_every_byte(Transport::WebSocket).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websocket_over_http2_survives_cuts() {
    cut_at_every_byte(Transport::WebSocketHttp2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durable_long_poll_survives_cuts() {
    let channel = Channel::builder().start(StartPosition::Oldest).build();
    for number in 0..EVENTS {
        channel.publish(Json(number)).unwrap();
    }
    channel.close();
    let reads = service(channel).transport(LongPoll::new().durable_only());
    let server = TestServer::start(reads).await;
    cut_feed_at_every_byte(Transport::DurableLongPoll, server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursor_of_one_transport_resumes_on_the_next() {
    let channel = numbered_channel(0);
    let server = TestServer::start(service(channel.clone())).await;
    let mut cursor = None;
    for round in 0..35 {
        let transport = TRANSPORTS[round % TRANSPORTS.len()];
        let client = client_for(transport).cursor(cursor);
        let mut stream = client.subscribe(server.url("/")).unwrap();
        for step in 0..2 {
            let text = (2 * round + step).to_string();
            channel.publish(text.clone()).unwrap();
            assert_eq!(next_text(&mut stream).await, text, "{transport}");
        }
        cursor = stream.cursor().cloned();
        assert!(cursor.is_some());
    }
}

/// A server that offers some of the transports.
async fn serve_only(
    channel: Channel,
    transport: impl tower_push::transport::Transport,
) -> TestServer {
    TestServer::start(service(channel).transport(transport)).await
}

#[tokio::test]
async fn client_falls_back_to_an_offered_transport() {
    let channel = numbered_channel(3);
    channel.close();
    let preferred = [Transport::WebSocket, Transport::Sse, Transport::LongPoll];
    let client = Client::new().transports(preferred);
    let servers = [
        (
            serve_only(channel.clone(), WebSocket::new()).await,
            Transport::WebSocket,
        ),
        (
            serve_only(channel.clone(), Sse::new()).await,
            Transport::Sse,
        ),
        (
            serve_only(channel, LongPoll::new()).await,
            Transport::LongPoll,
        ),
    ];
    for (server, expected) in servers {
        let mut stream = client.subscribe(server.url("/")).unwrap();
        loop {
            match crate::support::next_item(&mut stream).await {
                ClientItem::Connected { transport } => {
                    assert_eq!(transport, expected);
                    break;
                }
                ClientItem::Reconnecting { delay, .. } => assert_eq!(delay, Duration::ZERO),
                item => panic!("{item:?}"),
            }
        }
        assert_eq!(texts_to_end(&mut stream).await, ["0", "1", "2"]);
    }
}
