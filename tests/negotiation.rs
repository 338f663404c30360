//! Negotiation: which transport answers a request, if one URL has several.

use std::sync::Arc;

use futures_util::stream;
use http::{Response, StatusCode};
use testkit::{body_text, empty_request, get_request_head};
use tower_push::{
    Channel, Event, Guard, Push, PushBody, Resumable,
    format::{Multipart, Raw},
    source::StartPosition,
    transport::{Chunked, LongPoll, Negotiate, Sse, Transport},
};

/// Returns the response to a GET request with these `Accept` headers.
async fn negotiate(transports: &Negotiate, uri: &str, accept: &[&str]) -> Response<PushBody> {
    let headers: Vec<_> = accept.iter().map(|value| ("accept", *value)).collect();
    let push = Push::new(stream::iter(["event"]));
    transports
        .respond(&mut get_request_head(uri, &headers), push)
        .await
}

/// Returns the media type of the response, or `None` if its status is 406.
async fn negotiated_content_type(
    transports: &Negotiate,
    uri: &str,
    accept: &[&str],
) -> Option<String> {
    let response = negotiate(transports, uri, accept).await;
    assert_eq!(response.headers()["vary"], "Accept");
    if response.status() == StatusCode::NOT_ACCEPTABLE {
        return None;
    }
    assert_eq!(response.status(), 200);
    let value = response.headers()["content-type"].to_str().unwrap();
    Some(value.split(';').next().unwrap().to_owned())
}

#[tokio::test]
async fn accept_ranks_by_quality_then_precision_then_order() {
    let all = Negotiate::new();
    for (accept, expected) in [
        (vec![], "text/event-stream"),
        (vec!["*/*"], "text/event-stream"),
        (vec!["text/event-stream"], "text/event-stream"),
        (vec!["application/x-ndjson"], "application/x-ndjson"),
        (vec!["application/json-seq"], "application/json-seq"),
        (vec!["multipart/mixed"], "multipart/mixed"),
        (vec!["multipart/*"], "multipart/mixed"),
        (vec!["application/*"], "application/x-ndjson"),
        (
            vec!["text/event-stream;q=0.5, application/jsonl"],
            "application/jsonl",
        ),
        (
            vec!["application/json-seq;q=0.9", "application/x-ndjson;q=0.8"],
            "application/json-seq",
        ),
        (vec!["*/*, application/x-ndjson"], "application/x-ndjson"),
        (
            vec!["*/*;q=0.1, text/event-stream;q=0"],
            "application/x-ndjson",
        ),
        (
            vec!["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"],
            "text/event-stream",
        ),
        (vec!["garbage"], "text/event-stream"),
    ] {
        let media_type = negotiated_content_type(&all, "/", &accept).await;
        assert_eq!(media_type.as_deref(), Some(expected), "{accept:?}");
    }
}

/// The rows of the table of requests and transports in `docs/clients.md`: the method, the `Accept` header (empty if there is none), and
/// the response of a source for many clients and of a source for one client, as a status or a media type.
fn rows_of_documented_table() -> Vec<[&'static str; 4]> {
    let table = include_str!("../docs/clients.md")
        .split_once("\n| method |")
        .expect("the table")
        .1;
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split('|');
        std::array::from_fn(|_| cells.next().unwrap().trim().trim_matches('`'))
    })
    .collect()
}

#[tokio::test]
async fn documented_transports_answer() {
    let channel = Channel::builder().start(StartPosition::Oldest).build();
    channel.publish(Event::text("event")).unwrap();
    let resumable = Resumable::new();
    let rows = rows_of_documented_table();
    assert!(rows.len() > 20, "{rows:?}");
    for [method, accept, for_many, for_one] in rows {
        let pushes = [
            (Push::new(channel.clone()), for_many),
            (Push::new(stream::iter(["event"])), for_one),
            (Push::new(resumable.wrap(stream::iter(["event"]))), for_one),
        ];
        for (index, (push, expected)) in pushes.into_iter().enumerate() {
            let header = (!accept.is_empty()).then_some(("accept", accept));
            let request = empty_request(method, "/", header.as_slice());
            let mut head = request.into_parts().0;
            let response = Negotiate::new().respond(&mut head, push).await;
            let status = response.status();
            let answer = match status {
                StatusCode::OK => response.headers()["content-type"].to_str().unwrap(),
                _ => status.as_str(),
            };
            let answer = answer.split(';').next().unwrap();
            assert_eq!(answer, expected, "{method} {accept:?}, source {index}");
        }
    }
}

#[tokio::test]
async fn polls_can_be_asked_for_by_name() {
    for method in ["GET", "POST", "QUERY"] {
        let uri = "/?transport=long-poll";
        let mut head = empty_request(method, uri, &[]).into_parts().0;
        let push = Push::new(stream::iter(["event"]));
        let response = Negotiate::new().respond(&mut head, push).await;
        assert_eq!(response.headers()["content-type"], "application/json");
    }
    // A live read of Durable Streams.
    let mut head = get_request_head("/?offset=-1&live=long-poll", &[]);
    let push = Push::new(stream::iter(["event"]));
    let response = Negotiate::new().respond(&mut head, push).await;
    assert!(response.headers().contains_key("stream-next-offset"));
}

#[tokio::test]
async fn set_that_only_polls_answers_every_request() {
    let json = ("accept", "application/json");
    let polls = Negotiate::only(LongPoll::new());
    for (method, headers) in [("POST", vec![json]), ("GET", vec![json]), ("POST", vec![])] {
        let mut head = empty_request(method, "/", &headers).into_parts().0;
        let push = Push::new(stream::iter(["event"]));
        let response = polls.respond(&mut head, push).await;
        assert_eq!(response.headers()["content-type"], "application/json");
    }
}

/// A guard around a transport of a set does not change which transport answers.
#[tokio::test]
async fn guarded_poll_does_not_win_a_post() {
    let polls = Guard::new().wrap(LongPoll::new());
    let set = Negotiate::only(polls).add_transport(Chunked::default());
    for (accept, expected) in [
        ("application/json", "application/x-ndjson"),
        ("*/*", "application/x-ndjson"),
        (
            "application/json, application/x-ndjson;q=0.1",
            "application/x-ndjson",
        ),
    ] {
        let request = empty_request("POST", "/", &[("accept", accept)]);
        let mut head = request.into_parts().0;
        let push = Push::new(stream::iter(["event"]));
        let response = set.respond(&mut head, push).await;
        assert_eq!(response.headers()["content-type"], expected, "{accept}");
    }
}

#[tokio::test]
async fn first_transport_is_default() {
    let ndjson_first = Negotiate::only(Chunked::default()).add_transport(Sse::new());
    for accept in [&[][..], &["*/*"], &["text/*;q=0.5, */*"]] {
        let media_type = negotiated_content_type(&ndjson_first, "/", accept).await;
        assert_eq!(media_type.as_deref(), Some("application/x-ndjson"));
    }
}

#[tokio::test]
async fn query_parameter_overrides_accept() {
    let all = Negotiate::new()
        .add_transport(Chunked::new(Raw::new()))
        .add_transport(Chunked::new(Multipart::replace()));
    for (name, expected) in [
        ("sse", "text/event-stream"),
        ("ndjson", "application/x-ndjson"),
        ("json-seq", "application/json-seq"),
        ("multipart", "multipart/mixed"),
        ("multipart-replace", "multipart/x-mixed-replace"),
        ("raw", "text/plain"),
        ("", "text/event-stream"),
    ] {
        let uri = format!("/?a=b&transport={name}");
        let media_type = negotiated_content_type(&all, &uri, &["text/event-stream"]).await;
        assert_eq!(media_type.as_deref(), Some(expected), "{uri}");
    }
    assert_eq!(
        negotiated_content_type(&all, "/?transport=carrier-pigeon", &[]).await,
        None
    );

    let renamed = Negotiate::new().query_parameter("via");
    let media_type = negotiated_content_type(&renamed, "/?transport=x&via=ndjson", &[]).await;
    assert_eq!(media_type.as_deref(), Some("application/x-ndjson"));
}

#[tokio::test]
async fn unacceptable_request_gets_406_with_offers() {
    let all = Negotiate::new();
    for accept in ["text/html", "text/event-stream;q=0", "image/*, text/html"] {
        let response = negotiate(&all, "/", &[accept]).await;
        assert_eq!(response.status(), 406);
        assert_eq!(response.headers()["vary"], "Accept");
        let message = body_text(response.into_body()).await;
        for offered in [
            "text/event-stream  (?transport=sse)",
            "application/json-lines",
            "?transport=multipart)",
        ] {
            assert!(message.contains(offered), "{message}");
        }
    }
}

#[tokio::test]
async fn transport_of_same_name_replaces_first() {
    let with_retry =
        Negotiate::new().add_transport(Sse::new().retry(std::time::Duration::from_secs(1)));
    let body = body_text(negotiate(&with_retry, "/", &[]).await.into_body()).await;
    assert!(
        body.starts_with("retry: 1000\n"),
        "the replacement must stay the first of the set"
    );
}

#[tokio::test]
async fn single_transport_ignores_accept() {
    for accept in ["text/html", "text/event-stream;q=0", "application/json"] {
        let push = Push::new(stream::iter(["event"]));
        let response = Sse::new()
            .respond(&mut get_request_head("/", &[("accept", accept)]), push)
            .await;
        assert_eq!(response.status(), 200);
        let content_type = &response.headers()["content-type"];
        assert_eq!(content_type, "text/event-stream; charset=utf-8");
        assert!(!response.headers().contains_key("vary"));
    }
}

#[tokio::test]
async fn streams_forbid_caching_transforms_and_sniffing() {
    for name in ["sse", "ndjson", "json-seq", "multipart"] {
        let response = negotiate(&Negotiate::new(), &format!("/?transport={name}"), &[]).await;
        let headers = response.headers();
        assert_eq!(headers["cache-control"], "no-cache, no-transform");
        assert_eq!(headers["x-accel-buffering"], "no");
        assert_eq!(headers["incremental"], "?1");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        for absent in [
            "connection",
            "keep-alive",
            "transfer-encoding",
            "content-length",
        ] {
            assert!(!headers.contains_key(absent), "{absent}");
        }
    }
}

#[tokio::test]
async fn incremental_header_can_be_left_out() {
    let transports: [(Arc<dyn Transport>, _, _); 7] = [
        (Arc::new(Sse::new()), "/", true),
        (Arc::new(Sse::new().incremental(false)), "/", false),
        (Arc::new(Chunked::default().incremental(false)), "/", false),
        (Arc::new(LongPoll::new()), "/?offset=-1&live=sse", true),
        (
            Arc::new(LongPoll::new().incremental(false)),
            "/?offset=-1&live=sse",
            false,
        ),
        (Arc::new(LongPoll::new()), "/", false),
        (Arc::new(LongPoll::new()), "/?offset=-1", false),
    ];
    for (transport, uri, is_incremental) in transports {
        let push = Push::new(stream::iter(["event"]));
        let response = transport
            .respond(&mut get_request_head(uri, &[]), push)
            .await;
        let header = response.headers().get("incremental");
        let expected = is_incremental.then_some("?1");
        assert_eq!(
            header.map(|value| value.to_str().unwrap()),
            expected,
            "{transport:?} {uri}"
        );
    }
}

#[tokio::test]
async fn head_does_not_subscribe() {
    let never = tower_push::source::source_fn(|_| async {
        panic!("a HEAD request must not subscribe") as Result<stream::Empty<&str>, _>
    });
    for name in ["sse", "ndjson"] {
        let uri = format!("/?transport={name}");
        let mut head = empty_request("HEAD", &uri, &[]).into_parts().0;
        let response = Negotiate::new().respond(&mut head, Push::new(never)).await;
        let get_response = negotiate(&Negotiate::new(), &uri, &[]).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers(), get_response.headers());
        assert_eq!(body_text(response.into_body()).await, "");
    }
}

#[tokio::test]
async fn unacceptable_head_has_no_body() {
    let mut head = empty_request("HEAD", "/", &[("accept", "text/html")])
        .into_parts()
        .0;
    let push = Push::new(stream::iter(["event"]));
    let response = Negotiate::new().respond(&mut head, push).await;
    assert_eq!(response.status(), 406);
    assert_eq!(body_text(response.into_body()).await, "");
}

#[tokio::test]
async fn transports_of_one_format_have_distinct_names() {
    let csv = Chunked::new(Raw::new().media_type("text/csv"));
    let tabs =
        Chunked::new(Raw::new().media_type("text/tab-separated-values")).transport_name("tabs");
    let both = Negotiate::only(csv).add_transport(tabs);
    for (uri, accept, expected) in [
        ("/", "text/csv", "text/csv"),
        (
            "/",
            "text/tab-separated-values",
            "text/tab-separated-values",
        ),
        ("/?transport=tabs", "*/*", "text/tab-separated-values"),
    ] {
        let media_type = negotiated_content_type(&both, uri, &[accept]).await;
        assert_eq!(media_type.as_deref(), Some(expected));
    }
}

#[tokio::test]
async fn format_with_several_types_sets_vary() {
    let push = || Push::new(stream::iter(["event"]));
    let response = Chunked::default()
        .respond(&mut get_request_head("/", &[]), push())
        .await;
    assert_eq!(response.headers()["vary"], "Accept");
    let negotiated = negotiate(&Negotiate::new(), "/?transport=ndjson", &[]).await;
    assert_eq!(negotiated.headers().get_all("vary").iter().count(), 1);
}
