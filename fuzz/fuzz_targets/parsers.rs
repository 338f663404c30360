//! Streams that a client reads: each parser reads the same however the input is cut, and returns nothing that is longer than its limit.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tower_push_proto::{
    Error,
    format::{JsonSeqParser, MultipartParser, NdjsonParser, Record},
    sse::SseParser,
};

const MAX_LEN: usize = 64;

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (format, piece_len, bytes) = input;
    let piece_len = usize::from(piece_len).max(1);
    let read = |piece_len| match format % 4 {
        0 => read_sse(bytes, piece_len),
        1 => {
            let mut parser = NdjsonParser::new().max_record_len(MAX_LEN);
            read(bytes, piece_len, |input| parser.next_record(input))
        }
        2 => {
            let mut parser = JsonSeqParser::new().max_record_len(MAX_LEN);
            read(bytes, piece_len, |input| parser.next_record(input))
        }
        _ => {
            let parser = MultipartParser::new("b").max_headers_len(MAX_LEN);
            let mut parser = parser.max_part_len(MAX_LEN);
            read(bytes, piece_len, |input| {
                let part = parser.next_part(input)?;
                Ok(part.map(|part| {
                    let _ = Record::from_part(&part);
                    part.content
                }))
            })
        }
    };
    let whole = read(bytes.len().max(1));
    assert_eq!(read(piece_len), whole);
    assert_eq!(read(1), whole);
});

/// The records before the first error, and whether there was one.
type Reading = (Vec<Vec<u8>>, bool);

fn read(
    bytes: &[u8],
    piece_len: usize,
    mut next: impl FnMut(&mut Bytes) -> Result<Option<Bytes>, Error>,
) -> Reading {
    let mut records = Vec::new();
    for piece in bytes.chunks(piece_len) {
        let mut piece = Bytes::copy_from_slice(piece);
        loop {
            match next(&mut piece) {
                Ok(Some(record)) => {
                    assert!(record.len() <= MAX_LEN);
                    let _ = Record::from_json(&record);
                    records.push(record.to_vec());
                }
                Ok(None) => break,
                Err(_) => return (records, true),
            }
        }
        assert!(piece.is_empty());
    }
    (records, false)
}

fn read_sse(bytes: &[u8], piece_len: usize) -> Reading {
    let mut parser = SseParser::new()
        .max_line_len(MAX_LEN)
        .max_event_len(MAX_LEN);
    let mut events = Vec::new();
    for mut piece in bytes.chunks(piece_len) {
        loop {
            match parser.next_event(&mut piece) {
                Ok(Some(event)) => {
                    assert!(event.data.len() <= MAX_LEN);
                    events.push(format!("{event:?} {}", parser.last_event_id()).into_bytes());
                }
                Ok(None) => break,
                Err(_) => return (events, true),
            }
        }
        assert!(piece.is_empty());
    }
    (events, false)
}
