use std::{any::TypeId, sync::OnceLock};

use bytes::{Bytes, BytesMut};

use super::Fields;

/// A way to write an event that depends on the event alone, so that all subscribers can share the bytes.
///
/// The type is the key under which [`Event::encoded`](super::Event::encoded) keeps the bytes: a transport from outside this
/// crate shares its encodings like the ones inside.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use bytes::{BufMut, Bytes, BytesMut};
/// use tower_push::event::{Encoding, Event, Fields};
///
/// struct LengthDelimited;
/// impl Encoding for LengthDelimited {
///     fn encode(fields: &Fields, out: &mut BytesMut) {
///         let payload = fields.payload.as_bytes();
///         out.put_u32(payload.len() as u32);
///         out.put_slice(payload);
///     }
/// }
///
/// let event = Event::text("hi");
/// let bytes: Bytes = event.encoded::<LengthDelimited>();
/// assert_eq!(bytes, &b"\0\0\0\x02hi"[..]);
/// assert_eq!(bytes.as_ptr(), event.clone().encoded::<LengthDelimited>().as_ptr());
/// ```
pub trait Encoding: 'static {
    /// Appends the event to `out`.
    fn encode(fields: &Fields, out: &mut BytesMut);
}

/// The encodings of one event, a list in order of first use: rarely longer than two.
#[derive(Default)]
pub(super) struct Encodings(OnceLock<Encoded>);

struct Encoded {
    encoding: TypeId,
    bytes: Bytes,
    next: OnceLock<Box<Encoded>>,
}

impl Encodings {
    /// Invariant: a place in the list is filled once, and whoever wants an encoding walks the list from its start; so no
    /// encoding is in it twice, and nobody computes one that another thread is computing.
    pub(super) fn get<E: Encoding>(&self, fields: &Fields) -> &Bytes {
        let wanted = TypeId::of::<E>();
        let mut at = self.0.get_or_init(|| Encoded::new::<E>(fields));
        while at.encoding != wanted {
            at = at.next.get_or_init(|| Box::new(Encoded::new::<E>(fields)));
        }
        &at.bytes
    }
}

impl Encodings {
    pub(super) fn has<E: Encoding>(&self) -> bool {
        let mut at = self.0.get();
        while let Some(encoded) = at {
            if encoded.encoding == TypeId::of::<E>() {
                return true;
            }
            at = encoded.next.get().map(Box::as_ref);
        }
        false
    }
}

impl Encoded {
    fn new<E: Encoding>(fields: &Fields) -> Self {
        let mut out = BytesMut::new();
        E::encode(fields, &mut out);
        Self {
            encoding: TypeId::of::<E>(),
            bytes: out.freeze(),
            next: OnceLock::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::event::Event;

    static CALLS: AtomicUsize = AtomicUsize::new(0);

    struct Numbered<const N: u8>;

    impl<const N: u8> Encoding for Numbered<N> {
        fn encode(fields: &Fields, out: &mut BytesMut) {
            CALLS.fetch_add(1, Ordering::Relaxed);
            out.extend_from_slice(&[N]);
            out.extend_from_slice(fields.payload.as_bytes());
        }
    }

    #[test]
    fn each_encoding_is_computed_once_for_all_threads() {
        const ROUNDS: usize = 200;
        for _ in 0..ROUNDS {
            let event = Event::text("x");
            let pointers: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4)
                    .map(|i| {
                        let event = event.clone();
                        scope.spawn(move || {
                            let (a, b) = if i % 2 == 0 {
                                let a = event.encoded::<Numbered<1>>();
                                (a, event.encoded::<Numbered<2>>())
                            } else {
                                let b = event.encoded::<Numbered<2>>();
                                (event.encoded::<Numbered<1>>(), b)
                            };
                            assert_eq!((&a[..], &b[..]), (&b"\x01x"[..], &b"\x02x"[..]));
                            (a.as_ptr() as usize, b.as_ptr() as usize)
                        })
                    })
                    .collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            assert!(pointers.iter().all(|p| *p == pointers[0]));
        }
        assert_eq!(CALLS.load(Ordering::Relaxed), 2 * ROUNDS);
    }
}
