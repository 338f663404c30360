//! What the client tells of a feed: gaps, ends, hints, messages in both directions.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use testkit::{TEST_TIMEOUT, TestServer};
use tokio::time::timeout;
use tower_push::{
    Channel, Event, GapReason, Hub, Item,
    event::{CloseCode, CloseFrame, Payload},
    source::{StartPosition, Subscription, receive_fn, source_fn},
    transport::StreamEnd,
};
use tower_push_client::{Client, ClientItem, MessageSender, Transport};

use crate::support::{
    TRANSPORTS, client_for, errors_to_end, http2_service, next_item, next_text, numbered_channel,
    texts_to_end,
};

#[tokio::test]
async fn gap_arrives_with_its_data() {
    let channel = Channel::builder().max_events(2).build();
    let first = channel.publish("0").unwrap();
    for number in 1..5 {
        channel.publish(number.to_string()).unwrap();
    }
    let server = TestServer::start(tower_push::service(channel)).await;
    for transport in TRANSPORTS {
        let client = client_for(transport).cursor(first.clone());
        let mut stream = client.subscribe(server.url("/")).unwrap();
        let gap = loop {
            match next_item(&mut stream).await {
                ClientItem::Gap(gap) => break gap,
                ClientItem::Connected { .. } | ClientItem::Cursor(_) => {}
                item => panic!("{transport}: {item:?}"),
            }
        };
        assert_eq!(gap.reason, GapReason::Expired, "{transport}");
        assert_eq!(
            (gap.missed, &gap.requested),
            (Some(2), &Some(first.clone()))
        );
        assert_eq!(next_text(&mut stream).await, "3");
        assert_eq!(next_text(&mut stream).await, "4");
    }
}

#[tokio::test]
async fn event_with_cursor_arrives_on_each_transport() {
    let source = source_fn(async |_: Subscription| {
        let event = Event::text("a").with_id("3")?;
        let cursor = "7".parse()?;
        let items = [Item::EventWithCursor { event, cursor }, Item::Finished];
        Ok::<_, tower_push::source::Rejection>(stream::iter(items))
    });
    let server = TestServer::start(tower_push::service(source)).await;
    for transport in TRANSPORTS {
        let mut stream = client_for(transport).subscribe(server.url("/")).unwrap();
        let item = loop {
            match next_item(&mut stream).await {
                ClientItem::Connected { .. } => {}
                item => break item,
            }
        };
        assert_eq!(item.cursor().unwrap().as_str(), "7", "{transport}");
        let ClientItem::Event { event, cursor } = item else {
            panic!("{transport}: {item:?}")
        };
        assert_eq!(event.id().unwrap().as_str(), "3", "{transport}");
        assert_eq!(cursor.unwrap().as_str(), "7", "{transport}");
    }
}

#[tokio::test]
async fn fields_of_events_arrive() {
    let source = source_fn(async |_: Subscription| {
        let event = Event::json_text("{\"eur\":21.5}")?;
        let event = event
            .with_id("7:a")?
            .with_type("price")?
            .with_topic("rates")?;
        let binary = Event::binary(vec![0, 255]).with_id("8")?;
        let items = [Item::Event(event), Item::Event(binary), Item::Finished];
        Ok::<_, tower_push::source::Rejection>(stream::iter(items))
    });
    let server = TestServer::start(tower_push::service(source)).await;
    // An event stream has no place for bytes.
    for transport in TRANSPORTS.into_iter().filter(|t| *t != Transport::Sse) {
        let mut stream = client_for(transport).subscribe(server.url("/")).unwrap();
        let mut events = Vec::new();
        loop {
            match next_item(&mut stream).await {
                ClientItem::Finished => break,
                item => events.extend(item.into_event()),
            }
        }
        let [price, bytes] = &events[..] else {
            panic!("{transport}: {events:?}")
        };
        assert_eq!(price.id().unwrap().as_str(), "7:a");
        assert_eq!(price.event_type().unwrap().as_str(), "price");
        assert_eq!(price.topic().unwrap().as_str(), "rates");
        assert_eq!(price.payload().as_text(), Some("{\"eur\":21.5}"));
        assert_eq!(
            bytes.payload(),
            &Payload::Binary(vec![0, 255].into()),
            "{transport}"
        );
    }
}

#[tokio::test]
async fn all_topics_of_an_event_arrive() {
    let hub = Hub::builder().start(StartPosition::Last(1)).build();
    hub.publish(["news", "sport", "secret"], "2:1").unwrap();
    let source = hub.topics(["news", "sport"]).unwrap();
    let server = TestServer::start(tower_push::service(source)).await;
    for transport in TRANSPORTS {
        let mut stream = client_for(transport).subscribe(server.url("/")).unwrap();
        let event = loop {
            if let Some(event) = next_item(&mut stream).await.into_event() {
                break event;
            }
        };
        let topics: Vec<_> = event.topics().iter().map(|topic| topic.as_str()).collect();
        assert_eq!(topics, ["news", "sport"], "{transport}");
    }
}

#[tokio::test]
async fn time_of_an_end_is_the_floor() {
    let retry = Duration::from_secs(5);
    let source = source_fn(async move |_: Subscription| {
        let event = Event::text("hi").with_id("1")?;
        let items = [Item::Event(event), Item::Ended { retry }];
        Ok::<_, tower_push::source::Rejection>(stream::iter(items))
    });
    let server = TestServer::start(tower_push::service(source)).await;
    for transport in TRANSPORTS {
        let mut stream = client_for(transport).subscribe(server.url("/")).unwrap();
        assert_eq!(next_text(&mut stream).await, "hi");
        let delay = loop {
            match next_item(&mut stream).await {
                ClientItem::Reconnecting { delay, error: None } => break delay,
                ClientItem::Cursor(_) => {}
                item => panic!("{transport}: {item:?}"),
            }
        };
        assert!(
            (retry..=2 * retry).contains(&delay),
            "{transport}: {delay:?}"
        );
    }
}

#[tokio::test]
async fn close_frame_of_the_application_finishes() {
    const FORBIDDEN: CloseCode = CloseCode::new(4403).unwrap();
    let source = source_fn(async |_: Subscription| {
        let frame = CloseFrame::new(FORBIDDEN, "Forbidden");
        let item = Item::closed(frame, StreamEnd::FINISHED);
        Ok::<_, tower_push::source::Rejection>(stream::iter([item]))
    });
    let server = TestServer::start(tower_push::service(source)).await;
    for transport in TRANSPORTS {
        let mut stream = client_for(transport).subscribe(server.url("/")).unwrap();
        assert!(texts_to_end(&mut stream).await.is_empty());
    }
    // Without a subprotocol there is no message for the end, and the code decides.
    let client = client_for(Transport::WebSocket).subprotocols::<String>([]);
    let mut stream = client.subscribe(server.url("/")).unwrap();
    let (error, _) = errors_to_end(&mut stream).await;
    assert!(error.is_closed());
    assert_eq!(error.close_frame().unwrap().reason(), "Forbidden");
}

/// A server that sends each message back.
async fn echo_server() -> TestServer {
    let echo = source_fn(async |subscription: Subscription| {
        let messages = subscription.client_messages().unwrap();
        Ok::<_, tower_push::source::Rejection>(messages)
    });
    let transport = tower_push::transport::WebSocket::new().deflate_threshold(Some(0));
    TestServer::start(tower_push::service(echo).transport(transport)).await
}

#[tokio::test]
async fn messages_go_both_ways() {
    let server = echo_server().await;
    for (transport, deflate) in [
        (Transport::WebSocket, true),
        (Transport::WebSocket, false),
        (Transport::WebSocketHttp2, true),
    ] {
        let client = client_for(transport)
            .deflate(deflate)
            .subprotocols::<String>([]);
        let mut stream = client.subscribe(server.url("/")).unwrap();
        let sender = stream.sender();
        for len in [0, 1, 125, 126, 127, 1000, 60_000] {
            for message in [
                Payload::Text("é".repeat(len / 2)),
                Payload::Binary(vec![7; len].into()),
            ] {
                // Messages wait in the queue until the WebSocket is open.
                sender.send(message.clone()).await.unwrap();
                let event = loop {
                    if let Some(event) = next_item(&mut stream).await.into_event() {
                        break event;
                    }
                };
                assert_eq!(event.payload(), &message, "{transport}, {len}");
            }
        }
        stream.close(CloseFrame::new(CloseCode::NORMAL, "bye"));
        assert!(stream.next().await.is_none());
    }
}

fn text(message: &str) -> Payload {
    Payload::Text(message.to_owned())
}

/// No sender waits for a WebSocket that the server does not offer.
#[tokio::test]
async fn sender_fails_if_the_server_offers_no_websocket() {
    let service = tower_push::service(numbered_channel(1));
    let server = TestServer::start(service.transport(tower_push::transport::Sse::new())).await;
    let client = Client::new().transports([Transport::WebSocket, Transport::Sse]);
    let mut stream = client.subscribe(server.url("/")).unwrap();
    let sender = stream.sender();
    while sender.try_send(text("hi")).is_ok() {}
    assert!(sender.try_send(text("hi")).unwrap_err().is_full());
    let (sent, event) = tokio::join!(sender.send(text("waits")), next_text(&mut stream));
    let error = sent.unwrap_err();
    assert!(error.is_unsupported() && !error.is_closed(), "{error}");
    assert_eq!(error.into_message().as_text(), Some("waits"));
    assert_eq!(event, "0");
    assert!(!sender.is_closed());
    assert!(sender.try_send(text("hi")).unwrap_err().is_unsupported());
    assert!(
        stream
            .sender()
            .send(text("hi"))
            .await
            .unwrap_err()
            .is_unsupported()
    );
    drop(stream);
    assert!(sender.is_closed());
    assert!(sender.try_send(text("hi")).unwrap_err().is_closed());
    assert!(sender.send(text("hi")).await.unwrap_err().is_closed());
}

/// The client asks for an event stream first, and the server offers only a WebSocket.
#[tokio::test]
async fn sender_works_once_the_client_has_a_websocket() {
    let server = echo_server().await;
    let client = Client::new().transports([Transport::Sse, Transport::WebSocket]);
    let mut stream = client
        .subprotocols::<String>([])
        .subscribe(server.url("/"))
        .unwrap();
    let sender = stream.sender();
    assert!(
        sender
            .send(text("early"))
            .await
            .unwrap_err()
            .is_unsupported()
    );
    while !matches!(
        next_item(&mut stream).await,
        ClientItem::Connected {
            transport: Transport::WebSocket
        }
    ) {}
    sender.send(text("hi")).await.unwrap();
    assert_eq!(next_text(&mut stream).await, "hi");
}

#[tokio::test]
async fn close_frame_reaches_the_server() {
    let (frames, mut closed) = tokio::sync::mpsc::unbounded_channel();
    let source = receive_fn(
        move |_: Subscription, mut messages: tower_push::source::ClientMessages| {
            let frames = frames.clone();
            async move {
                while messages.next().await.is_some() {}
                frames.send(messages.close_frame()).unwrap();
                Item::Finished
            }
        },
    );
    let server = TestServer::start(tower_push::service(source)).await;
    for client in [
        Client::new().transports([Transport::WebSocket]),
        Client::with_service(http2_service()).transports([Transport::WebSocketHttp2]),
    ] {
        let mut stream = client.subscribe(server.url("/")).unwrap();
        assert!(matches!(
            next_item(&mut stream).await,
            ClientItem::Connected { .. }
        ));
        let frame = CloseFrame::new(CloseCode::new(4321).unwrap(), "enough");
        stream.close(frame.clone());
        while stream.next().await.is_some() {}
        assert_eq!(closed.recv().await.unwrap(), Some(frame));
    }
}

#[tokio::test]
async fn messages_are_refused_after_the_stream() {
    let mut stream = Client::new().subscribe("ws://localhost/").unwrap();
    let sender = stream.sender();
    for _ in 0..64 {
        sender.try_send(Payload::Text("queued".into())).unwrap();
    }
    let too_many = sender.try_send(Payload::Text("too many".into()));
    let error = too_many.unwrap_err();
    assert!(error.is_full() && !error.is_closed() && !sender.is_closed());
    assert_eq!(error.into_message().as_text(), Some("too many"));
    drop(stream);
    assert_senders_are_closed(&sender).await;
}

async fn assert_senders_are_closed(sender: &MessageSender) {
    assert!(sender.is_closed());
    let late = || Payload::Text("late".into());
    for result in [sender.try_send(late()), sender.send(late()).await] {
        let error = result.unwrap_err();
        assert!(error.is_closed() && !error.is_full());
        assert_eq!(error.into_message(), late());
    }
}

/// A program may hold the stream after the stream's last item. A sender that waits for the queue then learns of the end.
#[tokio::test]
async fn senders_are_closed_when_the_stream_ends() {
    for is_refused in [false, true] {
        let channel = crate::support::numbered_channel(0);
        channel.close();
        let server = match is_refused {
            true => TestServer::start(axum::Router::new()).await,
            false => TestServer::start(tower_push::service(channel)).await,
        };
        let client = client_for(Transport::WebSocket);
        let mut stream = client.subscribe(server.url("/")).unwrap();
        let sender = stream.sender();
        // More messages than the queue and the socket hold.
        let waiting = tokio::spawn({
            let sender = sender.clone();
            async move {
                let message = Payload::Text("x".repeat(100_000));
                while sender.send(message.clone()).await.is_ok() {}
            }
        });
        loop {
            match timeout(TEST_TIMEOUT, stream.next()).await.unwrap() {
                Some(Ok(ClientItem::Finished)) if !is_refused => break,
                Some(Err(_)) if is_refused => break,
                Some(Ok(ClientItem::Connected { .. } | ClientItem::Cursor(_))) => {}
                item => panic!("{item:?}"),
            }
        }
        timeout(TEST_TIMEOUT, waiting).await.unwrap().unwrap();
        assert_senders_are_closed(&sender).await;
        assert_senders_are_closed(&stream.sender()).await;
    }
}

#[tokio::test]
async fn stream_without_a_websocket_sends_no_messages() {
    let mut stream = Client::new().subscribe("http://localhost/").unwrap();
    assert_senders_are_closed(&stream.sender()).await;
    let websocket = Client::new().transports([Transport::Sse, Transport::WebSocket]);
    let mut stream = websocket.subscribe("http://localhost/").unwrap();
    let sender = stream.sender();
    assert!(!sender.is_closed());
    stream.close(CloseFrame::without_code());
    assert_senders_are_closed(&sender).await;
}

#[tokio::test]
async fn long_message_ends_the_stream() {
    let channel = crate::support::numbered_channel(0);
    channel.publish("x".repeat(5000)).unwrap();
    // Compressed, the message is shorter than the limit.
    let server = TestServer::start(tower_push::service(channel)).await;
    let client = client_for(Transport::WebSocket).max_event_len(1000);
    let (error, _) = errors_to_end(&mut client.subscribe(server.url("/")).unwrap()).await;
    assert!(error.is_too_long(), "{error}");
}
