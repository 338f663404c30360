//! A server that shows the feed of another server.

use axum::Router;
use futures_util::StreamExt;
use http::StatusCode;
use testkit::{TEST_TIMEOUT, TestServer};
use tokio::time::timeout;
use tower_push::{Event, GapReason, Relay, service, source::StartPosition};
use tower_push_client::{ClientItem, RemoteSource, Transport, relay_into};

use crate::support::{
    CuttingProxy, TRANSPORTS, client_for, next_text, numbered_channel, texts_to_end,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remote_source_keeps_ids() {
    let channel = numbered_channel(3);
    let origin = TestServer::start(service(channel.clone())).await;
    let source = RemoteSource::new(client_for(Transport::Sse), origin.url("/")).unwrap();
    let edge = TestServer::start(service(source)).await;
    let mut cursor = None;
    // Each client reads one event, and resumes at the other server.
    for (number, server) in [&edge, &origin, &edge].into_iter().enumerate() {
        let client = client_for(Transport::Sse).cursor(cursor);
        let mut stream = client.subscribe(server.url("/")).unwrap();
        assert_eq!(next_text(&mut stream).await, number.to_string());
        cursor = stream.cursor().cloned();
    }
    channel.close();
    for transport in TRANSPORTS {
        let mut stream = client_for(transport).subscribe(edge.url("/")).unwrap();
        assert_eq!(
            texts_to_end(&mut stream).await,
            ["0", "1", "2"],
            "{transport}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_survives_cuts_of_its_origin() {
    let channel = numbered_channel(20);
    let origin = TestServer::start(service(channel.clone())).await;
    let proxy = CuttingProxy::start(&origin, 700).await;
    let (mut feed, relay) = Relay::builder().start(StartPosition::Oldest).build();
    let upstream = client_for(Transport::Sse)
        .subscribe(proxy.server.url("/"))
        .unwrap();
    let relaying = tokio::spawn(async move {
        let result = relay_into(upstream, &mut feed).await;
        feed.close();
        result
    });
    let edge = TestServer::start(service(relay)).await;
    let streams = TRANSPORTS.map(|t| client_for(t).subscribe(edge.url("/")).unwrap());
    channel.publish("last").unwrap();
    channel.close();
    let expected: Vec<_> = (0..20)
        .map(|n| n.to_string())
        .chain(["last".into()])
        .collect();
    for mut stream in streams {
        assert_eq!(texts_to_end(&mut stream).await, expected);
    }
    assert!(proxy.has_cut());
    relaying.await.unwrap().unwrap();
}

/// An event stream without base64 cannot carry bytes. The relay's log keeps the events before.
#[tokio::test]
async fn unsupported_event_leaves_the_log_of_a_relay() {
    let channel = numbered_channel(2);
    channel.publish(Event::binary(vec![0xff])).unwrap();
    channel.publish("last").unwrap();
    channel.close();
    let origin = TestServer::start(service(channel)).await;
    let upstream = client_for(Transport::Sse)
        .subscribe(origin.url("/"))
        .unwrap();
    let (mut feed, relay) = Relay::builder().start(StartPosition::Oldest).build();
    relay_into(upstream, &mut feed).await.unwrap();
    feed.close();
    let edge = TestServer::start(service(relay)).await;
    for transport in TRANSPORTS {
        let mut stream = client_for(transport).subscribe(edge.url("/")).unwrap();
        let (mut texts, mut gaps) = (Vec::new(), Vec::new());
        while let Some(item) = timeout(TEST_TIMEOUT, stream.next()).await.unwrap() {
            match item.unwrap() {
                ClientItem::Event { event, .. } => {
                    texts.push(event.payload().as_text().unwrap().to_owned());
                }
                ClientItem::Gap(gap) => gaps.push((texts.len(), gap.reason, gap.missed)),
                _ => {}
            }
        }
        assert_eq!(texts, ["0", "1", "last"], "{transport}");
        assert_eq!(gaps, [(2, GapReason::Unsupported, Some(1))], "{transport}");
    }
}

/// What the other server answers is for the operator of this server, whose observer gets the error, and not for its clients.
#[tokio::test]
async fn clients_of_a_remote_source_learn_no_error() {
    let forbidden = Router::new().fallback(async || (StatusCode::FORBIDDEN, "secret"));
    let origin = TestServer::start(forbidden).await;
    let url = format!("http://me:secret@{}/", origin.address);
    for transport in TRANSPORTS {
        let source = RemoteSource::new(client_for(Transport::Sse), &url).unwrap();
        assert!(!format!("{source:?}").contains("secret"));
        let edge = TestServer::start(service(source)).await;
        let client = client_for(transport).reconnect(false);
        let stream = client.subscribe(edge.url("/")).unwrap();
        let items = timeout(TEST_TIMEOUT, stream.collect::<Vec<_>>()).await;
        let items = items.unwrap();
        assert!(items.iter().any(Result::is_err), "{transport}: {items:?}");
        let text = format!("{items:?}");
        assert!(!text.contains("secret"), "{transport}: {text}");
    }
}
