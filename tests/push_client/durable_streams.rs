//! Durable Streams: our server, and the server of the Durable Streams project.

use http::{Method, Request, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy, rt::TokioExecutor};
use testkit::{TestServer, programs};
use tower_push::{Channel, GapReason, Json, service, source::StartPosition, transport::LongPoll};
use tower_push_client::{ClientItem, EventStream, Transport};

use crate::support::{ServerProcess, client_for, next_item, next_text, texts_to_end};

/// Our server: the client reads what exists and what comes, goes on from its cursor, and learns that the stream is closed.
#[tokio::test]
async fn channel_is_read_as_a_durable_stream() {
    let channel = Channel::new();
    let reads = service(channel.clone()).transport(LongPoll::new().durable_only());
    let server = TestServer::start(reads).await;
    for number in 0..3 {
        channel.publish(Json(number)).unwrap();
    }
    let mut stream = client_for(Transport::DurableLongPoll)
        .subscribe(server.url("/?a=b"))
        .unwrap();
    for number in 0..2 {
        assert_eq!(next_text(&mut stream).await, number.to_string());
    }
    assert_eq!(stream.cursor(), None, "the batch is not read to its end");
    assert_eq!(next_text(&mut stream).await, "2");
    let ClientItem::Cursor(cursor) = next_item(&mut stream).await else {
        panic!("no cursor");
    };
    channel.publish(Json(3)).unwrap();
    assert_eq!(next_text(&mut stream).await, "3");

    let mut returned = client_for(Transport::DurableLongPoll)
        .cursor(cursor)
        .subscribe(server.url("/"))
        .unwrap();
    channel.close();
    assert_eq!(texts_to_end(&mut returned).await, ["3"]);
    assert!(texts_to_end(&mut stream).await.is_empty());
}

/// The channel has dropped the events after the client's cursor: a gap, and then the oldest event that is left.
#[tokio::test]
async fn lost_offset_is_a_gap() {
    let channel = Channel::builder()
        .max_events(2)
        .start(StartPosition::Oldest)
        .build();
    let first = channel.publish(Json(0)).unwrap();
    for number in 1..=4 {
        channel.publish(Json(number)).unwrap();
    }
    channel.close();
    let reads = service(channel).transport(LongPoll::new().durable_only());
    let server = TestServer::start(reads).await;
    let mut stream = client_for(Transport::DurableLongPoll)
        .cursor(first.clone())
        .subscribe(server.url("/"))
        .unwrap();
    let ClientItem::Gap(gap) = next_item(&mut stream).await else {
        panic!("no gap");
    };
    assert_eq!(
        (gap.reason, gap.requested),
        (GapReason::Expired, Some(first))
    );
    assert_eq!(texts_to_end(&mut stream).await, ["3", "4"]);
}

/// The server of the Durable Streams project.
struct ReferenceServer {
    process: ServerProcess,
    client: legacy::Client<legacy::connect::HttpConnector, Full<bytes::Bytes>>,
}

impl ReferenceServer {
    fn start() -> Self {
        let script = programs::node_script("durable_server.mjs", "@durable-streams/server");
        let client = legacy::Client::builder(TokioExecutor::new()).build_http();
        Self {
            process: ServerProcess::start(script),
            client,
        }
    }

    async fn send(&self, method: Method, path: &str, content_type: &str, body: &str, closes: bool) {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.process.url))
            .header(CONTENT_TYPE, content_type)
            .header("stream-closed", closes.to_string())
            .body(Full::from(body.to_owned()))
            .unwrap();
        let response = self.client.request(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(status.is_success(), "{status} {body:?}");
    }

    fn subscribe(&self, path: &str) -> EventStream {
        let client = client_for(Transport::DurableLongPoll);
        client
            .subscribe(format!("{}{path}", self.process.url))
            .unwrap()
    }
}

#[tokio::test]
async fn reference_server_is_read() {
    let server = ReferenceServer::start();
    let json = "application/json";
    server.send(Method::PUT, "/json", json, "", false).await;
    server
        .send(Method::POST, "/json", json, "[[1],\"\u{e9}\"]", false)
        .await;
    let mut stream = server.subscribe("/json");
    assert_eq!(next_text(&mut stream).await, "[1]");
    assert_eq!(next_text(&mut stream).await, "\"\u{e9}\"");
    assert!(matches!(
        next_item(&mut stream).await,
        ClientItem::Cursor(_)
    ));
    // The next poll waits in vain once.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    server
        .send(Method::POST, "/json", json, "{\"n\":2}", false)
        .await;
    assert_eq!(next_text(&mut stream).await, "{\"n\":2}");
    server.send(Method::POST, "/json", json, "3", true).await;
    assert_eq!(texts_to_end(&mut stream).await, ["3"]);

    server
        .send(Method::PUT, "/text", "text/plain", "", false)
        .await;
    server
        .send(Method::POST, "/text", "text/plain", "one\n", false)
        .await;
    server
        .send(Method::POST, "/text", "text/plain", "two\n", true)
        .await;
    assert_eq!(
        texts_to_end(&mut server.subscribe("/text")).await.concat(),
        "one\ntwo\n"
    );
}
