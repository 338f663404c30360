//! What the client does after each status and each close code: the table of `docs/clients.md`, which `tests/js/client/reactions.test.mjs`
//! checks with the JavaScript client.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::Response;
use serde_json::Value;
use tower_push::event::{CloseCode, CloseFrame};
use tower_push_client::{Client, ClientItem, Subscriber, Transport, subscriber::ResponseAction};
use tower_push_proto::websocket::{frame::encode_close_frame, handshake::accept_key};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reaction {
    Finish,
    Renew,
    NextTransport,
    Retry,
    Stop,
}

/// A table of `client_reactions.json`, with the first line that matches each number.
fn table(name: &str) -> Vec<(u16, String)> {
    let file: Value = serde_json::from_str(include_str!("../client_reactions.json")).unwrap();
    let mut numbers: Vec<(u16, String)> = Vec::new();
    for line in file[name].as_array().unwrap() {
        let reaction = line["reaction"].as_str().unwrap();
        for range in line["match"].as_str().unwrap().split(", ") {
            let range = range.trim_start_matches("every other from ");
            let (from, to) = range.split_once(" to ").unwrap_or((range, range));
            for number in from.parse().unwrap()..=to.parse().unwrap() {
                if numbers.iter().all(|(known, _)| *known != number) {
                    numbers.push((number, reaction.to_owned()));
                }
            }
        }
    }
    numbers
}

fn reaction(name: &str) -> Reaction {
    match name {
        "finish" => Reaction::Finish,
        "renew" => Reaction::Renew,
        "next_transport" => Reaction::NextTransport,
        "retry" => Reaction::Retry,
        "stop" => Reaction::Stop,
        name => panic!("{name}"),
    }
}

fn reaction_to_status(status: u16) -> Reaction {
    let table = table("statuses");
    let line = table.iter().find(|(number, _)| *number == status);
    reaction(&line.unwrap().1)
}

fn subscriber(transports: [Transport; 2], now: Instant) -> Subscriber {
    let second = Duration::from_secs(1);
    let client = Client::new()
        .transports(transports)
        .retry_delay(second, second);
    let url = "http://host/feed".parse().unwrap();
    Subscriber::new(client.subscriber_config(), url, None, now)
}

/// Returns what a subscriber does after the end of its connection over `transport`.
fn observed(subscriber: &mut Subscriber, transport: Transport, now: Instant) -> Reaction {
    let items = std::iter::from_fn(|| subscriber.poll_item(|| now));
    match items.last().unwrap() {
        Ok(ClientItem::Finished) => Reaction::Finish,
        Err(_) => Reaction::Stop,
        Ok(ClientItem::Reconnecting { delay, .. }) => {
            let request = subscriber.poll_request(now + delay).unwrap();
            let is_same = is_request_for(transport, &request);
            match (is_same, delay == Duration::ZERO) {
                (true, true) => Reaction::Renew,
                (true, false) => Reaction::Retry,
                (false, true) => Reaction::NextTransport,
                (false, false) => panic!("the next transport after a delay"),
            }
        }
        item => panic!("{item:?}"),
    }
}

fn is_request_for(transport: Transport, request: &http::Request<()>) -> bool {
    match transport {
        Transport::WebSocket => request.headers().contains_key("sec-websocket-key"),
        _ => request.headers()["accept"] == "text/event-stream",
    }
}

fn respond(subscriber: &mut Subscriber, status: u16, now: Instant) {
    let response = Response::builder().status(status).body(()).unwrap();
    subscriber.handle_response(&response.into_parts().0, now);
    subscriber.handle_end(Ok(()), now);
}

#[test]
fn each_status_has_the_reaction_of_the_table() {
    let table = table("statuses");
    assert_eq!(table.len(), 599 - 200);
    for (status, expected) in table {
        let now = Instant::now();
        let mut subscriber = subscriber([Transport::Sse, Transport::LongPoll], now);
        subscriber.poll_request(now).unwrap();
        respond(&mut subscriber, status, now);
        let observed = observed(&mut subscriber, Transport::Sse, now);
        assert_eq!(observed, reaction(&expected), "{status}");
        // If the repeated request fails in the same way, or the other transport: the end.
        if matches!(observed, Reaction::Renew | Reaction::NextTransport) {
            respond(&mut subscriber, status, now);
            let item = std::iter::from_fn(|| subscriber.poll_item(|| now)).last();
            assert!(matches!(item, Some(Err(_))), "{status}: {item:?}");
        }
    }
}

#[test]
fn each_close_code_has_the_reaction_of_the_table() {
    for (code, expected) in table("close_codes") {
        let now = Instant::now();
        let mut subscriber = subscriber([Transport::WebSocket, Transport::Sse], now);
        let request = subscriber.poll_request(now).unwrap();
        let accept = accept_key(request.headers()["sec-websocket-key"].as_bytes()).unwrap();
        let response = Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-accept", accept);
        let head = response.body(()).unwrap().into_parts().0;
        assert_eq!(
            subscriber.handle_response(&head, now),
            ResponseAction::Upgrade
        );
        // 1005 stands for a close frame without a code.
        let frame = match code {
            1005 => CloseFrame::without_code(),
            code => CloseFrame::new(CloseCode::new(code).unwrap(), "why"),
        };
        let mut bytes = BytesMut::new();
        encode_close_frame(&frame, &mut bytes);
        subscriber.handle_input(bytes.freeze(), now);
        // The items before the end of the connection.
        while subscriber
            .poll_item(|| now)
            .is_some_and(|item| !matches!(item, Ok(ClientItem::Finished)))
        {}
        if code == 1000 {
            continue;
        }
        subscriber.handle_end(Ok(()), now);
        let expected = match &*expected {
            "status" => match reaction_to_status(code - 4000) {
                // The server has accepted the transport.
                Reaction::NextTransport => Reaction::Stop,
                reaction => reaction,
            },
            name => reaction(name),
        };
        let observed = observed(&mut subscriber, Transport::WebSocket, now);
        assert_eq!(observed, expected, "{code}");
    }
}

#[test]
fn table_is_documented() {
    let file: Value = serde_json::from_str(include_str!("../client_reactions.json")).unwrap();
    let docs = include_str!("../../docs/clients.md");
    for line in [&file["statuses"], &file["close_codes"]] {
        for line in line.as_array().unwrap() {
            let row = format!("\n| {} | ", line["match"].as_str().unwrap());
            assert!(docs.contains(&row), "{row}");
        }
    }
}
