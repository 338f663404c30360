//! A count of the streams that are alive.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::Stream;

use crate::wait_until;

/// A counter of live streams: those that were wrapped and are not dropped yet. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct LiveCounter(Arc<AtomicUsize>);

impl LiveCounter {
    /// Returns the number of live streams.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// Wraps `stream`. The counter counts the stream until the stream is dropped.
    pub fn wrap<S>(&self, stream: S) -> CountedStream<S> {
        self.0.fetch_add(1, Ordering::SeqCst);
        CountedStream {
            stream: Box::pin(stream),
            counter: self.clone(),
        }
    }

    /// Waits until the number of live streams is `expected`. Panics after [`TEST_TIMEOUT`](crate::TEST_TIMEOUT).
    pub async fn wait_for(&self, expected: usize) {
        let describe = || format!("{} instead of {expected}", self.get());
        wait_until(|| self.get() == expected, describe).await;
    }
}

/// A stream that a [`LiveCounter`] counts until it is dropped.
#[derive(Debug)]
pub struct CountedStream<S> {
    stream: Pin<Box<S>>,
    counter: LiveCounter,
}

impl<S: Stream> Stream for CountedStream<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.stream.as_mut().poll_next(cx)
    }
}

impl<S> Drop for CountedStream<S> {
    fn drop(&mut self) {
        self.counter.0.fetch_sub(1, Ordering::SeqCst);
    }
}
