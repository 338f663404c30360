use std::{any::TypeId, fmt, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::{Encoding, Event, Item, keyed_cache::KeyedCache};
#[cfg(feature = "gzip")]
use crate::gzip::DeflatedBlock;

/// Successive events of one log, which a source hands out together.
///
/// All subscribers at the same position of a log get the same run. The bytes of the run in each [`RunEncoding`] are computed at most once and
/// shared by them all, as the bytes of an [`Event`] are. An event run is one `Arc`: cloning it increments a reference count.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use bytes::{Bytes, BytesMut};
/// use tower_push::event::{Encoding, Event, EventRun, Fields, RunEncoding};
///
/// struct PayloadEncoding;
/// impl Encoding for PayloadEncoding {
///     fn encode(fields: &Fields, out: &mut BytesMut) {
///         out.extend_from_slice(fields.payload.as_bytes());
///     }
/// }
///
/// // The second and the third event of a log. The first event is the history of the run.
/// let run = EventRun::new(2, [Event::text("a")], [Event::text("b"), Event::text("c")]);
/// let bytes: Bytes = run.encoded(RunEncoding::of::<PayloadEncoding>());
/// assert_eq!(bytes, "bc");
/// ```
#[derive(Clone)]
pub struct EventRun(Arc<SharedEventRun>);

/// The data that all clones of a run share.
struct SharedEventRun {
    /// The history, and then the events of the run.
    events: Box<[Event]>,
    history_len: usize,
    first_position: u64,
    /// The joined bytes of the events.
    joined_bytes: KeyedCache<RunEncodingKey, Bytes>,
    /// The compressed bytes of the events. The key says also whether the history is the dictionary.
    #[cfg(feature = "gzip")]
    deflated: KeyedCache<(RunEncodingKey, bool), DeflatedBlock>,
}

/// The key of a [`RunEncoding`] in a cache: the type that stands for the encoding, and its parameter.
pub(crate) type RunEncodingKey = (TypeId, u64);

/// A way to write the events of an [`EventRun`] one after the other. The bytes of each event depend on the event and the parameter alone.
#[derive(Clone, Copy)]
pub struct RunEncoding {
    key: RunEncodingKey,
    encoded: EncodedEventFn,
}

/// Returns the bytes of an event. The second argument is the parameter of the [`RunEncoding`].
type EncodedEventFn = for<'a> fn(&'a Event, u64) -> &'a Bytes;

impl RunEncoding {
    /// Returns the encoding that writes each event in the encoding `E`.
    pub fn of<E: Encoding>() -> Self {
        Self {
            key: (TypeId::of::<E>(), 0),
            encoded: |event, _| event.encoded_ref::<E>(),
        }
    }

    /// Returns the encoding that writes the bytes that `encoded` returns for each event and `parameter`, usually those of one of several
    /// [`Encoding`]s. `T` stands for `encoded` in the cache of a run: another function needs another type.
    pub fn with_parameter<T: 'static>(
        parameter: u64,
        encoded: for<'a> fn(&'a Event, u64) -> &'a Bytes,
    ) -> Self {
        Self {
            key: (TypeId::of::<T>(), parameter),
            encoded,
        }
    }

    /// Returns the key under which a cache holds the bytes in this encoding.
    #[cfg(feature = "gzip")]
    pub(crate) fn key(&self) -> RunEncodingKey {
        self.key
    }

    /// Returns the bytes of one event.
    pub(crate) fn encoded<'a>(&self, event: &'a Event) -> &'a Bytes {
        (self.encoded)(event, self.key.1)
    }
}

impl EventRun {
    /// Makes a run of `events`, of which the first is at `first_position` in its log. The positions in a log are consecutive, and begin at 1.
    ///
    /// `history` is events of the log that directly precede the run, with which the run can be compressed. `history` may be empty.
    pub fn new(
        first_position: u64,
        history: impl IntoIterator<Item = Event>,
        events: impl IntoIterator<Item = Event>,
    ) -> Self {
        let mut all: Vec<Event> = history.into_iter().collect();
        let history_len = all.len();
        all.extend(events);
        Self(Arc::new(SharedEventRun {
            events: all.into_boxed_slice(),
            history_len,
            first_position,
            joined_bytes: KeyedCache::default(),
            #[cfg(feature = "gzip")]
            deflated: KeyedCache::default(),
        }))
    }

    /// Returns the events, in the order of their log.
    #[inline]
    pub fn events(&self) -> &[Event] {
        &self.0.events[self.0.history_len..]
    }

    /// Returns the events that directly precede the run in its log, in their order.
    pub fn history(&self) -> &[Event] {
        &self.0.events[..self.0.history_len]
    }

    /// Returns the position of the first event in its log.
    pub fn first_position(&self) -> u64 {
        self.0.first_position
    }

    /// Returns the position of the last event in its log.
    pub fn last_position(&self) -> u64 {
        self.0.first_position + self.events().len() as u64 - 1
    }

    /// Returns the bytes of all events, one after the other.
    ///
    /// The first call joins the bytes. All clones of the run share them.
    pub fn encoded(&self, encoding: RunEncoding) -> Bytes {
        if let [event] = self.events() {
            return encoding.encoded(event).clone();
        }
        let join = || join(self.events(), encoding);
        match self.0.joined_bytes.get_or_insert_with(encoding.key, join) {
            Some(bytes) => bytes.clone(),
            None => join(),
        }
    }

    /// Returns the compressed bytes of all events, as blocks of DEFLATE. If `has_history` is set, the blocks refer to the bytes of the
    /// history, in the same encoding.
    ///
    /// The first call compresses the bytes. All clones of the run share them.
    #[cfg(feature = "gzip")]
    pub(crate) fn deflated(&self, encoding: RunEncoding, has_history: bool) -> DeflatedBlock {
        let has_history = has_history && !self.history().is_empty();
        let deflate = || {
            let history = if has_history { self.history() } else { &[] };
            DeflatedBlock::of_events(history, self.events(), encoding)
        };
        let key = (encoding.key, has_history);
        match self.0.deflated.get_or_insert_with(key, deflate) {
            Some(block) => block.clone(),
            None => deflate(),
        }
    }
}

/// Returns the bytes of the events, one after the other.
fn join(events: &[Event], encoding: RunEncoding) -> Bytes {
    let len = events.iter().map(|event| encoding.encoded(event).len());
    let mut joined = BytesMut::with_capacity(len.sum());
    for event in events {
        joined.extend_from_slice(encoding.encoded(event));
    }
    joined.freeze()
}

/// The result of one poll of a source: one item, or several events of one log.
#[derive(Clone, Debug)]
pub enum ItemOrRun {
    /// One item.
    Item(Item),
    /// Several events. The client's cursor moves to the id of the last one.
    Run(EventRun),
}

impl From<Item> for ItemOrRun {
    #[inline]
    fn from(item: Item) -> Self {
        Self::Item(item)
    }
}

impl fmt::Debug for EventRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventRun")
            .field("first_position", &self.first_position())
            .field("events", &self.events())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RunEncoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunEncoding")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Fields;

    struct PayloadEncoding<const MARK: u8>;

    impl<const MARK: u8> Encoding for PayloadEncoding<MARK> {
        fn encode(fields: &Fields, out: &mut BytesMut) {
            out.extend_from_slice(fields.payload.as_bytes());
            out.extend_from_slice(&[MARK]);
        }
    }

    fn run(texts: &[&str]) -> EventRun {
        EventRun::new(
            5,
            [Event::text("x")],
            texts.iter().copied().map(Event::from),
        )
    }

    #[test]
    fn clones_share_joined_bytes() {
        let run = run(&["a", "b"]);
        assert_eq!((run.first_position(), run.last_position()), (5, 6));
        assert_eq!(run.history().len(), 1);
        let comma = RunEncoding::of::<PayloadEncoding<b','>>();
        let bytes = run.encoded(comma);
        assert_eq!(bytes, "a,b,");
        assert_eq!(run.clone().encoded(comma).as_ptr(), bytes.as_ptr());
        assert_eq!(
            run.encoded(RunEncoding::of::<PayloadEncoding<b';'>>()),
            "a;b;"
        );
    }

    #[test]
    fn parameter_distinguishes_encodings() {
        struct Choice;
        let run = run(&["a", "b"]);
        let encoding = |parameter| {
            RunEncoding::with_parameter::<Choice>(parameter, |event, parameter| match parameter {
                0 => event.encoded_ref::<PayloadEncoding<b','>>(),
                _ => event.encoded_ref::<PayloadEncoding<b';'>>(),
            })
        };
        assert_eq!(run.encoded(encoding(0)), "a,b,");
        assert_eq!(run.encoded(encoding(1)), "a;b;");
    }

    #[test]
    fn run_caches_few_encodings() {
        struct Choice;
        let run = run(&["a", "b"]);
        let encoded = |parameter| {
            run.encoded(RunEncoding::with_parameter::<Choice>(
                parameter,
                |event, _| event.encoded_ref::<PayloadEncoding<b','>>(),
            ))
        };
        let is_cached = |parameter| encoded(parameter).as_ptr() == encoded(parameter).as_ptr();
        assert!((0..8).all(is_cached));
        assert_eq!(encoded(8), "a,b,");
        let (one, other) = (encoded(8), encoded(8));
        assert_ne!(one.as_ptr(), other.as_ptr());
    }

    #[test]
    fn lone_event_is_not_copied() {
        let run = run(&["a"]);
        let encoding = RunEncoding::of::<PayloadEncoding<b','>>();
        let event = run.events()[0].encoded::<PayloadEncoding<b','>>();
        assert_eq!(run.encoded(encoding).as_ptr(), event.as_ptr());
    }
}
