//! Prints the events of a feed as they come, over any transport, for people who debug a feed.
//!
//! ```text
//! cargo run --example axum                                                        # a server, in another terminal
//! cargo run --example tail http://127.0.0.1:3000/feed
//! cargo run --example tail ws://127.0.0.1:3000/feed
//! cargo run --example tail http://127.0.0.1:3000/feed --transport ndjson --after k3f9-1042 --header 'Authorization: Bearer x'
//! ```
//! Events go to the standard output: the id, the type, the topic and the payload, separated by tabs. Everything else goes to the standard
//! error: connections, gaps, cursors, and why a connection failed.

use std::{
    error::Error,
    io::{self, Write},
    process::ExitCode,
};

use futures_util::StreamExt;
use http::{HeaderName, HeaderValue};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use tower_push_client::{Client, ClientItem, EventStream, Transport};
use tower_push_proto::{Event, EventId, event::Payload};

type BoxError = Box<dyn Error + Send + Sync>;

const USAGE: &str = "usage: tail URL [--transport NAME[,NAME...]] [--after ID] [--header 'NAME: VALUE']... [--data-only]
transports: sse, ndjson, json-seq, multipart, long-poll, durable-long-poll, websocket";

#[tokio::main]
async fn main() -> ExitCode {
    let stream = match subscribe(std::env::args().skip(1)) {
        Ok(stream) => stream,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match print_items(stream).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed: {}", with_sources(&error));
            ExitCode::FAILURE
        }
    }
}

fn subscribe(mut arguments: impl Iterator<Item = String>) -> Result<EventStream, BoxError> {
    let mut client = Client::with_service(http_client());
    let (mut url, mut headers) = (None, Vec::new());
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{argument} needs a value"))
        };
        match &*argument {
            "--transport" => {
                let names = value()?;
                let transports = names.split(',').map(transport_by_name);
                client = client.transports(transports.collect::<Result<Vec<_>, _>>()?);
            }
            "--after" => client = client.cursor(EventId::new(value()?)?),
            "--header" => headers.push(parse_header(&value()?)?),
            "--data-only" => client = client.data_only(),
            _ if argument.starts_with('-') => {
                return Err(format!("unknown option: {argument}").into());
            }
            _ => {
                if let Some(first) = url.replace(argument) {
                    return Err(format!("more than one URL: {first}").into());
                }
            }
        }
    }
    let client = client.prepare_request(move |mut request| {
        request.headers_mut().extend(headers.clone());
        std::future::ready(Ok(request))
    });
    Ok(client.subscribe(url.ok_or("no URL")?)?)
}

/// A client for HTTP/1.1, with and without TLS.
fn http_client()
-> HyperClient<hyper_rustls::HttpsConnector<HttpConnector>, http_body_util::Full<bytes::Bytes>> {
    let connector = HttpsConnectorBuilder::new().with_webpki_roots();
    let connector = connector.https_or_http().enable_http1().build();
    HyperClient::builder(TokioExecutor::new()).build(connector)
}

fn transport_by_name(name: &str) -> Result<Transport, BoxError> {
    let transports = [
        Transport::Sse,
        Transport::Ndjson,
        Transport::JsonSeq,
        Transport::Multipart,
        Transport::LongPoll,
        Transport::DurableLongPoll,
        Transport::WebSocket,
    ];
    let found = transports
        .into_iter()
        .find(|transport| transport.name() == name);
    found.ok_or_else(|| format!("no transport {name}").into())
}

fn parse_header(line: &str) -> Result<(HeaderName, HeaderValue), BoxError> {
    let (name, value) = line.split_once(':').ok_or("a header needs a colon")?;
    Ok((name.trim().parse()?, value.trim().parse()?))
}

/// Prints items until the stream ends, or until the program that reads the standard output has ended, such as `head`.
async fn print_items(mut stream: EventStream) -> Result<(), tower_push_client::Error> {
    while let Some(item) = stream.next().await {
        let mut written = Ok(());
        match item? {
            ClientItem::Event { event, cursor } => {
                written = print_event(&event);
                if let Some(cursor) = cursor {
                    eprintln!("cursor {cursor}");
                }
            }
            ClientItem::Gap(gap) => eprintln!("gap {}", gap.to_json()),
            ClientItem::Cursor(cursor) => eprintln!("cursor {cursor}"),
            ClientItem::Connected { transport } => eprintln!("connected over {transport}"),
            ClientItem::Reconnecting { delay, error } => match error {
                Some(error) => eprintln!("again in {delay:.1?}: {}", with_sources(&error)),
                None => eprintln!("again in {delay:.1?}: the stream has ended"),
            },
            ClientItem::Finished => eprintln!("finished"),
            _ => {}
        }
        if written.is_err() {
            break;
        }
    }
    Ok(())
}

fn print_event(event: &Event) -> io::Result<()> {
    let id = event.id().map_or("-", EventId::as_str);
    let event_type = event
        .event_type()
        .map_or("-", |event_type| event_type.as_str());
    let topic = event.topic().map_or("-", |topic| topic.as_str());
    let payload = match event.payload() {
        Payload::Binary(bytes) => format!("{bytes:?}"),
        // An event is one line.
        payload => payload
            .as_text()
            .unwrap_or_default()
            .escape_debug()
            .to_string()
            .replace("\\\"", "\""),
    };
    writeln!(io::stdout(), "{id}\t{event_type}\t{topic}\t{payload}")
}

/// Returns the text of an error and of the errors that caused it.
fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
