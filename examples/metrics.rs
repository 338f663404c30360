//! What to watch of a server that pushes, as Prometheus reads it: the counts of its [`Guard`], how long streams are open, which an
//! [`Observer`] hears, and the counters of its sources.
//!
//! ```text
//! cargo run --example metrics
//! ```
//! prints its address. A few streams, and what is known of them:
//! ```text
//! curl -N http://127.0.0.1:3000/ticks
//! curl -N http://127.0.0.1:3000/countdown          # the client's own: parked for a while when it goes away
//! curl 'http://127.0.0.1:3000/ticks?transport=long-poll'
//! curl http://127.0.0.1:3000/metrics
//! ```
//! Ctrl-C ends the streams first and then the server. Another address, and how many streams there may be:
//! `cargo run --example metrics 0.0.0.0:8080 50000`.
//!
//! In production `/metrics` is on a port of its own, which the world does not see.

use std::{
    collections::BTreeMap,
    env,
    future::IntoFuture,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::header::CONTENT_TYPE,
    response::IntoResponse,
    routing::{any, get},
};
use tokio::{
    net::TcpListener,
    time::{interval, timeout},
};
use tokio_stream::{StreamExt, wrappers::IntervalStream};
use tower_push::{
    BoxError, Channel, Drain, Error, Event, Guard, Push, Resumable,
    guard::{Admission, CloseReason, DrainPlan, Observer, RefusalReason, StreamInfo},
    layer::TransportLayer,
    transport::{LongPoll, Negotiate},
};
use tower_push_examples::exposition::{Exposition, Histogram, MEDIA_TYPE};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = env::args().skip(1);
    let address = arguments.next();
    let most = arguments.next().as_deref().unwrap_or("10000").parse()?;

    let drain = Drain::new();
    let durations = Durations::default();
    let guard = Guard::builder()
        .drain(&drain)
        .admission(&Admission::builder().max_streams(most).build())
        .observer(durations.clone())
        .build();
    let resumable = Resumable::new();
    // What long-polling parks is counted with the rest.
    let long_poll = LongPoll::new().resumable(resumable.clone());
    let transports = guard.wrap(Negotiate::new().add_transport(long_poll));
    let channel = Channel::new();
    tokio::spawn(tick(channel.clone()));

    let app = Router::new()
        .route("/ticks", any(ticks))
        .route("/countdown", any(countdown))
        .route("/metrics", get(metrics))
        .with_state(Watched {
            drain: drain.clone(),
            guard,
            durations,
            channel,
            resumable,
        })
        .layer(TransportLayer::with(transports));
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:3000")).await?;
    println!("open http://{}", listener.local_addr()?);

    let stop = {
        let drain = drain.clone();
        async move {
            let _ = tokio::signal::ctrl_c().await;
            drain.start(DrainPlan::within(Duration::from_secs(5)));
        }
    };
    let server = axum::serve(listener, app).with_graceful_shutdown(stop);
    let server = tokio::spawn(server.into_future());
    let drained = drain.wait().await;
    println!(
        "{} streams were told to end, {} left, {} are cut",
        drained.notified, drained.left, drained.cut
    );
    let _ = timeout(Duration::from_secs(1), server).await;
    Ok(())
}

/// All that is watched.
#[derive(Clone)]
struct Watched {
    drain: Drain,
    guard: Guard,
    durations: Durations,
    channel: Channel,
    resumable: Resumable,
}

/// The same for everyone.
async fn ticks(State(watched): State<Watched>) -> Push {
    Push::new(watched.channel)
}

async fn tick(channel: Channel) -> Result<(), Error> {
    let mut seconds = interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        channel.publish(Event::text("tick"))?;
    }
}

/// Each client's own, which waits for it while it is away.
async fn countdown(State(watched): State<Watched>) -> Push {
    let seconds = IntervalStream::new(interval(Duration::from_secs(1)));
    let mut left = (0..=60).rev().map(|n| n.to_string());
    let count = seconds.map_while(move |_| left.next());
    Push::new(watched.resumable.wrap(count))
}

/// How long streams were open, by transport.
#[derive(Clone, Default)]
struct Durations(Arc<Mutex<BTreeMap<&'static str, Histogram<6>>>>);

/// In seconds: from what fails at once to what is open all day. A poll of the usual kind ends below 30.
const BOUNDS: [f64; 6] = [1.0, 10.0, 30.0, 300.0, 3600.0, 36_000.0];

impl Durations {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Histogram<6>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Durations {
    fn on_close(&self, stream: &StreamInfo, _: CloseReason, open_for: Duration) {
        let mut by_transport = self.lock();
        let histogram = by_transport.entry(stream.transport);
        let histogram = histogram.or_insert_with(|| Histogram::new(BOUNDS));
        histogram.add(open_for.as_secs_f64());
    }
}

async fn metrics(State(watched): State<Watched>) -> impl IntoResponse {
    let mut text = Exposition::default();
    watched.streams(&mut text);
    watched.sources(&mut text);
    ([(CONTENT_TYPE, MEDIA_TYPE)], text.into_text())
}

impl Watched {
    /// What the guard knows.
    fn streams(&self, text: &mut Exposition) {
        let counts = self.guard.counts();
        let mut open = text.gauge("push_streams_open", "Streams that are open now.");
        for (transport, streams) in &counts.open_by_transport {
            open.sample(&[("transport", transport)], streams);
        }
        text.counter("push_streams_opened_total", "Streams that were opened.")
            .sample(&[], counts.opened);
        let mut closed = text.counter("push_streams_closed_total", "Streams that are gone.");
        for reason in CloseReason::ALL {
            closed.sample(&[("reason", reason.name())], counts.closed(reason));
        }
        let mut refused = text.counter("push_requests_refused_total", "Requests without a stream.");
        for refusal in RefusalReason::ALL {
            refused.sample(&[("reason", refusal.name())], counts.refused(refusal));
        }
        text.counter("push_events_total", "Events, once for each stream.")
            .sample(&[], counts.events);
        text.counter("push_payload_bytes_total", "The payloads of those events.")
            .sample(&[], counts.bytes);
        text.counter("push_gaps_total", "Gaps that sources told of.")
            .sample(&[], counts.gaps);
        let mut durations = text.histogram("push_stream_seconds", "How long streams were open.");
        for (transport, histogram) in &*self.durations.lock() {
            durations.samples(&[("transport", transport)], histogram);
        }
        text.gauge("push_draining", "Whether the streams are being ended.")
            .sample(&[], u8::from(self.drain.has_started()));
    }

    /// What the sources know. With several, each has a label.
    fn sources(&self, text: &mut Exposition) {
        let (channel, counters) = (&self.channel, self.channel.counts());
        let name = &[("channel", "ticks")][..];
        text.gauge("push_channel_subscribers", "Who follows a channel now.")
            .sample(name, channel.subscriber_count());
        text.gauge("push_channel_log_events", "Events in its log.")
            .sample(name, channel.len());
        text.gauge("push_channel_log_bytes", "Bytes of those.")
            .sample(name, channel.byte_len());
        text.counter("push_channel_published_total", "Events published.")
            .sample(name, counters.published);
        let mut missed = text.counter(
            "push_channel_missed_total",
            "Events that a subscriber did not get, once for each.",
        );
        for (reason, events) in [
            ("expired", counters.missed_on_return),
            ("lagged", counters.lagged),
            ("conflated", counters.conflated),
        ] {
            missed.sample(&[name[0], ("reason", reason)], events);
        }

        let kept = self.resumable.counts();
        text.gauge("push_resumable_streams", "Streams that are kept now.")
            .sample(&[("state", "live")], kept.active)
            .sample(&[("state", "parked")], kept.parked);
        text.gauge("push_resumable_parked_bytes", "What the parked ones keep.")
            .sample(&[], kept.parked_bytes);
        text.counter("push_resumable_resumed_total", "Clients that found theirs.")
            .sample(&[], kept.resumed);
        text.counter("push_resumable_dropped_total", "Parked streams let go.")
            .sample(&[("reason", "expired")], kept.parked_too_long)
            .sample(&[("reason", "evicted")], kept.evicted);
    }
}
