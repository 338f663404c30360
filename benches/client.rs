//! The throughput of clients: events of 64 bytes that a client reads from one connection, against clients of other projects.
//!
//! ```sh
//! cargo bench -p tower-push-benches --bench client
//! ```
//!
//! A round is one connection on loopback, from a server thread, which writes bytes that were encoded beforehand, to a client on one tokio
//! thread, which counts events to the end. The event streams have ids, and the WebSockets carry payloads alone. The contestants take turns, so
//! that a disturbance affects all of them. The table shows the best round of each, and its ratio to tower-push-client with the same bytes: a
//! ratio above 1 means that the other client is faster. tokio-tungstenite reads messages and knows no events.

use std::{
    error::Error,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use eventsource_client::Client as _;
use futures_util::StreamExt;
use tower_push_client::{Client, EventStream, Transport};
use tower_push_proto::websocket::{MessageFormat, OpCode, frame, handshake::accept_key};

type BoxError = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), BoxError> {
    // `cargo test --benches` runs this file too, with a tiny load.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let (rounds, events) = if is_bench { (12, 200_000) } else { (1, 1000) };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;

    let contestants: [(&str, Feed); 6] = [
        ("tower-push-client, event stream", Feed::Sse),
        ("reqwest-eventsource", Feed::Sse),
        ("eventsource-client", Feed::Sse),
        ("tower-push-client, WebSocket", Feed::WebSocket),
        ("tokio-tungstenite", Feed::WebSocket),
        (
            "tower-push-client, WebSocket of envelopes",
            Feed::WebSocketEnvelopes,
        ),
    ];
    let mut best = [Duration::MAX; 6];
    for _ in 0..rounds {
        for (index, (_, feed)) in contestants.iter().enumerate() {
            let address = serve(*feed, events)?;
            let start = Instant::now();
            let read = runtime.block_on(async {
                match index {
                    0 | 3 | 5 => read_with_tower_push(*feed, address, events).await,
                    1 => read_with_reqwest_eventsource(address, events).await,
                    2 => read_with_eventsource_client(address, events).await,
                    _ => read_with_tungstenite(address, events).await,
                }
            })?;
            assert_eq!(read, events);
            best[index] = best[index].min(start.elapsed());
        }
    }
    println!("{:<44} {:>12} {:>8}", "client", "events/s", "ratio");
    for (index, (name, feed)) in contestants.iter().enumerate() {
        let ours = contestants
            .iter()
            .position(|(_, other)| other == feed)
            .unwrap_or_default();
        let rate = events as f64 / best[index].as_secs_f64();
        let ratio = best[ours].as_secs_f64() / best[index].as_secs_f64();
        println!("{name:<44} {rate:>12.0} {ratio:>8.2}");
    }
    Ok(())
}

/// What a server sends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Feed {
    Sse,
    WebSocket,
    WebSocketEnvelopes,
}

/// The payload of every event: 64 bytes.
fn payload() -> String {
    "x".repeat(64)
}

/// Accepts one connection, and sends `events` events after the head of its request. The connection then stays open.
fn serve(feed: Feed, events: usize) -> Result<SocketAddr, BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let bytes = encoded_events(feed, events);
    thread::spawn(move || -> Result<(), BoxError> {
        let mut socket = listener.accept()?.0;
        let head = read_head(&mut socket)?;
        socket.write_all(response_head(feed, &head).as_bytes())?;
        socket.write_all(&bytes)?;
        // Until the client disconnects.
        while socket.read(&mut [0; 1024])? > 0 {}
        Ok(())
    });
    Ok(address)
}

fn encoded_events(feed: Feed, events: usize) -> BytesMut {
    let (payload, mut bytes) = (payload(), BytesMut::new());
    for id in 0..events {
        match feed {
            Feed::Sse => {
                bytes.extend_from_slice(format!("id: k3f9-{id}\ndata: {payload}\n\n").as_bytes())
            }
            Feed::WebSocket => frame::encode(OpCode::Text, false, payload.as_bytes(), &mut bytes),
            Feed::WebSocketEnvelopes => {
                let envelope = format!("{{\"id\":\"k3f9-{id}\",\"data\":\"{payload}\"}}");
                frame::encode(OpCode::Text, false, envelope.as_bytes(), &mut bytes);
            }
        }
    }
    bytes
}

fn read_head(socket: &mut TcpStream) -> Result<String, BoxError> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        head.extend(byte);
    }
    Ok(String::from_utf8(head)?)
}

fn response_head(feed: Feed, request: &str) -> String {
    if feed == Feed::Sse {
        return "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n".to_owned();
    }
    let mut headers = request.lines().filter_map(|line| line.split_once(": "));
    let key = headers.find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"));
    let accept = key.and_then(|(_, key)| accept_key(key.as_bytes()));
    let accept = accept
        .as_ref()
        .and_then(|accept| accept.to_str().ok())
        .unwrap_or_default();
    let subprotocol = match feed {
        Feed::WebSocketEnvelopes => "sec-websocket-protocol: json.tower-push\r\n",
        _ => "",
    };
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n{subprotocol}\
         sec-websocket-accept: {accept}\r\n\r\n"
    )
}

fn subscribe(feed: Feed, address: SocketAddr) -> Result<EventStream, BoxError> {
    let client = match feed {
        Feed::Sse => Client::new().transports([Transport::Sse]),
        Feed::WebSocket => Client::new()
            .transports([Transport::WebSocket])
            .subprotocols::<String>([]),
        Feed::WebSocketEnvelopes => {
            let json = [("json.tower-push", MessageFormat::Json)];
            Client::new()
                .transports([Transport::WebSocket])
                .subprotocols(json)
        }
    };
    Ok(client.subscribe(format!("http://{address}/"))?)
}

async fn read_with_tower_push(
    feed: Feed,
    address: SocketAddr,
    events: usize,
) -> Result<usize, BoxError> {
    let mut stream = subscribe(feed, address)?;
    let mut read = 0;
    while read < events {
        match stream.next().await {
            Some(Ok(item)) => read += usize::from(item.event().is_some()),
            Some(Err(error)) => return Err(error.into()),
            None => break,
        }
    }
    Ok(read)
}

async fn read_with_reqwest_eventsource(
    address: SocketAddr,
    events: usize,
) -> Result<usize, BoxError> {
    let mut stream = reqwest_eventsource::EventSource::get(format!("http://{address}/"));
    let mut read = 0;
    while read < events {
        match stream.next().await {
            Some(Ok(event)) => {
                read += usize::from(matches!(event, reqwest_eventsource::Event::Message(_)))
            }
            Some(Err(error)) => return Err(error.into()),
            None => break,
        }
    }
    stream.close();
    Ok(read)
}

async fn read_with_eventsource_client(
    address: SocketAddr,
    events: usize,
) -> Result<usize, BoxError> {
    let builder = eventsource_client::ClientBuilder::for_url(&format!("http://{address}/"));
    let client = builder.map_err(|error| format!("{error:?}"))?.build_http();
    let mut stream = client.stream();
    let mut read = 0;
    while read < events {
        match stream.next().await {
            Some(Ok(event)) => {
                read += usize::from(matches!(event, eventsource_client::SSE::Event(_)))
            }
            Some(Err(error)) => return Err(format!("{error:?}").into()),
            None => break,
        }
    }
    Ok(read)
}

async fn read_with_tungstenite(address: SocketAddr, events: usize) -> Result<usize, BoxError> {
    let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{address}/")).await?;
    let mut read = 0;
    while read < events {
        match socket.next().await {
            Some(message) => read += usize::from(message?.is_text()),
            None => break,
        }
    }
    Ok(read)
}
