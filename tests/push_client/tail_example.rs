//! The example `tail`, which prints a feed.

use std::time::Duration;

use futures_util::stream;
use testkit::{TestServer, example_process::ExampleProcess};
use tower_push::{
    Event, Item,
    source::{Rejection, Subscription, source_fn},
};
use tower_push_client::Transport;

use crate::support::TRANSPORTS;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tail_prints_each_event_on_one_line() {
    let source = source_fn(async |_: Subscription| {
        let price = Event::json(&21.5)?.with_id(1)?.with_type("price")?;
        let text = Event::text("two\nlines and a \"quote\"").with_id(2)?;
        let items = [Item::Event(price), Item::Event(text), Item::Finished];
        Ok::<_, Rejection>(stream::iter(items))
    });
    let server = TestServer::start(tower_push::service(source)).await;
    // The example has a client for HTTP/1.1.
    let transports = TRANSPORTS
        .into_iter()
        .filter(|t| *t != Transport::WebSocketHttp2);
    for transport in transports {
        let url = server.url("/");
        let printed = tokio::task::spawn_blocking(move || {
            let arguments = ["--transport", transport.name()];
            let mut example = ExampleProcess::start_at(&url, "tail", &arguments);
            example.wait_for_line("1\tprice\t-\t21.5");
            example.wait_for_line("2\t-\t-\ttwo\\nlines and a \"quote\"");
            while !example.has_ended() {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        printed
            .await
            .unwrap_or_else(|error| panic!("{transport}: {error}"));
    }
}
