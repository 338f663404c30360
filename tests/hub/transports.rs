//! Each transport names the topic of each event and gap, and moves the cursor of a quiet client on with its heartbeats.

use std::time::Duration;

use http_body_util::BodyExt;
use testkit::{HttpConnection, HttpVersion, TestServer, body_text, get_request_head};
use tower_push::{
    EventId, Hub, KeepAlive, Push, PushBody,
    format::{JsonSeq, Multipart, Ndjson},
    source::StartPosition,
    transport::{Chunked, LongPoll, Sse, Transport, WebSocket, sse::TopicForm},
};

/// Opens a stream over `transport` and reads its first frames, until the text contains `end`.
async fn read_until(transport: impl Transport, push: Push, end: &str) -> String {
    let mut head = get_request_head("/", &[]);
    let mut body = transport.respond(&mut head, push).await.into_body();
    let mut text = String::new();
    while !text.contains(end) {
        text.push_str(&next_text(&mut body).await);
    }
    text
}

async fn next_text(body: &mut PushBody) -> String {
    let frame = body.frame().await.expect("the body goes on").unwrap();
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}

/// Returns a hub with one event of the topic `news`, and a source that begins with a gap of this topic.
fn hub_with_gap() -> (Push, EventId) {
    let hub = Hub::builder().max_events(1).build();
    let first = hub.publish("news", "0").unwrap();
    hub.publish("news", "1").unwrap();
    let goal = tower_push::Event::text("2:1").with_type("goal").unwrap();
    let id = hub.publish(["news", "sport"], goal).unwrap();
    let source = hub.topics(["news"]).unwrap();
    (
        Push::new(source.with_start(StartPosition::After(first))),
        id,
    )
}

#[tokio::test]
async fn formats_name_topics() {
    let check_gap = |text: &str| {
        assert!(text.contains(r#""missed":null,"topic":"news""#), "{text}");
    };
    let (push, id) = hub_with_gap();
    let text = read_until(Sse::new(), push, "2:1").await;
    check_gap(&text);
    let event = format!("event: goal\ntopic: news\nid: {id}\ndata: 2:1\n\n");
    assert!(text.ends_with(&event), "{text}");

    let (push, id) = hub_with_gap();
    let text = read_until(Chunked::new(Ndjson::new()), push, "2:1").await;
    check_gap(&text);
    let envelope = format!(r#"{{"id":"{id}","topic":"news","event":"goal","data":"2:1"}}"#);
    assert!(text.contains(&envelope), "{text}");

    let (push, id) = hub_with_gap();
    let text = read_until(Chunked::new(JsonSeq::new()), push, "2:1").await;
    check_gap(&text);
    let envelope = format!(r#"{{"id":"{id}","topic":"news","event":"goal","data":"2:1"}}"#);
    assert!(text.contains(&envelope), "{text}");

    let (push, _) = hub_with_gap();
    let text = read_until(Chunked::new(Multipart::mixed()), push, "2:1").await;
    check_gap(&text);
    assert!(text.contains("Event-Topic: news\r\n"), "{text}");
}

#[tokio::test]
async fn sse_names_topics_as_chosen() {
    let (push, id) = hub_with_gap();
    let text = read_until(Sse::new().topic_form(TopicForm::EventType), push, "2:1").await;
    let event = format!("event: news\nid: {id}\ndata: 2:1\n\n");
    assert!(
        text.contains("event: gap\n") && text.ends_with(&event),
        "{text}"
    );

    let (push, id) = hub_with_gap();
    let text = read_until(Sse::new().topic_form(TopicForm::Envelope), push, "2:1").await;
    let envelope = format!(r#"{{"id":"{id}","topic":"news","event":"goal","data":"2:1"}}"#);
    assert!(
        text.ends_with(&format!("id: {id}\ndata: {envelope}\n\n")),
        "{text}"
    );

    let (push, id) = hub_with_gap();
    let text = read_until(Sse::new().topic_form(TopicForm::Omitted), push, "2:1").await;
    assert!(!text.contains("topic"), "{text}");
    let event = format!("event: goal\nid: {id}\ndata: 2:1\n\n");
    assert!(text.ends_with(&event), "{text}");

    // The cursor of a client that resumes is in the field `id`, and the event's own id in the envelope or in a field of its own.
    let hub = Hub::new();
    let old = hub.publish("fresh", "0").unwrap();
    let cursor = hub.publish("news", "1").unwrap();
    let source = hub
        .topics(["fresh", "news"])
        .unwrap()
        .with_start(StartPosition::Last(1));
    let source = source.with_fresh_topics("fresh".try_into().unwrap());
    let mut head = get_request_head("/", &[("last-event-id", cursor.as_str())]);
    for (form, expected) in [
        (
            TopicForm::EventType,
            format!("event: fresh\nid: {cursor}\ndata: 0\n\n"),
        ),
        (
            TopicForm::Envelope,
            format!(
                "id: {cursor}\ndata: {{\"id\":\"{old}\",\"topic\":\"fresh\",\"data\":\"0\"}}\n\n"
            ),
        ),
        (
            TopicForm::Field,
            format!("topic: fresh\nid: {cursor}\nevent_id: {old}\ndata: 0\n\n"),
        ),
        (TopicForm::Omitted, format!("id: {cursor}\ndata: 0\n\n")),
    ] {
        let sse = Sse::new().topic_form(form);
        let response = sse.respond(&mut head, Push::new(source.clone())).await;
        let mut body = response.into_body();
        let text = next_text(&mut body).await;
        assert_eq!(text, format!(":\n{expected}"));
    }
}

/// Publishes to a topic that the client does not have, and returns the id of the last event.
fn publish_elsewhere(hub: &Hub) -> EventId {
    let publish = |number: u32| hub.publish("busy", number.to_string()).unwrap();
    (1..100).fold(publish(0), |_, number| publish(number))
}

async fn check_streaming_cursor(transport: impl Transport, expected: impl Fn(&EventId) -> String) {
    let hub = Hub::new();
    let mut head = get_request_head("/", &[]);
    let push = Push::new(hub.topic("quiet").unwrap());
    let mut body = transport.respond(&mut head, push).await.into_body();
    next_text(&mut body).await;
    // The stream waits before the topic `busy` has events.
    let waiting = tokio::time::timeout(Duration::from_secs(1), body.frame()).await;
    assert!(waiting.is_err());
    let last = publish_elsewhere(&hub);
    let text = next_text(&mut body).await;
    assert!(text.contains(&expected(&last)), "{text}");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_move_cursor_of_quiet_client_on() {
    check_streaming_cursor(Sse::new(), |id| format!("id: {id}\n\n")).await;
    check_streaming_cursor(Chunked::new(Ndjson::new()), |id| {
        format!("{{\"id\":\"{id}\"}}\n")
    })
    .await;
    check_streaming_cursor(Chunked::new(JsonSeq::new()), |id| {
        format!("{{\"id\":\"{id}\"}}\n")
    })
    .await;
    check_streaming_cursor(Chunked::new(Multipart::mixed()), |id| id.to_string()).await;
}

#[tokio::test(start_paused = true)]
async fn empty_poll_moves_cursor_of_quiet_client_on() {
    let hub = Hub::new();
    let first = hub.publish("quiet", "x").unwrap();
    let push = Push::new(hub.topic("quiet").unwrap());
    let mut head = get_request_head("/", &[("last-event-id", first.as_str())]);
    let (response, last) = tokio::join!(LongPoll::new().respond(&mut head, push), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        publish_elsewhere(&hub)
    });
    assert_eq!(response.headers()["last-event-id"], last.as_str());
    assert_eq!(body_text(response.into_body()).await.trim(), "[]");
}

#[tokio::test]
async fn websocket_names_topics_and_moves_cursor_on() {
    let hub = Hub::new();
    let source = hub.topics(["quiet", "b"]).unwrap();
    let websocket =
        WebSocket::new().keep_alive(KeepAlive::new().interval(Duration::from_millis(50)));
    let service = tower_push::service(source).transport(websocket);
    let server = TestServer::start(service).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let protocol = ("sec-websocket-protocol", "json.tower-push");
    let mut socket = client
        .open_websocket("/", &[protocol])
        .await
        .unwrap_or_else(|_| panic!("refused"));
    let mut next_text = async || loop {
        let frame = socket.next_frame().await.unwrap();
        match frame.first_byte & 15 {
            9 => socket.send_frame(0x8a, &frame.payload).await,
            _ => return String::from_utf8(frame.payload).unwrap(),
        }
    };
    next_text().await;
    let id = hub.publish("b", "x").unwrap();
    let envelope = format!(r#"{{"id":"{id}","topic":"b","data":"x"}}"#);
    assert_eq!(next_text().await, envelope);
    let last = publish_elsewhere(&hub);
    assert_eq!(next_text().await, format!(r#"{{"id":"{last}"}}"#));
}

#[tokio::test]
async fn transports_name_all_topics_of_client() {
    let hub = Hub::builder().start(StartPosition::Last(1)).build();
    let goal = hub.publish(["news", "sport", "secret"], "2:1").unwrap();
    let push = || Push::new(hub.topics(["sport", "news", "rates"]).unwrap());

    let sse = read_until(Sse::new(), push(), "2:1").await;
    let event = format!("topic: news\ntopics: news\tsport\nid: {goal}\ndata: 2:1\n\n");
    assert!(sse.ends_with(&event), "{sse}");

    let envelope =
        format!(r#"{{"id":"{goal}","topic":"news","topics":["news","sport"],"data":"2:1"}}"#);
    let ndjson = read_until(Chunked::new(Ndjson::new()), push(), "2:1").await;
    assert!(ndjson.ends_with(&format!("{envelope}\n")), "{ndjson}");
    let batch = read_until(LongPoll::new(), push(), "2:1").await;
    assert!(batch.contains(&envelope), "{batch}");

    let multipart = read_until(Chunked::new(Multipart::mixed()), push(), "2:1").await;
    let headers = "Event-Topic: news\r\nEvent-Topics: news\tsport\r\n";
    assert!(multipart.contains(headers), "{multipart}");

    let bare = Sse::new().topic_form(TopicForm::Omitted);
    let text = read_until(bare, push(), "2:1").await;
    assert!(!text.contains("topic"), "{text}");
}
