//! One batch: what it holds, and when it is enough.

use std::{
    future::Future,
    ops::ControlFlow::{self, Break, Continue},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderMap, header};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    error::{BoxError, Error},
    event::{EventId, Gap, Item},
    source::retry_after,
    supervision::SupervisedStream,
    transport::{BatchEncoder, End, FrameBuffer},
};

/// How much a batch holds: it ends with the event that reaches a bound, so that there is always one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

/// How long to wait: for the first thing, and then for more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) first: Duration,
    pub(super) more: Duration,
}

/// A batch in the making: sans-io.
pub(super) struct Gathering {
    encoder: Box<dyn BatchEncoder>,
    batch: FrameBuffer,
    bounds: Bounds,
    events: usize,
    /// Something was written.
    has_content: bool,
    /// Where the client stands once it has the batch; the source's word, or else what the client came with.
    cursor: Option<EventId>,
    /// The source has told a cursor.
    has_moved: bool,
    /// What the client is told first if the source tells no cursor.
    lost: Option<Gap>,
    /// Came when the batch could hold no more.
    ahead: Option<Item>,
}

/// A batch.
#[derive(Debug)]
pub(super) struct Gathered {
    /// What the encoder made of it; of nothing, too.
    pub(super) body: Bytes,
    pub(super) has_content: bool,
    /// See [`Gathering::cursor`].
    pub(super) cursor: Option<EventId>,
    /// See [`Gathering::ahead`].
    ahead: Option<Item>,
    pub(super) rest: Rest,
    /// It has events, and the source told no cursor with them.
    is_untold: bool,
    /// The end was not the source's.
    is_cut_short: bool,
}

/// What comes behind a batch.
#[derive(Debug)]
pub(super) enum Rest {
    /// Nothing, for now.
    Nothing,
    /// Nothing, for now: the source's stream has ended.
    Ended,
    /// There is more at once.
    More,
    /// Nothing, for now, and the client is not to be kept waiting: it should come back, after this time where there is one.
    Later(Option<Duration>),
    /// Nothing for ever.
    Finished,
    /// The source, or the format, has failed. What came before it is whole.
    Failed(BoxError),
}

impl Gathered {
    /// Whether the client could come back to where it was before only, and what follows would be lost.
    pub(super) fn leaves_no_cursor(&self) -> bool {
        match self.rest {
            Rest::Finished => false,
            Rest::Later(_) if self.is_cut_short => self.is_untold || self.cursor.is_none(),
            Rest::Ended | Rest::Later(_) | Rest::Failed(_) => self.is_untold,
            Rest::Nothing | Rest::More => self.is_untold || self.cursor.is_none(),
        }
    }

    /// What the stream has yielded, and the batch does not hold.
    pub(super) fn take_ahead(&mut self) -> Option<Result<Item, BoxError>> {
        match std::mem::replace(&mut self.rest, Rest::More) {
            Rest::Failed(error) => Some(Err(error)),
            rest => {
                self.rest = rest;
                self.ahead.take().map(Ok)
            }
        }
    }
}

impl Rest {
    /// Whether there is nothing that the batch does not hold.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Nothing | Self::Ended | Self::Finished)
    }

    pub(super) fn is_finished(&self) -> bool {
        matches!(self, Self::Finished)
    }

    /// Tells the client when to come back, in whole seconds, rounded up, where there is a hint.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        if let Self::Later(Some(retry)) = self {
            headers.insert(header::RETRY_AFTER, retry_after(*retry));
        }
    }
}

impl Gathering {
    pub(super) fn new(
        mut encoder: Box<dyn BatchEncoder>,
        bounds: Bounds,
        cursor: Option<EventId>,
    ) -> Self {
        let mut batch = FrameBuffer::default();
        encoder.begin_batch(&mut batch);
        Self {
            encoder,
            batch,
            bounds,
            events: 0,
            has_content: false,
            cursor,
            has_moved: false,
            lost: None,
            ahead: None,
        }
    }

    /// The same for a client that has lost its place, unless the source knows it: who tells no cursor does not.
    pub(super) fn behind(self, lost: Option<Gap>) -> Self {
        Self { lost, ..self }
    }

    /// What these items yield next, or their end. Breaks when the batch cannot hold more.
    pub(super) fn take_of<S>(
        &mut self,
        items: &SupervisedStream<S>,
        next: Option<Result<Item, BoxError>>,
    ) -> ControlFlow<Rest> {
        let is_item = matches!(next, Some(Ok(_)));
        let taken = self.take(next);
        if let (true, Break(Rest::Failed(error))) = (is_item, &taken) {
            items.report_send_error(error);
        }
        taken
    }

    pub(super) fn take(&mut self, next: Option<Result<Item, BoxError>>) -> ControlFlow<Rest> {
        let item = match next {
            None => return Break(Rest::Ended),
            Some(Err(error)) => return Break(Rest::Failed(error)),
            Some(Ok(item)) => item,
        };
        match item.end() {
            Some(End { finished: true, .. }) => return Break(Rest::Finished),
            Some(End { retry, .. }) => return Break(Rest::Later(retry)),
            None => {}
        }
        if item.is_content() {
            if self.is_full() {
                self.ahead = Some(item);
                return Break(Rest::More);
            }
            if let Err(error) = self.content(&item) {
                return Break(Rest::Failed(error.into()));
            }
            self.has_content = true;
        }
        self.moves_to(item.cursor());
        Continue(())
    }

    /// Writes an event or a gap.
    fn content(&mut self, item: &Item) -> Result<(), Error> {
        if item.event().is_some() {
            let is_told = self.has_moved || item.cursor().is_some();
            if let Some(gap) = self.lost.take().filter(|_| !is_told) {
                self.encoder.gap(&gap, &mut self.batch)?;
            }
        }
        self.encoder.item(item, &mut self.batch)?;
        self.events += usize::from(item.event().is_some());
        Ok(())
    }

    fn moves_to(&mut self, cursor: Option<&EventId>) {
        if let Some(id) = cursor {
            self.cursor = Some(id.clone());
            self.has_moved = true;
        }
    }

    pub(super) fn is_full(&self) -> bool {
        // What a format opens with is no content.
        let is_large = self.has_content && self.batch.len() >= self.bounds.bytes;
        is_large || self.events >= self.bounds.events
    }

    /// Whether it is worth an answer. A gap is not, as long as the client would come back with the same cursor and get it again
    /// at once.
    pub(super) fn is_answer(&self) -> bool {
        self.events > 0 || (self.has_content && self.has_moved)
    }

    pub(super) fn finish(mut self, rest: Rest) -> Gathered {
        let end = rest.is_finished().then_some(End::FINISHED);
        self.encoder.end_batch(end, &mut self.batch);
        Gathered {
            body: self.batch.into_bytes(),
            has_content: self.has_content,
            cursor: self.cursor,
            ahead: self.ahead,
            rest,
            is_untold: self.events > 0 && !self.has_moved,
            is_cut_short: false,
        }
    }
}

pin_project! {
    /// Waits for the first thing that is ready, then takes what is ready with it. Dropped, it leaves nothing behind.
    pub(super) struct Gather<'a, S> {
        items: &'a mut SupervisedStream<S>,
        // Until the batch is done.
        gathering: Option<Gathering>,
        waiting: Waiting,
        // The stream has ended with nothing to answer: at once, the client would be back at once.
        is_over: bool,
        deadline: Instant,
        more: Duration,
        // Made when it is first needed: what is ready at once needs none.
        #[pin]
        sleep: Option<Sleep>,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    ForTheFirst,
    ForMore,
}

/// Items asked for in one go, so that a source that never pauses lets its neighbours run.
const ITEMS: usize = 1024;

/// Longer than any connection; and any clock can add it.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

impl<'a, S> Gather<'a, S> {
    pub(super) fn new(
        items: &'a mut SupervisedStream<S>,
        gathering: Gathering,
        patience: Patience,
    ) -> Self {
        Self {
            items,
            gathering: Some(gathering),
            waiting: Waiting::ForTheFirst,
            is_over: false,
            deadline: Instant::now() + patience.first.min(LONGEST),
            more: patience.more.min(LONGEST),
            sleep: None,
        }
    }
}

impl<S> Gather<'_, S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    /// Ready with what comes behind the batch once that is done.
    fn poll_rest(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Rest> {
        let mut this = self.project();
        let Some(gathering) = this.gathering else {
            return Poll::Pending;
        };
        for _ in 0..ITEMS {
            let next = if gathering.is_full() {
                this.items.poll_next_uncounted(cx)
            } else {
                Pin::new(&mut *this.items).poll_next(cx)
            };
            let nothing = if *this.is_over {
                Rest::Ended
            } else {
                Rest::Nothing
            };
            match next {
                Poll::Ready(next) => match gathering.take_of(this.items, next) {
                    Break(Rest::Ended) if !gathering.is_answer() => *this.is_over = true,
                    Break(rest) => return Poll::Ready(rest),
                    Continue(()) => {}
                },
                Poll::Pending if gathering.is_full() => return Poll::Ready(nothing),
                Poll::Pending => {
                    if gathering.is_answer() && *this.waiting == Waiting::ForTheFirst {
                        *this.waiting = Waiting::ForMore;
                        *this.deadline = Instant::now() + *this.more;
                        this.sleep.set(None);
                    }
                    if *this.deadline > Instant::now() {
                        if this.sleep.is_none() {
                            this.sleep.set(Some(sleep_until(*this.deadline)));
                        }
                        if let Some(sleep) = this.sleep.as_pin_mut() {
                            ready!(sleep.poll(cx));
                        }
                    }
                    return Poll::Ready(nothing);
                }
            }
        }
        if *this.deadline <= Instant::now() {
            return Poll::Ready(Rest::More);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S> Future for Gather<'_, S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    type Output = Gathered;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Gathered> {
        let rest = ready!(self.as_mut().poll_rest(cx));
        let this = self.project();
        match this.gathering.take() {
            Some(gathering) => Poll::Ready(Gathered {
                is_cut_short: this.items.has_ended_early(),
                ..gathering.finish(rest)
            }),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use futures_util::{StreamExt, stream};

    use super::*;
    use crate::{
        event::{Event, GapReason},
        format::{Format, JsonArray},
    };

    const BOUNDS: Bounds = Bounds {
        events: 3,
        bytes: 1000,
    };

    fn gathering(bounds: Bounds) -> Gathering {
        let (_, encoder) = JsonArray::new().batch_encoder("application/json");
        Gathering::new(encoder, bounds, None)
    }

    fn event(id: u64) -> Item {
        Item::Event(Event::text("x").with_id(id).unwrap())
    }

    fn cursor(id: u64) -> Item {
        Item::Cursor(id.into())
    }

    /// What is ready at once.
    fn gathered(items: Vec<Item>) -> Gathered {
        let items = stream::iter(items).map(Ok).chain(stream::pending());
        let patience = Patience {
            first: Duration::ZERO,
            more: Duration::ZERO,
        };
        let mut items = SupervisedStream::unsupervised(items);
        let gather = std::pin::pin!(Gather::new(&mut items, gathering(BOUNDS), patience));
        match gather.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(gathered) => gathered,
            Poll::Pending => panic!("it should not wait"),
        }
    }

    fn at(gathered: &Gathered) -> Option<&str> {
        gathered.cursor.as_ref().map(EventId::as_str)
    }

    #[test]
    fn everything_that_is_ready_is_one_batch() {
        let batch = gathered(vec![cursor(4), event(5), event(6)]);
        assert_eq!(
            batch.body,
            "[{\"id\":\"5\",\"data\":\"x\"},\n{\"id\":\"6\",\"data\":\"x\"}]\n"
        );
        assert_eq!(at(&batch), Some("6"));
        assert!(matches!(batch.rest, Rest::Nothing));
    }

    #[test]
    fn a_batch_has_a_bound_and_knows_whether_there_is_more() {
        let batch = gathered((1..=4).map(event).collect());
        assert_eq!(at(&batch), Some("3"));
        assert!(matches!(batch.rest, Rest::More));
        let batch = gathered((1..=3).map(event).collect());
        assert_eq!(at(&batch), Some("3"));
        assert!(matches!(batch.rest, Rest::Nothing));
        let batch = gathered(vec![event(1), event(2), event(3), Item::Finished]);
        assert!(matches!(batch.rest, Rest::Finished));
    }

    #[test]
    fn one_event_is_held_whatever_its_size() {
        let mut gathering = gathering(Bounds {
            events: 3,
            bytes: 1,
        });
        assert!(gathering.take(Some(Ok(event(1)))).is_continue());
        assert!(gathering.is_full());
        assert!(matches!(
            gathering.take(Some(Ok(event(2)))),
            Break(Rest::More)
        ));
        assert_eq!(at(&gathering.finish(Rest::More)), Some("1"));
    }

    #[test]
    fn a_cursor_moves_without_content() {
        let batch = gathered(vec![cursor(1), cursor(2)]);
        assert!(!batch.has_content);
        assert_eq!((at(&batch), &batch.body[..]), (Some("2"), &b"[]\n"[..]));
    }

    #[test]
    fn a_gap_is_an_answer_once_there_is_a_cursor_behind_it() {
        let gap = Gap::new(GapReason::Epoch);
        let mut gathering = gathering(BOUNDS);
        let _ = gathering.take(Some(Ok(Item::Gap(gap.clone()))));
        assert!(!gathering.is_answer());
        let _ = gathering.take(Some(Ok(cursor(7))));
        assert!(gathering.is_answer());

        let batch = gathered(vec![Item::Gap(gap.resumed(9.into()))]);
        assert!(batch.has_content);
        assert_eq!(at(&batch), Some("9"));
    }

    #[test]
    fn a_failure_keeps_what_came_before_it() {
        let mut gathering = gathering(BOUNDS);
        assert!(gathering.take(Some(Ok(event(1)))).is_continue());
        let Break(rest) = gathering.take(Some(Err("broken".into()))) else {
            panic!("it goes on");
        };
        let batch = gathering.finish(rest);
        assert_eq!(batch.body, "[{\"id\":\"1\",\"data\":\"x\"}]\n");
        assert!(matches!(batch.rest, Rest::Failed(_)));
    }

    #[test]
    fn the_end_is_a_record_only_where_it_is_for_ever() {
        let end = r#"{"id":"~finished","end":{"finished":true}}"#;
        let body = gathered(vec![Item::Finished]).body;
        assert_eq!(body, format!("[{end}]\n"));
        let body = gathered(vec![event(1), Item::Finished]).body;
        assert!(body.ends_with(format!(",\n{end}]\n").as_bytes()));
        assert_eq!(gathering(BOUNDS).finish(Rest::Nothing).body, "[]\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_never_pauses_is_left_at_the_deadline() {
        let items = stream::repeat_with(|| Ok(cursor(1)));
        let mut items = SupervisedStream::unsupervised(items);
        let patience = Patience {
            first: Duration::from_secs(5),
            more: Duration::ZERO,
        };
        let clock = async {
            tokio::time::advance(Duration::from_secs(6)).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            batch = Gather::new(&mut items, gathering(BOUNDS), patience) => {
                assert!(matches!(batch.rest, Rest::More));
            }
            () = clock => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_opens_with_the_first_event() {
        let seconds = |n| tokio::time::sleep(Duration::from_secs(n));
        let patience = Patience {
            first: Duration::from_secs(25),
            more: Duration::from_secs(2),
        };
        let items = stream::unfold(0, |n| async move {
            seconds([10, 1, 2][n]).await;
            Some((Ok(event(n as u64)), n + 1))
        });
        let began = Instant::now();
        let mut items = SupervisedStream::unsupervised(Box::pin(items));
        let batch = Gather::new(&mut items, gathering(BOUNDS), patience).await;
        assert_eq!(began.elapsed().as_secs(), 12);
        assert_eq!(at(&batch), Some("1"));
    }
}
