//! A WebSocket client that sends each message back to the server. The Autobahn suite tests the client with it: see `scripts/autobahn`.
//!
//! ```text
//! cargo run --example echo_client ws://127.0.0.1:9001
//! ```
//! The argument is the URL of Autobahn's `fuzzingserver`. The program asks the server for the number of test cases, and opens a WebSocket for
//! each.

use std::{collections::VecDeque, io::Write};

use futures_util::StreamExt;
use tower_push_client::{Client, ClientItem, Transport};
use tower_push_proto::event::Payload;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The name of this client in the report.
const AGENT: &str = "echo";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let server = std::env::args().nth(1).ok_or("usage: echo_client URL")?;
    let client = Client::new()
        .transports([Transport::WebSocket])
        .subprotocols::<String>([])
        .deflate(true)
        .reconnect(false)
        .max_event_len(32 << 20);

    let mut count = client.subscribe(format!("{server}/getCaseCount"))?;
    let mut cases: u32 = 0;
    while let Some(Ok(item)) = count.next().await {
        if let ClientItem::Event { event, .. } = item {
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
    // The messages that the queue of the sender has no room for. The stream is read meanwhile.
    let mut backlog = VecDeque::new();
    loop {
        tokio::select! {
            item = stream.next() => match item {
                Some(Ok(ClientItem::Event { event, .. })) => {
                    let message = event.into_payload().unwrap_or_else(|event| event.payload().clone());
                    if !backlog.is_empty() {
                        backlog.push_back(message);
                    } else if let Err(unsent) = sender.try_send(message) {
                        backlog.push_back(unsent.into_message());
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Ok(()),
            },
            sent = sender.send(backlog.front().cloned().unwrap_or(Payload::Text(String::new()))), if !backlog.is_empty() => {
                match sent {
                    Ok(()) => drop(backlog.pop_front()),
                    // The stream ends.
                    Err(_) => backlog.clear(),
                }
            }
        }
    }
}
