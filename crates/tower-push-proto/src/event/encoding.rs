use std::{any::TypeId, sync::OnceLock};

use bytes::{Bytes, BytesMut};

use super::Fields;

/// A way to write an event as bytes. The bytes depend on the event alone, so that all subscribers can share them.
///
/// [`Event::encoded`](super::Event::encoded) keeps the bytes of an event under the type that implements `Encoding`. Encodings of other
/// crates are therefore shared like the encodings of this crate.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use bytes::{BufMut, Bytes, BytesMut};
/// use tower_push::event::{Encoding, Event, Fields};
///
/// struct LengthDelimitedEncoding;
/// impl Encoding for LengthDelimitedEncoding {
///     fn encode(fields: &Fields, out: &mut BytesMut) {
///         let payload = fields.payload.as_bytes();
///         out.put_u32(payload.len() as u32);
///         out.put_slice(payload);
///     }
/// }
///
/// let event = Event::text("hi");
/// let bytes: Bytes = event.encoded::<LengthDelimitedEncoding>();
/// assert_eq!(bytes, &b"\0\0\0\x02hi"[..]);
/// assert_eq!(bytes.as_ptr(), event.clone().encoded::<LengthDelimitedEncoding>().as_ptr());
/// ```
pub trait Encoding: 'static {
    /// Appends the event to `out`.
    fn encode(fields: &Fields, out: &mut BytesMut);
}

/// The bytes of one event in each encoding that was used, as a linked list in the order of first use. The list rarely has more than two
/// entries.
#[derive(Default)]
pub(super) struct EncodingCache(OnceLock<EncodedBytes>);

/// The bytes of the event in one encoding, as an element of the linked list of an [`EncodingCache`].
struct EncodedBytes {
    /// The encoding of the bytes: the id of the type that implements [`Encoding`].
    encoding_type: TypeId,
    bytes: Bytes,
    next: OnceLock<Box<EncodedBytes>>,
}

impl EncodingCache {
    /// Returns the event's bytes in the encoding `E`. Encodes the event if the cache does not contain these bytes.
    ///
    /// Invariant: the list contains no encoding twice, because an entry is set once, and each search begins at the first entry. A thread
    /// that needs an encoding while another thread computes it waits for the other thread.
    pub(super) fn get_or_encode<E: Encoding>(&self, fields: &Fields) -> &Bytes {
        let wanted = TypeId::of::<E>();
        let mut entry = self.0.get_or_init(|| EncodedBytes::new::<E>(fields));
        while entry.encoding_type != wanted {
            let next = &entry.next;
            entry = next.get_or_init(|| Box::new(EncodedBytes::new::<E>(fields)));
        }
        &entry.bytes
    }

    /// Whether the cache contains the event's bytes in the encoding `E`.
    pub(super) fn contains<E: Encoding>(&self) -> bool {
        let mut next = self.0.get();
        while let Some(entry) = next {
            if entry.encoding_type == TypeId::of::<E>() {
                return true;
            }
            next = entry.next.get().map(Box::as_ref);
        }
        false
    }
}

impl EncodedBytes {
    fn new<E: Encoding>(fields: &Fields) -> Self {
        let mut out = BytesMut::new();
        E::encode(fields, &mut out);
        Self {
            encoding_type: TypeId::of::<E>(),
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

    /// The encoding that writes the byte `N` and the payload.
    struct NumberedEncoding<const N: u8>;

    impl<const N: u8> Encoding for NumberedEncoding<N> {
        fn encode(fields: &Fields, out: &mut BytesMut) {
            CALLS.fetch_add(1, Ordering::Relaxed);
            out.extend_from_slice(&[N]);
            out.extend_from_slice(fields.payload.as_bytes());
        }
    }

    #[test]
    fn encoding_is_computed_once_for_all_threads() {
        const ROUNDS: usize = 200;
        for _ in 0..ROUNDS {
            let event = Event::text("x");
            let pointers: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4)
                    .map(|i| {
                        let event = event.clone();
                        scope.spawn(move || {
                            let (a, b) = if i % 2 == 0 {
                                let a = event.encoded::<NumberedEncoding<1>>();
                                (a, event.encoded::<NumberedEncoding<2>>())
                            } else {
                                let b = event.encoded::<NumberedEncoding<2>>();
                                (event.encoded::<NumberedEncoding<1>>(), b)
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
