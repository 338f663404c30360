//! The contestants' servers, which all run on hyper.

use std::{
    convert::Infallible,
    error::Error,
    future::{pending, poll_fn},
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    thread,
};

use axum::extract::ws;
use bytes::Bytes;
use fastwebsockets::{Frame, OpCode, Payload, Role};
use flate2::{Compress, Compression, FlushCompress};
use futures_util::{SinkExt, Stream, StreamExt, stream};
use http::{Request, Response, Uri};
use http_body::Body;
use http_body_util::Empty;
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::Upgraded};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::{Builder, Runtime},
    sync::broadcast,
};
use tokio_websockets::{Message, ServerBuilder};
use tower::{Layer, service_fn as tower_service_fn};
use tower_push::{
    Channel, Event, Push, WebSocketLayer,
    source::{Rejection, Subscription, source_fn},
    transport::WebSocket,
};

use testkit::websocket::{SAMPLE_ACCEPT, SAMPLE_KEY};

use crate::BoxError;

/// Starts a server. Returns its address, and a function that publishes messages on it.
pub(crate) type StartServer = fn(&Runtime) -> Result<(SocketAddr, Publish), BoxError>;

/// Publishes these payloads in a row.
pub(crate) type Publish = Arc<dyn Fn(Vec<String>) + Send + Sync>;

pub(crate) const TOWER_PUSH: &str = "tower-push";
pub(crate) const OTHER_CRATES: [&str; 3] = ["axum", "tokio-ws", "fastws"];
pub(crate) const HELD_SOCKET: &str = "bare";
pub(crate) const BLOCKING_LOOP: &str = "bare loop";
pub(crate) const FLOOR: &str = "floor";
pub(crate) const PER_CONNECTION_DEFLATE: &str = "each its own";

const SERVERS: [(&str, StartServer); 8] = [
    (TOWER_PUSH, tower_push_server),
    (OTHER_CRATES[0], axum_server),
    (OTHER_CRATES[1], tokio_websockets_server),
    (OTHER_CRATES[2], fastwebsockets_server),
    (HELD_SOCKET, held_socket_server),
    (BLOCKING_LOOP, blocking_loop_server),
    (FLOOR, floor_server),
    (PER_CONNECTION_DEFLATE, per_connection_deflate_server),
];

/// The number of messages that a channel can hold, which is more than a burst.
const CHANNEL_CAPACITY: usize = 1_024;

/// The message with which a server says that it has received everything.
pub(crate) const TAKEN_MESSAGE: &str = "taken";

/// Runs a server's process. The process prints its address, and then publishes what each line on standard input says.
pub(crate) fn run_server(name: &str, threads: usize) -> Result<(), BoxError> {
    let runtime = match threads {
        1 => Builder::new_current_thread().enable_all().build()?,
        threads => Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()?,
    };
    let server = SERVERS.iter().find(|(server, _)| *server == name);
    let (address, publish) = server.ok_or("no such server")?.1(&runtime)?;
    let handle = runtime.handle().clone();
    // A current-thread runtime runs only inside `block_on`.
    thread::spawn(move || runtime.block_on(pending::<()>()));
    println!("{address}");
    let mut published = 0;
    for line in io::stdin().lines() {
        let line = line?;
        let (burst, size) = line.split_once(' ').ok_or("a number is missing")?;
        let (burst, size) = (burst.parse::<u64>()?, size.parse()?);
        let numbers = published..published + burst;
        published += burst;
        let payloads = numbers.map(|number| payload(number, size)).collect();
        let publish = publish.clone();
        handle.spawn(async move { publish(payloads) });
    }
    Ok(())
}

/// Returns text of this size that looks like JSON. The names repeat, and the numbers differ.
fn payload(number: u64, size: usize) -> String {
    let mut text = format!(r#"{{"type":"trade","seq":{},"rows":["#, 41_000_000 + number);
    let mut random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit
    };
    while text.len() < size {
        let side = ["buy", "sell"][below(2) as usize];
        text += &format!(
            r#"{{"price":"{}.{:02}","size":"0.{:05}","side":"{side}","time":{}}},"#,
            64_000 + below(500),
            below(100),
            below(100_000),
            1_727_171_000_000 + 40 * number + below(40),
        );
    }
    text.truncate(size);
    text
}

/// What a client requests with its path.
#[derive(Clone, Copy)]
enum ConnectionWork {
    /// Sends everything that is published.
    Follow,
    /// Sends `count` messages.
    Send { size: usize, count: usize },
    /// Sends each message back.
    Echo,
    /// Receives `count` messages.
    Take { count: usize },
}

impl ConnectionWork {
    fn from_uri(uri: &Uri) -> Self {
        let query = uri.query().unwrap_or_default();
        let number = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let found = pairs.find(|(found, _)| *found == name);
            found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
        };
        let (size, count) = (number("size"), number("count"));
        match uri.path() {
            "/send" => Self::Send { size, count },
            "/echo" => Self::Echo,
            "/take" => Self::Take { count },
            _ => Self::Follow,
        }
    }
}

fn repeated_messages(size: usize, count: usize) -> impl Stream<Item = Bytes> {
    stream::iter(std::iter::repeat_n(Bytes::from(vec![b'x'; size]), count))
}

fn tower_push_server(runtime: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let channel = Channel::builder().max_events(CHANNEL_CAPACITY).build();
    let handler = tower_service_fn({
        let channel = channel.clone();
        move |request: Request<Incoming>| {
            let push = match ConnectionWork::from_uri(request.uri()) {
                ConnectionWork::Follow => Push::new(channel.clone()),
                ConnectionWork::Send { size, count } => {
                    let events = repeated_messages(size, count).map(Event::binary);
                    Push::new(events.chain(stream::pending()))
                }
                ConnectionWork::Echo => Push::new(source_fn(async |subscription: Subscription| {
                    Ok(client_messages_of(&subscription)?.map(Event::from))
                })),
                ConnectionWork::Take { count } => {
                    Push::new(source_fn(async move |subscription: Subscription| {
                        let taken = client_messages_of(&subscription)?.take(count);
                        let answer = async { taken.count().await };
                        let answer = stream::once(answer).map(|_| TAKEN_MESSAGE);
                        Ok(answer.chain(stream::pending()))
                    }))
                }
            };
            std::future::ready(Ok::<_, Infallible>(push))
        }
    });
    let transport = WebSocket::new().deflate_threshold(Some(128));
    let service = WebSocketLayer::with(transport).layer(handler);
    let address = listen(runtime, TowerToHyperService::new(service))?;
    let publish = move |payloads: Vec<String>| {
        for payload in payloads {
            let _ = channel.publish(Event::text(payload));
        }
    };
    Ok((address, Arc::new(publish)))
}

fn client_messages_of(
    subscription: &Subscription,
) -> Result<tower_push::source::ClientMessages, Rejection> {
    let none = || Rejection::new(http::StatusCode::BAD_REQUEST);
    subscription.client_messages().ok_or_else(none)
}

fn axum_server(runtime: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let sender = broadcast::Sender::<ws::Message>::new(CHANNEL_CAPACITY);
    let handler = {
        let sender = sender.clone();
        move |upgrade: ws::WebSocketUpgrade, uri: Uri| {
            let messages = sender.subscribe();
            let work = ConnectionWork::from_uri(&uri);
            std::future::ready(
                upgrade.on_upgrade(move |socket| axum_socket(socket, work, messages)),
            )
        }
    };
    let router = axum::Router::new().fallback(axum::routing::any(handler));
    let address = listen(runtime, TowerToHyperService::new(router))?;
    let publish = move |payloads: Vec<String>| {
        for payload in payloads {
            let _ = sender.send(ws::Message::text(payload));
        }
    };
    Ok((address, Arc::new(publish)))
}

async fn axum_socket(
    mut socket: ws::WebSocket,
    work: ConnectionWork,
    mut messages: broadcast::Receiver<ws::Message>,
) {
    match work {
        // As in axum's example of a chat.
        ConnectionWork::Follow => {
            let (mut sender, mut receiver) = socket.split();
            let reader =
                tokio::spawn(async move { while let Some(Ok(_)) = receiver.next().await {} });
            while let Ok(message) = messages.recv().await {
                if sender.send(message).await.is_err() {
                    break;
                }
            }
            reader.abort();
        }
        ConnectionWork::Send { size, count } => {
            let mut messages =
                repeated_messages(size, count).map(|bytes| Ok(ws::Message::Binary(bytes)));
            let _ = socket.send_all(&mut messages).await;
            while let Some(Ok(_)) = socket.recv().await {}
        }
        ConnectionWork::Echo => {
            while let Some(Ok(message)) = socket.recv().await {
                if matches!(message, ws::Message::Close(_)) || socket.send(message).await.is_err() {
                    break;
                }
            }
        }
        ConnectionWork::Take { count } => {
            for _ in 0..count {
                socket.recv().await;
            }
            let _ = socket.send(ws::Message::text(TAKEN_MESSAGE)).await;
            while let Some(Ok(_)) = socket.recv().await {}
        }
    }
}

fn tokio_websockets_server(runtime: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let sender = broadcast::Sender::<Message>::new(CHANNEL_CAPACITY);
    let address = serve_upgrades(runtime, {
        let sender = sender.clone();
        move |work| {
            let messages = sender.subscribe();
            async move |socket| {
                let _ = tokio_websockets_socket(socket, work, messages).await;
            }
        }
    })?;
    let publish = move |payloads: Vec<String>| {
        for payload in payloads {
            let _ = sender.send(Message::text(payload));
        }
    };
    Ok((address, Arc::new(publish)))
}

async fn tokio_websockets_socket(
    socket: TokioIo<Upgraded>,
    work: ConnectionWork,
    mut messages: broadcast::Receiver<Message>,
) -> Result<(), BoxError> {
    let mut socket = ServerBuilder::new().serve(socket);
    match work {
        ConnectionWork::Follow => loop {
            tokio::select! {
                biased;
                message = messages.recv() => socket.send(message?).await?,
                message = socket.next() => {
                    message.ok_or("closed")??;
                }
            }
        },
        ConnectionWork::Send { size, count } => {
            let mut messages =
                repeated_messages(size, count).map(|bytes| Ok(Message::binary(bytes)));
            socket.send_all(&mut messages).await?;
        }
        ConnectionWork::Echo => {
            while let Some(Ok(message)) = socket.next().await {
                socket.send(message).await?;
            }
        }
        ConnectionWork::Take { count } => {
            for _ in 0..count {
                socket.next().await.ok_or("closed")??;
            }
            socket.send(Message::text(TAKEN_MESSAGE)).await?;
        }
    }
    while let Some(Ok(_)) = socket.next().await {}
    Ok(())
}

fn fastwebsockets_server(runtime: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let sender = broadcast::Sender::<Bytes>::new(CHANNEL_CAPACITY);
    let address = serve_upgrades(runtime, {
        let sender = sender.clone();
        move |work| {
            let messages = sender.subscribe();
            async move |socket| {
                let _ = fastwebsockets_socket(socket, work, messages).await;
            }
        }
    })?;
    let publish = move |payloads: Vec<String>| {
        for payload in payloads {
            let _ = sender.send(payload.into());
        }
    };
    Ok((address, Arc::new(publish)))
}

async fn fastwebsockets_socket(
    socket: TokioIo<Upgraded>,
    work: ConnectionWork,
    mut messages: broadcast::Receiver<Bytes>,
) -> Result<(), BoxError> {
    let mut socket = fastwebsockets::WebSocket::after_handshake(socket, Role::Server);
    match work {
        ConnectionWork::Follow => loop {
            tokio::select! {
                biased;
                message = messages.recv() => {
                    let message = message?;
                    let frame = Frame::text(Payload::Borrowed(&message));
                    socket.write_frame(frame).await?;
                }
                frame = socket.read_frame() => {
                    frame?;
                }
            }
        },
        ConnectionWork::Send { size, count } => {
            let mut messages = repeated_messages(size, count);
            while let Some(message) = messages.next().await {
                let frame = Frame::binary(Payload::Borrowed(&message));
                socket.write_frame(frame).await?;
            }
        }
        ConnectionWork::Echo => loop {
            let frame = socket.read_frame().await?;
            if frame.opcode == OpCode::Close {
                break;
            }
            // The received frame would be sent masked.
            let frame = Frame::new(true, frame.opcode, None, frame.payload);
            socket.write_frame(frame).await?;
        },
        ConnectionWork::Take { count } => {
            for _ in 0..count {
                socket.read_frame().await?;
            }
            let frame = Frame::text(Payload::Borrowed(TAKEN_MESSAGE.as_bytes()));
            socket.write_frame(frame).await?;
        }
    }
    loop {
        socket.read_frame().await?;
    }
}

/// A server with a task for each upgraded socket, which only reads.
fn held_socket_server(runtime: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let address = serve_upgrades(runtime, |_| {
        async |mut socket: TokioIo<Upgraded>| {
            let mut buffer = [0; 64];
            while let Ok(1..) = socket.read(&mut buffer).await {}
        }
    })?;
    Ok((address, Arc::new(|_| {})))
}

/// A server with a compressor for each connection, which refers to earlier messages. Crates that compress a message when they send it work like
/// this.
fn per_connection_deflate_server(runtime: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let sender = broadcast::Sender::<Bytes>::new(CHANNEL_CAPACITY);
    let address = serve_upgrades(runtime, {
        let sender = sender.clone();
        move |_| {
            let mut messages = sender.subscribe();
            async move |mut socket: TokioIo<Upgraded>| {
                let mut compressor = Compress::new(Compression::new(6), false);
                let mut frame = Vec::with_capacity(8 * 1024);
                while let Ok(message) = messages.recv().await {
                    write_compressed_frame(&mut compressor, &message, &mut frame);
                    if socket.write_all(&frame).await.is_err() {
                        break;
                    }
                }
            }
        }
    })?;
    let publish = move |payloads: Vec<String>| {
        for payload in payloads {
            let _ = sender.send(payload.into());
        }
    };
    Ok((address, Arc::new(publish)))
}

/// Writes a compressed message as one frame, with a length of 16 bits if it needs them.
fn write_compressed_frame(compressor: &mut Compress, message: &[u8], frame: &mut Vec<u8>) {
    const LONG: usize = 4;
    frame.clear();
    frame.extend([0; LONG]);
    let _ = compressor.compress_vec(message, frame, FlushCompress::Sync);
    assert!(frame.ends_with(&[0, 0, 0xff, 0xff]) && frame.len() < frame.capacity());
    frame.truncate(frame.len() - 4);
    let len = frame.len() - LONG;
    if len < 126 {
        frame.drain(..2);
        frame[..2].copy_from_slice(&[0xc1, len as u8]);
    } else {
        frame[..2].copy_from_slice(&[0xc1, 126]);
        frame[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    }
}

/// A server whose thread writes to one blocking socket after the other, with one write for all messages in a row.
fn blocking_loop_server(_: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let sockets = Arc::new(Mutex::new(Vec::new()));
    let accepted = sockets.clone();
    thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            let _ = socket.set_nodelay(true);
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && socket.read_exact(&mut byte).is_ok() {
                head.extend(byte);
            }
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-accept: {SAMPLE_ACCEPT}\r\n\r\n"
            );
            // The lock is taken before the client gets its response, so the socket is in the list when the client counts as connected.
            let mut accepted = lock(&accepted);
            let _ = socket.write_all(answer.as_bytes());
            accepted.push(socket);
        }
    });
    let publish = move |payloads: Vec<String>| {
        let frames = text_frames(payloads);
        let mut sockets = lock(&sockets);
        for socket in sockets.iter_mut() {
            let _: io::Result<()> = socket.write_all(&frames);
        }
    };
    Ok((address, Arc::new(publish)))
}

/// Returns the frames of these text messages, with lengths of 16 bits.
fn text_frames(payloads: Vec<String>) -> Vec<u8> {
    let mut frames = Vec::new();
    for payload in payloads {
        frames.extend([0x81, 126]);
        frames.extend((payload.len() as u16).to_be_bytes());
        frames.extend(payload.as_bytes());
    }
    frames
}

/// A server with a minimal task for each connection: the task is woken, and writes bytes that were encoded for all clients.
fn floor_server(runtime: &Runtime) -> Result<(SocketAddr, Publish), BoxError> {
    let floor = Arc::new(Mutex::new(FloorFeed::default()));
    let address = serve_upgrades(runtime, {
        let floor = floor.clone();
        move |_| {
            let floor = floor.clone();
            let mut next = lock(&floor).published.len();
            async move |mut socket: TokioIo<Upgraded>| loop {
                let frames = poll_fn(|cx| lock(&floor).poll_frames(next, cx)).await;
                next += 1;
                if socket.write_all(&frames).await.is_err() {
                    break;
                }
            }
        }
    })?;
    let publish = move |payloads: Vec<String>| {
        let waiting = lock(&floor).publish(text_frames(payloads).into());
        waiting.into_iter().for_each(Waker::wake);
    };
    Ok((address, Arc::new(publish)))
}

/// The state that all tasks of the `floor` server share.
#[derive(Default)]
struct FloorFeed {
    /// The frames of every publication so far. They are never removed.
    published: Vec<Bytes>,
    waiting: Vec<Waker>,
}

impl FloorFeed {
    fn publish(&mut self, frames: Bytes) -> Vec<Waker> {
        self.published.push(frames);
        std::mem::take(&mut self.waiting)
    }

    fn poll_frames(&mut self, index: usize, cx: &mut Context<'_>) -> Poll<Bytes> {
        if let Some(frames) = self.published.get(index) {
            return Poll::Ready(frames.clone());
        }
        self.waiting.push(cx.waker().clone());
        Poll::Pending
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("not poisoned")
}

/// Starts a server that upgrades every request and passes the socket to a task.
fn serve_upgrades<F, T, Fut>(runtime: &Runtime, subscribe: F) -> Result<SocketAddr, BoxError>
where
    F: Fn(ConnectionWork) -> T + Clone + Send + 'static,
    T: FnOnce(TokioIo<Upgraded>) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        let nonce = request.headers().get("sec-websocket-key");
        assert!(nonce.is_some_and(|nonce| nonce == SAMPLE_KEY));
        let run = subscribe(ConnectionWork::from_uri(request.uri()));
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            if let Ok(upgraded) = upgrade.await {
                run(TokioIo::new(upgraded)).await;
            }
        });
        let mut response = Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-accept", SAMPLE_ACCEPT);
        if request.headers().contains_key("sec-websocket-extensions") {
            response = response.header("sec-websocket-extensions", "permessage-deflate");
        }
        std::future::ready(response.body(Empty::<Bytes>::new()))
    });
    listen(runtime, service)
}

/// Serves each connection in a task of its own.
fn listen<S, B>(runtime: &Runtime, service: S) -> Result<SocketAddr, BoxError>
where
    S: hyper::service::Service<
            Request<Incoming>,
            Response = Response<B>,
            Error: Error + Send + Sync,
            Future: Send,
        > + Clone
        + Send
        + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    runtime.spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            let connection = http1::Builder::new()
                .serve_connection(TokioIo::new(socket), service.clone())
                .with_upgrades();
            tokio::spawn(connection);
        }
    });
    Ok(address)
}
