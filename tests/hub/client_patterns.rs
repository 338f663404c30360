//! Patterns of topics that clients choose by their requests: how requests name them, who may read them, limits, and how access is revoked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
};

use http::StatusCode;
use testkit::{body_text, get_request_head, poll_next, read_ready_items};
use tower_push::{
    Hub, Item, Push,
    event::Topic,
    source::{
        StartPosition, Subscription,
        hub::{ClientTopicsSource, TopicAccess, TopicPattern, Topics},
    },
    transport::{Sse, Transport},
};

use crate::requests::{subscribe_to, subscribe_with_form, subscribe_with_long_form};

fn hub() -> Hub {
    Hub::builder().max_patterns(8).build()
}

/// Returns a source whose clients may read every topic and every pattern, and have at most two patterns. The member is the path of the request.
fn open_source(hub: &Hub) -> ClientTopicsSource {
    let access = |subscription: Subscription| {
        let member = subscription.head().uri.path().to_owned();
        std::future::ready(TopicAccess::allow().member(member))
    };
    hub.subscribe(Topics::from_query("topic").max_patterns(2))
        .authorize(move |subscription, _| access(subscription))
        .authorize_patterns(move |subscription, _| access(subscription))
}

fn status_of(source: &ClientTopicsSource, uri: &str) -> u16 {
    match subscribe_to(source, uri) {
        Ok(_) => 200,
        Err(rejection) => rejection.status().as_u16(),
    }
}

/// Returns the topics whose events the client of a request gets.
fn topics_of(uri: &str) -> String {
    let hub = hub();
    let mut subscriber = subscribe_to(&open_source(&hub), uri).unwrap();
    for name in ["a", "a/1", "a/1/b", "a/2/b", "a//b", "*", "c*", "é/1"] {
        hub.publish(name, name).unwrap();
    }
    read_ready_items(&mut subscriber)[1..].join(" ")
}

#[test]
fn requests_name_patterns() {
    assert_eq!(topics_of("/?pattern_prefix=a/"), "a/1 a/1/b a/2/b a//b");
    assert_eq!(topics_of("/?pattern_segment=a/%0A/b"), "a/1/b a/2/b");
    assert_eq!(topics_of("/?pattern_segment=%0A"), "a * c*");
    assert_eq!(topics_of("/?pattern_prefix=%C3%A9"), "é/1");
    assert_eq!(
        topics_of("/?topic=a&pattern_prefix=a/1&pattern_segment=a/%0A/b"),
        "a a/1 a/1/b a/2/b"
    );
    let all = "a a/1 a/1/b a/2/b a//b * c* é/1";
    assert_eq!(topics_of("/?pattern_prefix="), all);
    assert_eq!(topics_of("/?pattern_prefix=&pattern_prefix="), all);
    // No character of a name is a wildcard.
    assert_eq!(topics_of("/?pattern_prefix=*"), "*");
    assert_eq!(topics_of("/?topic=*"), "*");
}

#[test]
fn form_names_patterns() {
    let hub = hub();
    let form = "pattern_prefix=a&pattern_segment=b%0Ac";
    let mut subscriber = subscribe_with_form(&open_source(&hub), "/", form).unwrap();
    for name in ["ab", "bxc", "x"] {
        hub.publish(name, name).unwrap();
    }
    assert_eq!(read_ready_items(&mut subscriber), ["cursor", "ab", "bxc"]);
}

#[tokio::test]
async fn patterns_are_refused_unless_authorized() {
    let hub = hub();
    let topics = || hub.subscribe(Topics::from_query("topic"));
    let source = topics().without_authorization();
    for uri in ["/?pattern_prefix=a", "/?topic=a&pattern_segment=a%0A"] {
        assert_eq!(status_of(&source, uri), 501, "{uri}");
    }
    let mut head = get_request_head("/?pattern_prefix=a", &[]);
    let response = Sse::new().respond(&mut head, Push::new(source)).await;
    let text = body_text(response.into_body()).await;
    assert_eq!(
        text.trim_end(),
        "clients may not subscribe to patterns of topics"
    );
    // The hub allows none.
    assert_eq!(
        status_of(&open_source(&Hub::new()), "/?pattern_prefix=a"),
        501
    );
}

#[tokio::test]
async fn pattern_is_authorized_as_a_whole() {
    let hub = hub();
    let topics = hub.subscribe(Topics::from_query("topic"));
    let source = topics
        .authorize(async |_, topic: Topic| topic.as_str() == "news")
        .authorize_patterns(
            async |_, pattern: TopicPattern| match pattern.common_prefix() {
                prefix if prefix.starts_with("user/7/") => TopicAccess::allow(),
                prefix if prefix.starts_with("user/") => TopicAccess::refuse_topic(),
                _ => TopicAccess::refuse_with(StatusCode::UNAUTHORIZED),
            },
        );
    for (uri, status) in [
        ("/?pattern_prefix=user/7/", 200),
        ("/?pattern_segment=user/7/%0A/mail", 200),
        ("/?topic=news&pattern_prefix=user/7/", 200),
        ("/?topic=news&pattern_prefix=user/", 200),
        ("/?topic=user/7/a", 403),
        ("/?pattern_prefix=user/", 403),
        ("/?pattern_prefix=user/%0A", 400),
        ("/?pattern_prefix=", 401),
        ("/?pattern_segment=user%0A7/", 401),
        ("/?topic=news&pattern_prefix=use", 401),
    ] {
        assert_eq!(status_of(&source, uri), status, "{uri}");
    }
    // A pattern that is refused alone is named in the stream.
    let uri = "/?topic=news&pattern_segment=user/%0A/mail";
    let mut subscriber = subscribe_to(&source, uri).unwrap();
    hub.publish("user/8/mail", "1").unwrap();
    hub.publish("news", "2").unwrap();
    let refused =
        r#"{"message":"Forbidden","pattern":{"prefix":"user/","suffix":"/mail"},"status":403}"#;
    assert_eq!(read_ready_items(&mut subscriber), ["cursor", refused, "2"]);
}

#[test]
fn bad_patterns_are_refused_without_cost() {
    let hub = hub();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let topics = hub.subscribe(Topics::from_query("topic").max_patterns(4));
    let source = topics
        .authorize(async |_, _| true)
        .authorize_patterns(move |_, _| {
            counted.fetch_add(1, Ordering::Relaxed);
            std::future::ready(true)
        });
    let long = "x".repeat(10 * 1024);
    let half = "x".repeat(513);
    for uri in [
        &*format!("/?pattern_prefix={long}"),
        &format!("/?pattern_segment=a%0A{long}"),
        &format!("/?pattern_segment={half}%0A{half}"),
        &format!("/?{}", "pattern_prefix=%2A%2A&".repeat(2_500)),
        "/?pattern_segment=a",
        "/?pattern_segment=",
        "/?pattern_segment=a%0Ab%0Ac",
        "/?pattern_segment=a%00%0Ab",
        "/?pattern_prefix=a%0D",
        "/?pattern_prefix=a&pattern_prefix=a&pattern_prefix=a&pattern_prefix=a&pattern_segment=%0A",
    ] {
        assert_eq!(status_of(&source, uri), 400, "{uri:.60}");
    }
    // `QUERY` requests may be longer than a URL.
    let refused = subscribe_with_long_form(&source, "pattern_prefix");
    assert_eq!(refused.unwrap_err().status(), 400);
    assert_eq!((asked.load(Ordering::Relaxed), hub.counts().topics), (0, 0));
    // A pattern that is repeated four times counts four times for the limit of the request, and is authorized once.
    let repeated = format!("/?{}", ["pattern_prefix=a"; 4].join("&"));
    let _subscriber = subscribe_to(&source, &repeated).unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

/// Clients choose more patterns than the hub allows: a client with a new pattern is refused, and the patterns of other clients stay.
#[test]
fn patterns_of_all_clients_are_bounded() {
    let hub = hub();
    let source = open_source(&hub);
    let subscribe = |number: u32| subscribe_to(&source, &format!("/?pattern_prefix={number}/"));
    let mut open: Vec<_> = (0..8).map(|number| subscribe(number).unwrap()).collect();
    for number in 8..10_000 {
        let refused = subscribe(number).unwrap_err();
        assert_eq!(refused.status(), 503);
    }
    let shared = subscribe(0);
    assert!(shared.is_ok());
    hub.publish("3/a", "x").unwrap();
    assert_eq!(read_ready_items(&mut open[3]), ["cursor", "x"]);
    open.clear();
    assert!(subscribe(8).is_ok());
}

#[test]
fn history_of_pattern_is_bounded_by_access() {
    let hub = Hub::builder()
        .max_patterns(1)
        .start(StartPosition::Oldest)
        .build();
    let topics = hub.subscribe(Topics::from_query("topic"));
    let source = topics
        .authorize(async |_, _| false)
        .authorize_patterns(async |_, _| TopicAccess::allow().max_history(1));
    let ids = ["a/1", "a/1", "a/2", "a/1"].map(|topic| hub.publish(topic, topic).unwrap());
    let mut first = subscribe_to(&source, "/?pattern_prefix=a/").unwrap();
    assert_eq!(read_ready_items(&mut first), ["a/2", "a/1"]);
    let uri = format!("/?pattern_prefix=a/&last_event_id={}", ids[0]);
    let mut resumed = subscribe_to(&source, &uri).unwrap();
    assert_eq!(
        read_ready_items(&mut resumed),
        ["expired Some(1)", "a/2", "a/1"]
    );
}

#[test]
fn revocation_of_a_topic_ends_patterns_that_match() {
    let hub = hub();
    let source = open_source(&hub);
    let mut mallory = subscribe_to(&source, "/mallory?pattern_prefix=room/").unwrap();
    // This subscription matches `room/1` three times, and is ended once.
    let uri = "/mallory?topic=room/1&pattern_prefix=room/&pattern_segment=room/%0A";
    let mut second = subscribe_to(&source, uri).unwrap();
    let mut other = subscribe_to(&source, "/mallory?pattern_prefix=rooms/").unwrap();
    let mut alice = subscribe_to(&source, "/alice?pattern_prefix=room/").unwrap();
    hub.publish("room/1", "1").unwrap();
    let is_mallory = |member: Option<&str>| member == Some("/mallory");
    assert_eq!(hub.revoke("lobby", is_mallory).unwrap(), 0);
    assert_eq!(hub.revoke("room/1", is_mallory).unwrap(), 2);
    assert_eq!(hub.revoke("room/1", is_mallory).unwrap(), 0);
    hub.publish("room/2", "2").unwrap();
    for ended in [&mut mallory, &mut second] {
        let item = poll_next(ended);
        assert!(matches!(item, Poll::Ready(Some(Ok(Item::Expired)))));
        assert!(matches!(poll_next(ended), Poll::Ready(None)));
    }
    assert_eq!(read_ready_items(&mut alice), ["cursor", "1", "2"]);
    hub.publish("rooms/1", "3").unwrap();
    assert_eq!(read_ready_items(&mut other), ["cursor", "3"]);
    // Nothing of the subscriptions remains.
    drop((mallory, second, other, alice));
    assert_eq!(hub.revoke("room/1", |_| true).unwrap(), 0);
}

#[tokio::test]
async fn revocation_wakes_idle_stream_of_a_pattern() {
    let hub = hub();
    let source = open_source(&hub);
    let mut head = get_request_head("/?pattern_prefix=room/", &[]);
    let response = Sse::new().respond(&mut head, Push::new(source)).await;
    let body = tokio::spawn(body_text(response.into_body()));
    tokio::task::yield_now().await;
    assert_eq!(hub.revoke("room/1", |_| true).unwrap(), 1);
    assert!(body.await.unwrap().ends_with("\n\n"));
}

/// Access is revoked between the decision about a pattern and the beginning of the stream.
#[test]
fn pattern_is_decided_anew_after_revocation() {
    let hub = hub();
    let decisions = Arc::new(AtomicUsize::new(0));
    let (revoking, counted) = (hub.clone(), decisions.clone());
    let topics = hub.subscribe(Topics::from_query("topic"));
    let source = topics
        .authorize(async |_, _| true)
        .authorize_patterns(move |_, _| {
            let is_first = counted.fetch_add(1, Ordering::Relaxed) == 0;
            revoking.revoke("room/1", |_| true).unwrap();
            std::future::ready(is_first)
        });
    assert_eq!(status_of(&source, "/?pattern_prefix=room/"), 403);
    assert_eq!(decisions.load(Ordering::Relaxed), 2);
}
