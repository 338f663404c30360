//! Sources over tokio's channels: what clients get, miss and are told.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use testkit::{RecordClient, empty_request};
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::timeout,
};
use tower::{Service, ServiceExt};
use tower_push::{
    Event, Item, Push, PushBody,
    source::{BroadcastSource, MpscSource, WatchSource},
    transport::Sse,
};

fn broadcast_push(sender: &broadcast::Sender<String>) -> Push {
    Push::new(BroadcastSource::new(sender.subscribe()))
}

fn send_numbers(sender: &broadcast::Sender<String>, numbers: impl Iterator<Item = u32>) {
    for n in numbers {
        sender.send(n.to_string()).unwrap();
    }
}

#[tokio::test]
async fn broadcast_lag_is_counted_gap() {
    let (sender, _) = broadcast::channel(4);
    let mut client = RecordClient::open(broadcast_push(&sender), None).await;
    send_numbers(&sender, 0..10);
    client.expect(&["gap lagged 6", "6", "7", "8", "9"]).await;
    // The receiver waits now, and lags again.
    let waiting = timeout(Duration::from_millis(20), client.next());
    assert!(waiting.await.is_err());
    send_numbers(&sender, 10..16);
    client.expect(&["gap lagged 2", "12", "13"]).await;
    drop(sender);
    client.expect(&["14", "15"]).await;
    client.expect_end().await;
}

#[tokio::test]
async fn broadcast_return_is_gap() {
    let (sender, _) = broadcast::channel(4);
    let mut client = RecordClient::open(broadcast_push(&sender), None).await;
    client.wait_for_cursor().await;
    let cursor = client.cursor().map(str::to_owned);
    // The client was never sent an event.
    drop(client);
    assert!(sender.send("missed".to_owned()).is_err());

    let mut client = RecordClient::open(broadcast_push(&sender), cursor.as_deref()).await;
    send_numbers(&sender, 1..3);
    client.expect(&["gap epoch null", "1", "2"]).await;
    // A client that returns after a gap is told of a gap again.
    let cursor = client.cursor().map(str::to_owned);
    let mut client = RecordClient::open(broadcast_push(&sender), cursor.as_deref()).await;
    client.expect(&["gap epoch null"]).await;
}

#[tokio::test]
async fn broadcast_ids_are_kept() {
    let (sender, _) = broadcast::channel(4);
    let open = |cursor| {
        let push = Push::new(BroadcastSource::new(sender.subscribe()));
        async move { RecordClient::open(push, cursor).await }
    };
    let mut client = open(None).await;
    let event = Event::text("x").with_id("mine").unwrap();
    sender.send(event).unwrap();
    client.expect(&["x"]).await;
    assert_eq!(client.cursor(), Some("mine"));
    open(Some("mine")).await.expect(&["gap epoch null"]).await;
}

#[tokio::test]
async fn broadcast_service_gives_each_client_a_receiver() {
    let (sender, receiver) = broadcast::channel(4);
    let service = tower_push::service(BroadcastSource::new(receiver)).transport(Sse::new());
    let open = async || {
        let request: Request<Empty<Bytes>> = empty_request("GET", "/", &[]);
        RecordClient::new(service.clone().oneshot(request).await.unwrap())
    };
    send_numbers(&sender, 0..9);
    let (mut a, mut b) = (open().await, open().await);
    send_numbers(&sender, 9..10);
    a.expect(&["9"]).await;
    drop(a);
    b.expect(&["9"]).await;
}

/// Sends long polls with the cursor of the last response.
struct Poller<S> {
    service: S,
    cursor: Option<String>,
}

impl<S> Poller<S>
where
    S: Service<Request<Empty<Bytes>>, Response = Response<PushBody>, Error = Infallible> + Clone,
{
    async fn poll(&mut self) -> Vec<String> {
        let uri = match &self.cursor {
            Some(cursor) => format!("/?transport=long-poll&last_event_id={cursor}"),
            None => "/?transport=long-poll".to_owned(),
        };
        let response = self
            .service
            .clone()
            .oneshot(empty_request("GET", &uri, &[]));
        let response = response.await.unwrap();
        let header = |name| response.headers()[name].to_str().unwrap().to_owned();
        self.cursor = Some(header("last-event-id"));
        RecordClient::new(response).read_to_end().await
    }
}

#[tokio::test(start_paused = true)]
async fn broadcast_loses_nothing_between_polls() {
    let (sender, receiver) = broadcast::channel(4);
    let mut poller = Poller {
        service: tower_push::service(BroadcastSource::new(receiver)),
        cursor: None,
    };
    assert_eq!(poller.poll().await, [""; 0]);
    send_numbers(&sender, 0..2);
    assert_eq!(poller.poll().await, ["0", "1"]);
    send_numbers(&sender, 2..8);
    assert_eq!(poller.poll().await, ["gap lagged 2", "4", "5", "6", "7"]);
}

#[tokio::test]
async fn watch_sends_current_value_and_changes() {
    let (sender, receiver) = watch::channel("1".to_owned());
    // The client gets the current value, although the receiver has seen it before.
    let mut receiver = receiver;
    receiver.borrow_and_update();
    let source = WatchSource::new(receiver);
    let mut client = RecordClient::open(Push::new(source.clone()), None).await;
    client.expect(&["1"]).await;
    for value in ["2", "3"] {
        sender.send_replace(value.to_owned());
    }
    client.expect(&["3"]).await;
    // Without a gap, because the current value is the whole state.
    let mut returning = RecordClient::open(Push::new(source), Some("7")).await;
    returning.expect(&["3"]).await;
    sender.send_replace("4".to_owned());
    drop(sender);
    for mut client in [client, returning] {
        client.expect(&["4"]).await;
        client.expect_end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn watch_polls_wait_for_changes() {
    let (sender, receiver) = watch::channel("1".to_owned());
    let mut poller = Poller {
        service: tower_push::service(WatchSource::new(receiver)),
        cursor: None,
    };
    assert_eq!(poller.poll().await, ["1"]);
    assert_eq!(poller.poll().await, [""; 0]);
    for value in ["2", "3"] {
        sender.send_replace(value.to_owned());
    }
    assert_eq!(poller.poll().await, ["3"]);
}

#[tokio::test]
async fn mpsc_sender_learns_that_client_left() {
    let (sender, receiver) = mpsc::channel(1);
    let mut client = RecordClient::open(Push::new(MpscSource::new(receiver)), None).await;
    sender.send("1").await.unwrap();
    client.expect(&["1"]).await;
    assert!(!sender.is_closed());
    drop(client);
    assert!(sender.is_closed());
}

#[tokio::test]
async fn mpsc_ends_after_last_item() {
    let (sender, receiver) = mpsc::unbounded_channel();
    sender.send(Item::Event(Event::text("1"))).unwrap();
    sender.send(Item::Finished).unwrap();
    let mut client = RecordClient::open(Push::new(MpscSource::new(receiver)), Some("7")).await;
    client
        .expect(&["gap epoch null", "1", r#"end {"finished":true}"#])
        .await;
    assert_eq!(client.cursor(), Some("~finished"));
    assert!(sender.is_closed());
}
