//! A WebSocket client that sends each message back to the server. The Autobahn suite tests the client with it: see `scripts/autobahn`.
//!
//! ```text
//! cargo run --example echo_client ws://127.0.0.1:9001
//! ```
//! The argument is the URL of Autobahn's `fuzzingserver`. The program asks the server for the number of test cases, and opens a WebSocket for
//! each.

use std::io::Write;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tower_push_client::{Client, ClientItem, Transport};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const AGENT: &str = "client";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let server = std::env::args().nth(1).ok_or("usage: echo_client URL")?;
    let client = Client::new()
        .transports([Transport::WebSocket])
        .subprotocols::<String>([])
        .reconnect(false)
        .max_event_len(32 << 20);

    let mut count = client.subscribe(format!("{server}/getCaseCount"))?;
    let mut cases: u32 = 0;
    while let Some(Ok(item)) = count.next().await {
        if let ClientItem::Event(event) = item {
            cases = event.payload().as_text().ok_or("not a number")?.parse()?;
        }
    }
    for case in 1..=cases {
        print!("\r{case} of {cases}");
        std::io::stdout().flush()?;
        run_case(
            &client,
            &format!("{server}/runCase?case={case}&agent={AGENT}"),
        )
        .await?;
    }
    println!();
    let mut reports = client.subscribe(format!("{server}/updateReports?agent={AGENT}"))?;
    while reports.next().await.is_some() {}
    Ok(())
}

/// Sends each message back until the server ends the connection, or breaks the protocol.
async fn run_case(client: &Client, url: &str) -> Result<(), BoxError> {
    let mut stream = client.subscribe(url)?;
    let sender = stream.sender();
    // The messages have a queue and a task of their own, so that the stream is read while the server does not read.
    let (queue, mut queued) = mpsc::unbounded_channel();
    let sending = tokio::spawn(async move {
        while let Some(message) = queued.recv().await {
            if sender.send(message).await.is_err() {
                break;
            }
        }
    });
    while let Some(Ok(item)) = stream.next().await {
        if let ClientItem::Event(event) = item {
            queue.send(
                event
                    .into_payload()
                    .unwrap_or_else(|event| event.payload().clone()),
            )?;
        }
    }
    drop((queue, stream));
    Ok(sending.await?)
}
