//! A client of a source over an event stream, which counts heartbeats.

use std::{collections::VecDeque, time::Duration};

use tower_push::{KeepAlive, PushSource, transport::Sse};

use crate::{
    HttpConnection, HttpVersion, StreamingResponse, TestServer, event_stream::EventStreamParser,
};

/// A client that reads one event stream, and never connects again.
#[derive(Debug)]
pub struct EventStreamClient {
    response: StreamingResponse,
    parser: EventStreamParser,
    /// The data of the events that have arrived and were not returned.
    unread: VecDeque<String>,
    heartbeats: usize,
    _connection: HttpConnection,
    _server: TestServer,
}

impl EventStreamClient {
    /// Serves `source` with heartbeats every `heartbeat`, and connects to it.
    pub async fn connect<S>(source: S, heartbeat: Duration) -> Self
    where
        S: PushSource + Clone + Send + Sync + 'static,
    {
        let keep_alive = KeepAlive::new().interval(heartbeat);
        let sse = Sse::new().keep_alive(keep_alive);
        let server = TestServer::start(tower_push::service(source).transport(sse)).await;
        let mut connection = HttpConnection::connect(&server, HttpVersion::Http1).await;
        let response = connection.get("/", &[]).await;
        assert_eq!(response.head.status, 200);
        Self {
            response,
            parser: EventStreamParser::default(),
            unread: VecDeque::new(),
            heartbeats: 0,
            _connection: connection,
            _server: server,
        }
    }

    /// Reads the next bytes. Panics if the stream has ended.
    async fn read(&mut self) {
        let chunk = self
            .response
            .next_chunk()
            .await
            .expect("the stream has ended");
        let chunk = chunk.expect("the stream was cut off");
        let lines = chunk.split(|byte| *byte == b'\n');
        self.heartbeats += lines.filter(|line| line.starts_with(b":")).count();
        self.parser.feed(&chunk);
        let messages = self.parser.messages.drain(..);
        self.unread.extend(messages.map(|message| message.data));
    }

    /// Waits for `heartbeats` further heartbeats. The stream may have events, too.
    pub async fn expect_heartbeats(&mut self, heartbeats: usize) {
        let end = self.heartbeats + heartbeats;
        while self.heartbeats < end {
            self.read().await;
        }
    }

    /// Returns the data of the next event.
    pub async fn next_data(&mut self) -> String {
        loop {
            if let Some(data) = self.unread.pop_front() {
                return data;
            }
            self.read().await;
        }
    }
}
