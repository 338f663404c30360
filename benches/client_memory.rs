//! The memory of an idle subscription of tower-push-client: the bytes that the program has allocated for it, beside those that hyper's client
//! alone allocates for a connection whose response it reads. At most 2 KiB, or the run fails.
//!
//! ```sh
//! cargo bench -p tower-push-benches --bench client_memory
//! ```

use std::{
    alloc::System,
    error::Error,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    thread,
};

use futures_util::StreamExt;
use hyper_util::{client::legacy, rt::TokioExecutor};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tower_push_client::{Client, ClientItem, Transport};

type BoxError = Box<dyn Error + Send + Sync>;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    // `cargo test --benches` runs this file too, with few connections.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    measure_idle_memory(if is_bench { 500 } else { 5 }).await
}

/// Accepts one connection, and answers its request with the head of an event stream that has no event.
fn serve_idle_stream() -> Result<SocketAddr, BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || -> Result<(), BoxError> {
        let mut socket = listener.accept()?.0;
        let mut buffer = [0; 1024];
        let _ = socket.read(&mut buffer)?;
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")?;
        // Until the client disconnects.
        while socket.read(&mut buffer)? > 0 {}
        Ok(())
    });
    Ok(address)
}

/// Returns the number of bytes that are allocated now.
fn allocated() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// Opens connections to servers that send nothing but the head of a response, and compares the memory of a subscription with that of the
/// response's body alone.
async fn measure_idle_memory(connections: usize) -> Result<(), BoxError> {
    let mut addresses = Vec::new();
    for _ in 0..2 * connections {
        addresses.push(serve_idle_stream()?);
    }
    let (for_bodies, for_streams) = addresses.split_at(connections);
    // A client for all connections, so that its own memory does not count for one of them.
    let http = legacy::Client::builder(TokioExecutor::new())
        .build_http::<http_body_util::Full<bytes::Bytes>>();

    let before = allocated();
    let mut bodies = Vec::with_capacity(connections);
    for address in for_bodies {
        bodies.push(
            http.get(format!("http://{address}/").parse()?)
                .await?
                .into_body(),
        );
    }
    let body = (allocated() - before) / connections;

    let client = Client::with_service(http.clone()).transports([Transport::Sse]);
    let before = allocated();
    let mut streams = Vec::with_capacity(connections);
    for address in for_streams {
        let mut stream = client.subscribe(format!("http://{address}/"))?;
        let item = stream.next().await.ok_or("the stream has ended")??;
        assert!(matches!(item, ClientItem::Connected { .. }));
        // The stream now waits for input, with its timer.
        assert!(futures_util::FutureExt::now_or_never(stream.next()).is_none());
        streams.push(stream);
    }
    let stream = (allocated() - before) / connections;
    println!("an idle subscription: {stream} bytes, of which {body} bytes are hyper's connection");
    println!(
        "beside its connection: {} bytes",
        stream.saturating_sub(body)
    );
    assert!(stream.saturating_sub(body) <= 2048);
    drop((bodies, streams));
    Ok(())
}
