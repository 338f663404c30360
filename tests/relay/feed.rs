//! A relay without an upstream: pushes, gaps of the feed, ends.

use std::{task::Poll, time::Duration};

use futures_util::FutureExt;
use testkit::{body_text, get_request_head, poll_next, read_ready_items};
use tower_push::{
    Event, EventId, Gap, GapReason, Item, Push, PushSource, Relay,
    source::{
        StartPosition, Subscription,
        channel::LagPolicy,
        relay::{PushError, RelayWriter},
    },
    transport::{Sse, Transport},
};

/// Pushes events whose ids and texts are these numbers.
fn push_numbers(feed: &mut RelayWriter, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        let event = Event::text(number.to_string()).with_event_id(number.into());
        feed.push(event).unwrap();
    }
}

fn after(id: u64) -> StartPosition {
    StartPosition::After(id.into())
}

#[test]
fn subscriber_starts_where_requested() {
    let cases: [(StartPosition, &[&str]); 7] = [
        (StartPosition::Now, &["cursor"]),
        (StartPosition::Oldest, &["71", "72", "73"]),
        (StartPosition::Last(2), &["cursor", "72", "73"]),
        (after(70), &["71", "72", "73"]),
        (after(71), &["72", "73"]),
        (after(73), &[]),
        (after(74), &["epoch None", "71", "72", "73"]),
    ];
    for (start, expected) in cases {
        let (mut feed, relay) = Relay::builder().start_after(70.into()).build();
        push_numbers(&mut feed, 71..=73);
        let mut subscriber = relay.subscribe_from(start);
        assert_eq!(read_ready_items(&mut subscriber), expected);
        push_numbers(&mut feed, [900]);
        assert_eq!(read_ready_items(&mut subscriber), ["900"]);
    }
}

#[test]
fn first_cursor_is_known_if_feed_has_one() {
    let (_feed, relay) = Relay::builder().build();
    let mut subscriber = relay.subscribe_from(StartPosition::Now);
    assert_eq!(read_ready_items(&mut subscriber), [""; 0]);
    let (mut feed, relay) = Relay::builder().start_after(70.into()).build();
    let mut subscriber = relay.subscribe_from(StartPosition::Now);
    let Poll::Ready(Some(Ok(Item::Cursor(cursor)))) = poll_next(&mut subscriber) else {
        panic!("not a cursor")
    };
    push_numbers(&mut feed, [71]);
    let mut returned = relay.subscribe_from(StartPosition::After(cursor));
    assert_eq!(read_ready_items(&mut returned), ["71"]);
}

#[test]
fn push_checks_ids() {
    let (mut feed, relay) = Relay::builder().max_events(2).max_trimmed_ids(1).build();
    assert_eq!(feed.push(Event::text("x")), Err(PushError::MissingId));
    let finished = Event::text("x").with_id(EventId::FINISHED).unwrap();
    assert_eq!(feed.push(finished), Err(PushError::ReservedId));
    push_numbers(&mut feed, 1..=3);
    let repeated = Event::text("x").with_event_id(3.into());
    assert_eq!(feed.push(repeated), Err(PushError::DuplicateId));
    assert_eq!((relay.len(), relay.counts().pushed), (2, 3));
    assert_eq!(feed.last_id(), Some(3.into()));
}

#[test]
fn trimmed_events_are_counted_while_their_ids_are_known() {
    let (mut feed, relay) = Relay::builder().max_events(2).max_trimmed_ids(3).build();
    push_numbers(&mut feed, 1..=9);
    let read = |id| read_ready_items(&mut relay.subscribe_from(after(id)));
    assert_eq!(read(7), ["8", "9"]);
    assert_eq!(read(6), ["expired Some(1)", "8", "9"]);
    assert_eq!(read(5), ["expired Some(2)", "8", "9"]);
    assert_eq!(read(4), ["epoch None", "8", "9"]);
    assert_eq!(relay.counts().missed_on_resume, 3);
    let mut expired = relay.subscribe_from(after(5));
    let Poll::Ready(Some(Ok(Item::Gap(gap)))) = poll_next(&mut expired) else {
        panic!("not a gap")
    };
    assert_eq!(
        (gap.requested, gap.resumed),
        (Some(5.into()), Some(7.into()))
    );
}

#[test]
fn lag_policy_applies_to_slow_subscriber() {
    let lagging = |lag_policy| {
        let builder = Relay::builder().max_events(2).lag_policy(lag_policy);
        let (mut feed, relay) = builder.start_after(0.into()).build();
        let mut subscriber = relay.subscribe_from(StartPosition::Now);
        assert_eq!(read_ready_items(&mut subscriber), ["cursor"]);
        push_numbers(&mut feed, 1..=5);
        (feed, relay, subscriber)
    };
    let (_feed, relay, mut subscriber) = lagging(LagPolicy::Gap);
    assert_eq!(
        read_ready_items(&mut subscriber),
        ["lagged Some(3)", "4", "5"]
    );
    assert_eq!(relay.counts().lagged, 3);

    let (_feed, _relay, mut subscriber) = lagging(LagPolicy::Disconnect);
    assert!(matches!(
        poll_next(&mut subscriber),
        Poll::Ready(Some(Err(_)))
    ));
    assert!(matches!(poll_next(&mut subscriber), Poll::Ready(None)));

    let parity = |event: &Event| {
        let number: u64 = event.payload().as_text().unwrap().parse().unwrap();
        (number % 3).to_string()
    };
    let (_feed, relay, mut subscriber) = lagging(LagPolicy::conflate(parity));
    assert_eq!(read_ready_items(&mut subscriber), ["3", "4", "5"]);
    assert_eq!(relay.counts().conflated, 2);
}

#[test]
fn gap_of_feed_reaches_every_subscriber() {
    let (mut feed, relay) = Relay::builder().start_after(0.into()).build();
    let mut up_to_date = relay.subscribe_from(StartPosition::Now);
    push_numbers(&mut feed, 1..=3);
    let mut behind = relay.subscribe_from(after(1));
    assert_eq!(read_ready_items(&mut up_to_date), ["cursor", "1", "2", "3"]);
    feed.gap(&Gap::new(GapReason::Expired).missed(10).resumed(13.into()));
    assert_eq!(feed.last_id(), Some(13.into()));
    assert!(relay.is_empty());
    push_numbers(&mut feed, [14]);

    let Poll::Ready(Some(Ok(Item::Gap(gap)))) = poll_next(&mut up_to_date) else {
        panic!("not a gap")
    };
    assert_eq!((gap.reason, gap.missed), (GapReason::Expired, Some(10)));
    assert_eq!((gap.requested, gap.resumed), (None, Some(13.into())));
    assert_eq!(read_ready_items(&mut up_to_date), ["14"]);
    assert_eq!(read_ready_items(&mut behind), ["expired Some(12)", "14"]);
    let returning = |id| read_ready_items(&mut relay.subscribe_from(after(id)));
    assert_eq!(returning(13), ["14"]);
    assert_eq!(returning(3), ["epoch None", "14"], "forgotten");
    // The ids before the gap can be pushed again: they are those of a new store.
    push_numbers(&mut feed, [1]);
    assert_eq!(returning(14), ["1"]);
    assert_eq!(relay.counts().gaps, 1);
}

#[test]
fn gap_without_id_leaves_cursor_unknown() {
    let (mut feed, relay) = Relay::builder().start_after(0.into()).build();
    feed.gap(&Gap::new(GapReason::Epoch));
    assert_eq!(feed.last_id(), None);
    let mut subscriber = relay.subscribe_from(StartPosition::Now);
    assert_eq!(read_ready_items(&mut subscriber), [""; 0]);
    push_numbers(&mut feed, [1]);
    assert_eq!(read_ready_items(&mut subscriber), ["1"]);
}

#[test]
fn missing_event_is_a_gap_in_its_place() {
    let (mut feed, relay) = Relay::builder().start_after(0.into()).build();
    let mut up_to_date = relay.subscribe_from(StartPosition::Now);
    let mut of_news = relay
        .with_topics(["news".parse().unwrap()])
        .subscribe_from(after(0));
    push_numbers(&mut feed, 1..=2);
    feed.push_missing(3.into(), Some("news".parse().unwrap()))
        .unwrap();
    assert_eq!(
        feed.push_missing(3.into(), None),
        Err(PushError::DuplicateId)
    );
    assert_eq!(
        feed.push_missing(EventId::FINISHED.parse().unwrap(), None),
        Err(PushError::ReservedId)
    );
    push_numbers(&mut feed, [4]);
    assert_eq!(feed.last_id(), Some(4.into()));

    let expected = ["cursor", "1", "2", "unsupported Some(1)", "4"];
    assert_eq!(read_ready_items(&mut up_to_date), expected);
    let returning = |id| read_ready_items(&mut relay.subscribe_from(after(id)));
    assert_eq!(returning(0), expected[1..]);
    assert_eq!(returning(2), ["unsupported Some(1)", "4"]);
    assert_eq!(returning(3), ["4"]);
    let mut subscriber = relay.subscribe_from(after(2));
    let Poll::Ready(Some(Ok(Item::Gap(gap)))) = poll_next(&mut subscriber) else {
        panic!("not a gap")
    };
    assert_eq!((gap.requested, gap.resumed), (None, Some(3.into())));
    assert_eq!(gap.topic.unwrap().as_str(), "news");
    // The number of missing events of a subscriber with topics is not known.
    assert_eq!(read_ready_items(&mut of_news), ["unsupported None"]);
}

/// The subscribers at the same place get their events as runs, except where an event is missing.
#[tokio::test]
async fn missing_event_interrupts_a_run() {
    let (mut feed, relay) = Relay::builder().start(StartPosition::Oldest).build();
    push_numbers(&mut feed, 1..=40);
    feed.push_missing(41.into(), None).unwrap();
    push_numbers(&mut feed, 42..=80);
    feed.close();
    let event = |number: u64| {
        match number {
        41 => "event: gap\nid: 41\ndata: {\"reason\":\"unsupported\",\"requested\":null,\"resumed\":\"41\",\"missed\":1}\n\n".to_owned(),
        number => format!("id: {number}\ndata: {number}\n\n"),
    }
    };
    let expected: String = (1..=80).map(event).collect();
    for _ in 0..2 {
        let mut head = get_request_head("/", &[]);
        let response = Sse::new()
            .respond(&mut head, Push::new(relay.clone()))
            .await;
        let body = body_text(response.into_body()).await;
        assert!(body.contains(&expected), "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn limits_of_log_hold() {
    let minute = Duration::from_secs(60);
    let builder = Relay::builder()
        .max_events(100)
        .max_bytes(2500)
        .max_age(minute);
    let (mut feed, relay) = builder.build();
    push_numbers(&mut feed, 10..=99);
    assert_eq!((relay.len(), relay.byte_len()), (5, 5 * (4 + 384 + 96)));
    tokio::time::advance(minute + Duration::from_nanos(1)).await;
    assert!(relay.is_empty());
    assert_eq!(
        read_ready_items(&mut relay.subscribe_from(after(98))),
        ["expired Some(1)"]
    );
}

#[test]
fn closed_feed_finishes_after_remaining_events() {
    let (mut feed, relay) = Relay::builder().build();
    push_numbers(&mut feed, 1..=2);
    let mut subscriber = relay.subscribe_from(after(1));
    feed.close();
    assert_eq!(read_ready_items(&mut subscriber), ["2", "finished"]);
    let subscribe = |cursor: &str| {
        let head = get_request_head("/", &[("last-event-id", cursor)]);
        let subscription = Subscription::new(&head, "sse");
        relay
            .clone()
            .subscribe(subscription)
            .now_or_never()
            .unwrap()
    };
    assert_eq!(subscribe("2").unwrap_err().status(), 204);
    assert_eq!(
        read_ready_items(&mut subscribe("1").unwrap()),
        ["2", "finished"]
    );
    let mut foreign = subscribe("9").unwrap();
    assert_eq!(
        read_ready_items(&mut foreign),
        ["epoch None", "1", "2", "finished"]
    );
}

#[test]
fn dropped_feed_sends_clients_away_for_now() {
    let (mut feed, relay) = Relay::builder().build();
    push_numbers(&mut feed, 1..=2);
    let mut connected = relay.subscribe_from(after(1));
    drop(feed);
    for mut subscriber in [
        relay.subscribe_from(after(1)),
        relay.subscribe_from(after(2)),
    ] {
        while let Poll::Ready(Some(Ok(Item::Event(_)))) = poll_next(&mut connected) {}
        let items = read_ready_items(&mut subscriber);
        assert!(items.last().unwrap().starts_with("Ok(Ended"), "{items:?}");
        assert!(matches!(poll_next(&mut subscriber), Poll::Ready(None)));
    }
    assert!(matches!(poll_next(&mut connected), Poll::Ready(None)));
}

#[test]
fn topics_select_events_and_cursor_moves_on() {
    let (mut feed, relay) = Relay::builder().build();
    let news = tower_push::event::Topic::new("news").unwrap();
    let mut subscriber = relay
        .with_topics([news.clone()])
        .subscribe_from(StartPosition::Oldest);
    for number in 1..=200 {
        let event = Event::text(number.to_string()).with_event_id(number.into());
        let topic = if number % 100 == 0 { "news" } else { "other" };
        feed.push(event.with_topic(topic).unwrap()).unwrap();
    }
    feed.push(Event::text("none").with_id("x").unwrap())
        .unwrap();
    assert_eq!(
        read_ready_items(&mut subscriber),
        ["cursor", "100", "cursor", "200"]
    );
    let mut all = relay.subscribe_from(StartPosition::Last(2));
    assert_eq!(read_ready_items(&mut all), ["cursor", "200", "none"]);
}

#[tokio::test(start_paused = true)]
async fn quiet_subscriber_gets_newest_cursor() {
    let (mut feed, relay) = Relay::builder().max_events(50).build();
    let news = tower_push::event::Topic::new("news").unwrap();
    let mut subscriber = relay
        .with_topics([news])
        .subscribe_from(StartPosition::Oldest);
    let mut push = |number: u64| {
        let event = Event::text("x").with_event_id(number.into());
        feed.push(event.with_topic("other").unwrap()).unwrap();
    };
    for number in 1..=10 {
        push(number);
        assert!(read_ready_items(&mut subscriber).is_empty());
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    // The time runs from when the subscriber has read everything for the first time.
    tokio::time::advance(Duration::from_millis(4100)).await;
    let next = poll_next(&mut subscriber);
    assert!(
        matches!(&next, Poll::Ready(Some(Ok(Item::Cursor(id)))) if *id == 10.into()),
        "{next:?}"
    );
    // Without further events, the cursor does not move.
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(poll_next(&mut subscriber).is_pending());

    // A gap is followed by no cursor of the events before it.
    push(11);
    assert!(poll_next(&mut subscriber).is_pending());
    (12..=100).for_each(&mut push);
    assert_eq!(read_ready_items(&mut subscriber), ["lagged None"]);
    tokio::time::advance(Duration::from_secs(60)).await;
    let next = poll_next(&mut subscriber);
    assert!(
        matches!(&next, Poll::Ready(Some(Ok(Item::Cursor(id)))) if *id == 100.into()),
        "{next:?}"
    );
}

#[tokio::test]
async fn unreadable_cursor_is_gap() {
    let (mut feed, relay) = Relay::builder().build();
    push_numbers(&mut feed, 1..=2);
    feed.close();
    let mut head = get_request_head("/", &[("last-event-id", "not an id")]);
    let response = Sse::new().respond(&mut head, Push::new(relay)).await;
    let body = body_text(response.into_body()).await;
    assert!(
        body.contains(r#"{"reason":"epoch","requested":null"#),
        "{body}"
    );
    assert!(
        body.contains("id: 1\ndata: 1\n\nid: 2\ndata: 2\n\n"),
        "{body}"
    );
}
