//! The metrics of a server that pushes events, for Prometheus: the counts of its [`Guard`], the durations of streams, which an [`Observer`]
//! measures, and the counters of its sources.
//!
//! ```text
//! cargo run --example metrics
//! ```
//! The program prints its address. These commands open a few streams and read the metrics:
//! ```text
//! curl -N http://127.0.0.1:3000/ticks
//! curl -N http://127.0.0.1:3000/countdown          # a stream of its own for each client, parked while the client is away
//! curl 'http://127.0.0.1:3000/ticks?transport=long-poll'
//! curl http://127.0.0.1:3000/metrics
//! ```
//! Ctrl-C ends the streams first and then the server. Another address, and a limit of open streams:
//! `cargo run --example metrics 0.0.0.0:8080 50000`.
//!
//! In production, serve `/metrics` on a port that is not public.

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
    serve::ListenerExt,
};
use tokio::{
    net::TcpListener,
    time::{interval, timeout},
};
use tokio_stream::{StreamExt, wrappers::IntervalStream};
use tower_push::{
    BoxError, Channel, Drain, Error, Event, Guard, Push, PushLayer, Resumable,
    guard::{Admission, CloseReason, DrainPlan, Observer, RefusalReason, StreamInfo},
    transport::{LongPoll, Negotiate},
};
use tower_push_examples::exposition::{Exposition, Histogram, MEDIA_TYPE};

/// What a browser shows at the address that the program prints.
const INDEX: &str = "Metrics: /metrics. Streams: /ticks and /countdown.\n";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = env::args().skip(1);
    let address = arguments.next();
    let max_streams = arguments.next().as_deref().unwrap_or("10000").parse()?;

    let drain = Drain::new();
    let durations = StreamDurations::default();
    let guard = Guard::builder()
        .drain(&drain)
        .admission(&Admission::builder().max_streams(max_streams).build())
        .observer(durations.clone())
        // The topic "orders/42" of a hub counts as "orders".
        .topic_labels(20, |topic| {
            topic.as_str().split('/').next().unwrap_or_default()
        })
        .build();
    let resumable = Resumable::new();
    // Long-polling parks its streams in the same `Resumable`, so they are counted with the others.
    let long_poll = LongPoll::new().resumable(resumable.clone());
    let layer = PushLayer::with(Negotiate::new().add_transport(long_poll)).guard(&guard);
    let channel = Channel::new();
    tokio::spawn(publish_ticks(channel.clone()));

    let app = Router::new()
        .route("/", get(|| async { INDEX }))
        .route("/ticks", any(ticks))
        .route("/countdown", any(countdown))
        .route("/metrics", get(metrics))
        .with_state(AppState {
            drain: drain.clone(),
            guard,
            durations,
            channel,
            resumable,
        })
        .layer(layer);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:3000")).await?;
    println!("open http://{}", listener.local_addr()?);
    // Without this option, TCP may hold an event back until the client has acknowledged the one before it.
    let listener = listener.tap_io(|socket| {
        let _ = socket.set_nodelay(true);
    });

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
        "{} streams were notified, {} left, {} were cut",
        drained.notified, drained.left, drained.cut
    );
    let _ = timeout(Duration::from_secs(1), server).await;
    Ok(())
}

/// Everything that has metrics.
#[derive(Clone)]
struct AppState {
    drain: Drain,
    guard: Guard,
    durations: StreamDurations,
    channel: Channel,
    resumable: Resumable,
}

/// Serves the same events to all clients.
async fn ticks(State(state): State<AppState>) -> Push {
    Push::new(state.channel)
}

/// Publishes an event every second.
async fn publish_ticks(channel: Channel) -> Result<(), Error> {
    let mut seconds = interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        channel.publish(Event::text("tick"))?;
    }
}

/// Serves each client a countdown of its own, which is parked while the client is away.
async fn countdown(State(state): State<AppState>) -> Push {
    let seconds = IntervalStream::new(interval(Duration::from_secs(1)));
    let mut left = (0..=60).rev().map(|n| n.to_string());
    let count = seconds.map_while(move |_| left.next());
    Push::new(state.resumable.wrap(count))
}

/// The durations of closed streams, by transport.
#[derive(Clone, Default)]
struct StreamDurations(Arc<Mutex<BTreeMap<&'static str, Histogram<6>>>>);

/// The upper bounds of the histogram's buckets, in seconds: from streams that fail at once to streams that are open all day. With the default
/// wait time a poll takes less than 30 seconds.
const BUCKET_BOUNDS: [f64; 6] = [1.0, 10.0, 30.0, 300.0, 3600.0, 36_000.0];

impl StreamDurations {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Histogram<6>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for StreamDurations {
    fn on_close(&self, stream: &StreamInfo, _: CloseReason, open_for: Duration) {
        let mut by_transport = self.lock();
        let histogram = by_transport.entry(stream.transport);
        let histogram = histogram.or_insert_with(|| Histogram::new(BUCKET_BOUNDS));
        histogram.add(open_for.as_secs_f64());
    }
}

async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    let mut text = Exposition::default();
    state.write_stream_metrics(&mut text);
    state.write_source_metrics(&mut text);
    ([(CONTENT_TYPE, MEDIA_TYPE)], text.into_text())
}

impl AppState {
    /// Writes the metrics of the guard.
    fn write_stream_metrics(&self, text: &mut Exposition) {
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
        let by_label = &counts.by_topic_label;
        let mut events = text.counter("push_topic_events_total", "Events of a hub's topics.");
        for (label, counts) in by_label {
            events.sample(&[("topic", label)], counts.events);
        }
        let mut gaps = text.counter("push_topic_gaps_total", "Gaps in a hub's topics.");
        for (label, counts) in by_label {
            gaps.sample(&[("topic", label)], counts.gaps);
        }
        let mut durations = text.histogram("push_stream_seconds", "How long streams were open.");
        for (transport, histogram) in &*self.durations.lock() {
            durations.samples(&[("transport", transport)], histogram);
        }
        text.gauge("push_draining", "Whether the streams are being ended.")
            .sample(&[], u8::from(self.drain.has_started()));
    }

    /// Writes the metrics of the sources. A server with several sources labels each of them.
    fn write_source_metrics(&self, text: &mut Exposition) {
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
            ("expired", counters.missed_on_resume),
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
