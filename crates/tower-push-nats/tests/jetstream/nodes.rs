//! Nodes of a stream, and requests to its server.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use serde_json::{Value, json};
use testkit::{NatsServer, TEST_TIMEOUT, free_port, wait_until};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tower_push::{Event, EventId, Relay, source::channel::LagPolicy};
use tower_push_nats::{
    JetStream, JetStreamBuilder, NatsServers, ReaderState,
    async_nats::{self, HeaderMap, Request},
};

pub(crate) const STREAM: &str = "EVENTS";

/// Returns the builder of a node.
pub(crate) fn builder(server: &NatsServer) -> JetStreamBuilder {
    JetStream::builder(NatsServers::new(&server.url()).unwrap(), STREAM)
        .subject_prefix("events")
        .publish_retry_time(TEST_TIMEOUT)
}

/// Starts a node: what one process of a fleet has.
pub(crate) async fn node(server: &NatsServer) -> JetStream {
    builder(server).connect().await.unwrap()
}

/// Starts a node with a short log, which ends the streams of clients that fall out of the log. Such a client can return with its cursor, and misses
/// nothing.
pub(crate) async fn node_with_short_log(server: &NatsServer, events: usize) -> JetStream {
    let relay = Relay::builder().lag_policy(LagPolicy::Disconnect);
    let builder = builder(server).relay(relay).max_log_events(events);
    let builder = builder.publish_retry_time(Duration::from_millis(200));
    builder.connect().await.unwrap()
}

/// Publishes these numbers as texts.
pub(crate) async fn publish_numbers(
    node: &JetStream,
    numbers: impl IntoIterator<Item = u64>,
) -> Option<EventId> {
    let mut last = None;
    for number in numbers {
        let event = Event::text(number.to_string());
        last = Some(node.publish(&event).await.unwrap());
    }
    last
}

/// Waits until the reader of a node has read everything.
pub(crate) async fn wait_until_read(node: &JetStream) {
    let wait = async {
        while node.lag().await.unwrap() > 0 {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(TEST_TIMEOUT, wait).await.expect("the reader lags");
}

pub(crate) async fn wait_for_state(node: &JetStream, state: ReaderState) {
    let describe = || format!("{:?}", node.reader_status());
    wait_until(|| node.reader_status().state == state, describe).await;
}

/// A program that manages the streams of a server.
pub(crate) struct Operator(async_nats::Client);

impl Operator {
    pub(crate) async fn connect(server: &NatsServer) -> Self {
        Self(async_nats::connect(server.url()).await.unwrap())
    }

    /// Sends a request of the JetStream API. Panics if the server answers with an error.
    pub(crate) async fn request(&self, name: &str, request: Value) -> Value {
        let answer = self.try_request(name, request).await;
        answer.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Sends a request of the JetStream API. Returns the server's error, for example because the stream does not exist now.
    pub(crate) async fn try_request(&self, name: &str, request: Value) -> Result<Value, Value> {
        let subject = format!("$JS.API.{name}");
        let payload = request.to_string().into();
        let answer = self.0.request(subject, payload).await.unwrap();
        let mut answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        match answer.get_mut("error") {
            Some(error) => Err(error.take()),
            None => Ok(answer),
        }
    }

    /// Removes the consumers of all nodes.
    pub(crate) async fn delete_consumers(&self) -> Result<(), Value> {
        let names = format!("CONSUMER.NAMES.{STREAM}");
        let consumers = self.try_request(&names, json!({})).await?;
        for name in consumers["consumers"].as_array().into_iter().flatten() {
            let request = format!("CONSUMER.DELETE.{STREAM}.{}", name.as_str().unwrap());
            // A consumer can end meanwhile.
            let _ = self.try_request(&request, json!({})).await;
        }
        Ok(())
    }

    pub(crate) async fn stream_request(&self, name: &str, request: Value) -> Value {
        self.request(&format!("{name}.{STREAM}"), request).await
    }

    /// Removes all messages but the newest ones.
    pub(crate) async fn keep(&self, messages: u64) {
        self.stream_request("STREAM.PURGE", json!({ "keep": messages }))
            .await;
    }

    /// Removes one message.
    pub(crate) async fn delete_message(&self, sequence: u64) {
        let request = json!({ "seq": sequence, "no_erase": true });
        self.stream_request("STREAM.MSG.DELETE", request).await;
    }

    pub(crate) async fn delete_stream(&self) {
        self.stream_request("STREAM.DELETE", json!({})).await;
    }

    /// Returns the number of requests of the JetStream API so far, without direct reads.
    pub(crate) async fn api_requests(&self) -> u64 {
        let info = self.request("INFO", json!({})).await;
        info["api"]["total"].as_u64().unwrap()
    }

    /// Creates the stream as a node does, with other settings.
    pub(crate) async fn create_stream(&self, settings: Value) {
        let mut config = json!({
            "name": STREAM,
            "subjects": ["events", "events.>"],
            "storage": "file",
            "retention": "limits",
            "allow_direct": true,
        });
        let settings = settings.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(settings);
        self.stream_request("STREAM.CREATE", config).await;
    }

    /// Publishes a message with headers, and waits until the stream has it.
    pub(crate) async fn publish(&self, subject: &str, headers: &[(&str, &str)], payload: &str) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, *value);
        }
        let request = Request::new()
            .headers(map)
            .payload(payload.to_owned().into());
        let answer = self
            .0
            .send_request(subject.to_owned(), request)
            .await
            .unwrap();
        let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
        assert!(answer.get("error").is_none(), "{answer}");
    }

    /// Sends a message, which may be lost.
    pub(crate) async fn send(&self, subject: &str, payload: &str) {
        let payload = payload.to_owned().into();
        let _ = self.0.publish(subject.to_owned(), payload).await;
    }

    /// Subscribes to subjects, and returns when the server has the subscription.
    pub(crate) async fn subscribe(&self, subject: &str) -> async_nats::Subscriber {
        let subscriber = self.0.subscribe(subject.to_owned()).await.unwrap();
        // The server handles the commands of a connection in their order.
        self.request("INFO", json!({})).await;
        subscriber
    }

    /// Answers the requests of the nodes of a domain.
    pub(crate) async fn lagging_leader(&self, domain: &str) -> LaggingLeader {
        let requests = self.subscribe(&format!("$JS.{domain}.API.>")).await;
        LaggingLeader::start(self.0.clone(), requests)
    }

    /// Publishes these numbers, without a token.
    pub(crate) async fn publish_numbers(&self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let payload = number.to_string().into();
            self.0.request("events", payload).await.unwrap();
        }
    }
}

/// The port on which a server tells over HTTP what it has done.
pub(crate) struct Monitoring {
    port: u16,
}

impl Monitoring {
    pub(crate) fn new() -> Self {
        Self { port: free_port() }
    }

    /// Returns the part of the server's configuration file.
    pub(crate) fn config(&self) -> String {
        format!("http: \"127.0.0.1:{}\"", self.port)
    }

    /// Returns the number of messages that clients have sent so far.
    pub(crate) fn messages(&self) -> u64 {
        self.count("in_msgs")
    }

    /// Returns the numbers of connections of clients: now, and so far. Both stay the same if no client connects again, to this server or to another.
    pub(crate) fn connections(&self) -> [u64; 2] {
        ["connections", "total_connections"].map(|name| self.count(name))
    }

    fn count(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(b"GET /varz HTTP/1.0\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let (_, body) = response.split_once("\r\n\r\n").unwrap();
        let counts: Value = serde_json::from_str(body).unwrap();
        counts[name].as_u64().unwrap()
    }
}

/// The leader of a stream for nodes of a JetStream domain. It passes requests on to the server, and answers as if it had not applied all messages yet
/// when a test asks for that.
pub(crate) struct LaggingLeader {
    must_lag: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl LaggingLeader {
    fn start(client: async_nats::Client, mut requests: async_nats::Subscriber) -> Self {
        let must_lag = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn({
            let must_lag = must_lag.clone();
            async move {
                while let Some(request) = requests.next().await {
                    let name = request.subject.splitn(4, '.').nth(3).unwrap();
                    let subject = format!("$JS.API.{name}");
                    let reply = request.reply.unwrap();
                    if name.starts_with("STREAM.INFO.") && must_lag.swap(false, Ordering::SeqCst) {
                        let answer = client.request(subject, request.payload).await.unwrap();
                        let mut answer: Value = serde_json::from_slice(&answer.payload).unwrap();
                        answer["state"]["last_seq"] = 1.into();
                        let answer = answer.to_string().into();
                        client.publish(reply, answer).await.unwrap();
                    } else {
                        let payload = request.payload;
                        let sent = client.publish_with_reply(subject, reply, payload).await;
                        sent.unwrap();
                    }
                }
            }
        });
        Self { must_lag, task }
    }

    /// Lets the next description of the stream lack all messages but the first one.
    pub(crate) fn answer_late_once(&self) {
        self.must_lag.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_answered_late(&self) -> bool {
        !self.must_lag.load(Ordering::SeqCst)
    }
}

impl Drop for LaggingLeader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns the sequence number in an id.
pub(crate) fn sequence(id: &EventId) -> u64 {
    id.as_str().split('-').next().unwrap().parse().unwrap()
}
