//! Memory stays within its bounds, counted byte by byte. One test only: others in the process would be counted too.

use std::alloc::System;

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http_body::Body;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use testkit::get_request_head;
use tower_push::{
    Channel, Push, PushBody,
    source::StartPosition,
    transport::{Sse, Transport},
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const KIB: usize = 1024;

fn held(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change
        .bytes_allocated
        .saturating_sub(change.bytes_deallocated)
}

#[tokio::test]
async fn a_channel_stays_within_its_bounds() {
    a_publisher_faster_than_everyone_stays_within_the_bounds_of_the_log().await;
    readers_that_stall_midway_hold_a_frame_each().await;
    tiny_events_cost_what_is_around_them().await;
}

async fn open(channel: Channel) -> PushBody {
    let mut body = Sse::new()
        .respond(&mut get_request_head("/", &[]), Push::new(channel))
        .await
        .into_body();
    next(&mut body).await.expect("the first byte at once");
    body
}

async fn open_many(channel: &Channel, clients: usize) -> Vec<PushBody> {
    let opening: FuturesUnordered<_> = (0..clients).map(|_| open(channel.clone())).collect();
    opening.collect().await
}

/// A publisher faster than everyone, a thousand clients that stopped reading after the first frame, and one that reads.
async fn a_publisher_faster_than_everyone_stays_within_the_bounds_of_the_log() {
    const LOG: usize = 256 * KIB;
    const STALLED: usize = 1000;
    let channel = Channel::builder()
        .max_events(usize::MAX)
        .max_bytes(LOG)
        .build();
    let mut stalled = open_many(&channel, STALLED).await;
    let mut reading = open(channel.clone()).await;

    let region = Region::new(ALLOCATOR);
    let event = "x".repeat(KIB);
    for n in 0..20_000 {
        channel.publish(event.as_str()).unwrap();
        if n % 100 == 0 {
            next(&mut reading).await.expect("more to read");
        }
        // The log, and what the one transport in use wrote for it; a quarter for all that is around them.
        let bound = 2 * LOG + LOG / 2;
        let held = held(&region);
        assert!(held < bound, "{held} bytes held, after {n} events");
    }

    // Whoever reads again is told of the gap, and has the rest.
    let frame = next(stalled.first_mut().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&frame);
    assert!(text.starts_with("event: gap\n"), "{text}");
    assert_eq!(channel.subscriber_count(), STALLED + 1);
    drop((stalled, reading));
    assert_eq!(channel.subscriber_count(), 0);
    assert!(
        channel
            .subscribe_from(StartPosition::Oldest)
            .next()
            .await
            .is_some()
    );
}

/// Clients that read a frame now and then, each at another place of the log, and stop in the middle of it.
async fn readers_that_stall_midway_hold_a_frame_each() {
    const LOG: usize = 256 * KIB;
    const STALLED: usize = 100;
    /// Events taken from the log and not yet sent: eight at the most.
    const TAKEN: usize = 8;
    let channel = Channel::builder()
        .max_events(usize::MAX)
        .max_bytes(LOG)
        .build();
    let mut stalled = open_many(&channel, STALLED).await;

    let region = Region::new(ALLOCATOR);
    let event = "x".repeat(KIB);
    for n in 0..20_000 {
        channel.publish(event.as_str()).unwrap();
        if n % 70 == 69 {
            let reader = (n / 70) % STALLED;
            next(&mut stalled[reader]).await.expect("more to read");
        }
        // Each of those events and what was written for it, and the quarter as above.
        let bound = 2 * (LOG + STALLED * TAKEN * KIB) * 5 / 4;
        let held = held(&region);
        assert!(held < bound, "{held} bytes held, after {n} events");
    }
}

/// Of small events their number is the bound, and the document says what they cost.
async fn tiny_events_cost_what_is_around_them() {
    const EVENTS: usize = 4096;
    // As told at `ChannelBuilder::bytes`: alone, and with what one transport writes.
    for (readers, around) in [(0, 300), (1, 400)] {
        let channel = Channel::builder().max_events(EVENTS).build();
        let mut reading = open_many(&channel, readers).await;

        let region = Region::new(ALLOCATOR);
        for n in 0..20_000 {
            channel.publish("x").unwrap();
            for reader in reading.iter_mut().filter(|_| n % 100 == 0) {
                next(reader).await.expect("more to read");
            }
            let held = held(&region);
            let bound = EVENTS * around;
            assert!(held < bound, "{held} bytes held, after {n} events");
        }
    }
}

async fn next<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> Option<Bytes> {
    use http_body_util::BodyExt;
    let frame = body.frame().await?;
    frame.ok()?.into_data().ok()
}
