use std::collections::VecDeque;

use bytes::Bytes;

use crate::{
    BoxError,
    event::{Event, Item},
};

/// A value that a stream yields; `None` is its end.
pub(super) type StreamValue = Option<Result<Item, BoxError>>;

/// Joins the characters that appends have split between two events, for streams of text.
///
/// A character belongs to the event in which it begins. An event that ends within a character is held back until later events have the rest of
/// this character, which they then lack. So each event has whole characters, and a client that resumes from the cursor after any event gets no
/// byte twice.
#[derive(Debug)]
pub(super) struct CharacterJoiner {
    /// The number of bytes that are dropped if they continue a character. Not 0 until a client that resumes has got its first character: the
    /// client has the character in which its offset is, or its beginning.
    skippable_len: usize,
    /// The event that ends within a character.
    held: Option<Item>,
    ready: VecDeque<StreamValue>,
}

/// The most bytes that follow the first byte of a character in UTF-8.
const MAX_CONTINUATION_LEN: usize = 3;

impl CharacterJoiner {
    /// Creates a joiner for a client that resumes, whose offset may be within a character, or for one that begins with the oldest event.
    pub(super) fn new(resumes: bool) -> Self {
        Self {
            skippable_len: if resumes { MAX_CONTINUATION_LEN } else { 0 },
            held: None,
            ready: VecDeque::new(),
        }
    }

    /// Takes the next value that the client gets.
    pub(super) fn pop(&mut self) -> Option<StreamValue> {
        self.ready.pop_front()
    }

    /// Returns whether [`pop`](Self::pop) returns a value.
    pub(super) fn has_values(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Adds a value that the stream has yielded.
    pub(super) fn push(&mut self, value: StreamValue) {
        match value {
            Some(Ok(item)) if item.event().is_some() => self.push_event(item),
            // A cursor after the event that is held back would move the client past this event.
            Some(Ok(Item::Cursor(_))) if self.held.is_some() => {}
            value => {
                let held = self.held.take();
                if matches!(&value, Some(Ok(item)) if is_finished(item)) {
                    let held = held.map(|item| with_replaced_character(&item));
                    self.ready.extend(held.map(|item| Some(Ok(item))));
                }
                // After any other end, the client resumes before the event that was held back.
                self.ready.push_back(value);
            }
        }
    }

    fn push_event(&mut self, item: Item) {
        let item = self.skip_continuation(item);
        let item = match self.held.take() {
            Some(held) => self.complete(held, item),
            None => Some(item),
        };
        match item {
            Some(item) if missing_len(payload_of(&item)) > 0 => self.held = Some(item),
            item => self.ready.extend(item.map(|item| Some(Ok(item)))),
        }
    }

    /// Drops the bytes of the character in which the client's offset is.
    fn skip_continuation(&mut self, item: Item) -> Item {
        let payload = payload_of(&item);
        let skipped_len = continuation_len(payload, self.skippable_len);
        self.skippable_len = match skipped_len == payload.len() {
            true => self.skippable_len - skipped_len,
            false => 0,
        };
        match skipped_len {
            0 => item,
            _ => with_payload(&item, payload[skipped_len..].to_vec()),
        }
    }

    /// Moves the rest of the last character of `held` from `item` to `held`. Returns the item that is left to add: `item` without this rest, or
    /// both in one if `item` has nothing else.
    fn complete(&mut self, held: Item, item: Item) -> Option<Item> {
        let mut payload = payload_of(&held).to_vec();
        let rest = payload_of(&item);
        let moved_len = continuation_len(rest, missing_len(&payload));
        payload.extend_from_slice(&rest[..moved_len]);
        if moved_len == rest.len() {
            return Some(with_payload(&item, payload));
        }
        let left = match moved_len {
            0 => item,
            _ => with_payload(&item, rest[moved_len..].to_vec()),
        };
        self.ready.push_back(Some(Ok(with_payload(&held, payload))));
        Some(left)
    }
}

fn is_finished(item: &Item) -> bool {
    item.end().is_some_and(|end| end.finished)
}

fn payload_of(item: &Item) -> &[u8] {
    (item.event()).map_or(&[], |event| event.payload().as_bytes())
}

/// Returns how many bytes the last character of `payload` lacks; 0 if it is complete, or no UTF-8.
fn missing_len(payload: &[u8]) -> usize {
    let Err(error) = std::str::from_utf8(payload) else {
        return 0;
    };
    let character = &payload[error.valid_up_to()..];
    let is_incomplete = error.error_len().is_none();
    let len = match character.first() {
        Some(0xf0..) => 4,
        Some(0xe0..) => 3,
        _ => 2,
    };
    match is_incomplete {
        true => len - character.len(),
        false => 0,
    }
}

/// Returns how many of the first `max_len` bytes continue a character.
fn continuation_len(payload: &[u8], max_len: usize) -> usize {
    let continues = |byte: &&u8| matches!(byte, 0x80..=0xbf);
    payload.iter().take(max_len).take_while(continues).count()
}

/// Returns the item with other bytes. The events of a read have nothing but their payload and their cursor.
fn with_payload(item: &Item, payload: Vec<u8>) -> Item {
    let event = Event::binary(Bytes::from(payload));
    match item.cursor() {
        Some(cursor) => Item::Event(event.with_event_id(cursor.clone())),
        None => Item::Event(event),
    }
}

/// Returns the item with U+FFFD in place of its last character, which is incomplete.
fn with_replaced_character(item: &Item) -> Item {
    let text = String::from_utf8_lossy(payload_of(item));
    with_payload(item, text.into_owned().into_bytes())
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::EventId;

    fn event(number: usize, payload: &[u8]) -> StreamValue {
        let event = Event::binary(payload.to_vec()).with_event_id((number as u64).into());
        Some(Ok(Item::Event(event)))
    }

    /// Takes what is ready: the text and the cursor of each event, and `end` for the end.
    fn pop_all(joiner: &mut CharacterJoiner) -> Vec<(String, Option<EventId>)> {
        let values = std::iter::from_fn(|| joiner.pop());
        let describe = |value: StreamValue| match value {
            Some(Ok(item)) if item.event().is_some() => {
                let text = item.event().unwrap().payload().as_text();
                let text = text.unwrap_or("not text").to_owned();
                (text, item.cursor().cloned())
            }
            Some(Ok(item)) => (format!("{item:?}"), None),
            Some(Err(error)) => (error.to_string(), None),
            None => ("end".to_owned(), None),
        };
        values.map(describe).collect()
    }

    fn joined(resumes: bool, values: impl IntoIterator<Item = StreamValue>) -> Vec<String> {
        let mut joiner = CharacterJoiner::new(resumes);
        values.into_iter().for_each(|value| joiner.push(value));
        let texts = pop_all(&mut joiner).into_iter().map(|(text, _)| text);
        texts.collect()
    }

    #[test]
    fn event_waits_for_rest_of_its_character() {
        let mut joiner = CharacterJoiner::new(false);
        joiner.push(event(1, b"a\xf0"));
        joiner.push(event(2, b"\x9f"));
        joiner.push(Some(Ok(Item::Cursor(9.into()))));
        assert_eq!(pop_all(&mut joiner), []);
        joiner.push(event(3, b"\x98\x80b"));
        assert_eq!(
            pop_all(&mut joiner),
            [
                ("a\u{1f600}".to_owned(), Some(2.into())),
                ("b".to_owned(), Some(3.into()))
            ]
        );
        joiner.push(event(4, b"\xc3"));
        joiner.push(event(5, b"\xa9"));
        let both = ("é".to_owned(), Some(5.into()));
        assert_eq!(pop_all(&mut joiner), [both]);
    }

    #[test]
    fn incomplete_character_at_end() {
        let held = || event(1, b"a\xe2\x82");
        let finished = joined(false, [held(), Some(Ok(Item::Finished))]);
        assert_eq!(finished, ["a\u{fffd}", "Finished"]);
        let ended = joined(false, [held(), None]);
        assert_eq!(ended, ["end"], "the client resumes before the event");
        let failed = joined(false, [held(), Some(Err("failed".into()))]);
        assert_eq!(failed, ["failed"]);
    }

    #[test]
    fn bytes_that_are_no_text_are_passed_on() {
        assert_eq!(joined(false, [event(1, b"\xff")]), ["not text"]);
        let values = [event(1, b"\xc3"), event(2, b"x")];
        assert_eq!(joined(false, values), ["not text", "x"]);
        assert_eq!(joined(false, [event(1, b"\xa9")]), ["not text"]);
    }

    #[test]
    fn resumed_client_gets_no_rest_of_character() {
        let values = [event(1, b"\x9f"), event(2, b"\x98\x80a"), event(3, b"\xa9")];
        assert_eq!(joined(true, values), ["", "a", "not text"]);
    }

    proptest! {
        /// A text that is split anywhere arrives whole, for a client that reads it all, and for one that resumes at any event.
        #[test]
        fn split_text_arrives_whole(
            text in "[aé€😀]{0,12}",
            splits in proptest::collection::vec(0_usize..48, 0..8),
            resumed_after in 0_usize..8,
        ) {
            let mut splits: Vec<_> = splits.into_iter().map(|at| at.min(text.len())).collect();
            splits.extend([0, text.len()]);
            splits.sort_unstable();
            let pieces = splits.windows(2).map(|piece| &text.as_bytes()[piece[0]..piece[1]]);
            let events: Vec<_> = pieces.enumerate().collect();

            let mut joiner = CharacterJoiner::new(false);
            for (number, piece) in &events {
                joiner.push(event(*number, piece));
            }
            let all = pop_all(&mut joiner);
            let mut received: String = all.iter().map(|(text, _)| &**text).collect();
            prop_assert_eq!(&received, &text);

            let Some((_, cursor)) = all.get(resumed_after) else {
                return Ok(());
            };
            received = all[..=resumed_after].iter().map(|(text, _)| &**text).collect();
            let mut joiner = CharacterJoiner::new(true);
            let cursor: usize = cursor.as_ref().unwrap().as_str().parse().unwrap();
            for (number, piece) in &events[cursor + 1..] {
                joiner.push(event(*number, piece));
            }
            received.extend(pop_all(&mut joiner).into_iter().map(|(text, _)| text));
            prop_assert_eq!(received, text);
        }
    }
}
