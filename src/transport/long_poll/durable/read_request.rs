use std::borrow::Cow;

use http::request::Parts;

use super::CacheBustingCursor;
use crate::{
    event::EventId,
    source::{StartPosition, query},
};

const OFFSET_PARAMETER: &str = "offset";
const LIVE_PARAMETER: &str = "live";
const CURSOR_PARAMETER: &str = "cursor";

/// The value of the parameter `offset` with which a read begins with the oldest event.
const OLDEST_OFFSET: &str = "-1";

/// The value of the parameter `offset` with which a read begins after the newest event.
const NOW_OFFSET: &str = "now";

const UNKNOWN_OFFSET_MESSAGE: &str = "no such offset";

/// The parameters of a read request of the Durable Streams protocol.
#[derive(Clone, Debug)]
pub(super) struct ReadRequest {
    pub(super) offset: ReadOffset,
    /// The way in which the read waits for events; `None` for a catch-up read, which does not wait.
    pub(super) live: Option<LiveMode>,
    pub(super) cache_busting_cursor: CacheBustingCursor,
}

/// The parameter `offset`, which says where a read begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReadOffset {
    /// The offset is `-1` or missing: the read begins with the oldest event.
    Oldest,
    /// The offset `now`: the read begins after the newest event.
    Now,
    /// The offset is an event's id: the read begins after this event.
    After(EventId),
}

/// The parameter `live`, which says how a live read gets future events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LiveMode {
    LongPoll,
    Sse,
}

/// Returns whether a request has a parameter of the protocol: `offset`, or `live` with one of the protocol's values.
pub(in crate::transport::long_poll) fn is_durable_request(head: &Parts) -> bool {
    has_offset(head) || has_live_mode(head)
}

/// Returns whether a request has both `offset` and `live`, so that the request cannot be meant for another dialect or transport.
pub(in crate::transport::long_poll) fn is_durable_live_request(head: &Parts) -> bool {
    has_offset(head) && has_live_mode(head)
}

fn has_offset(head: &Parts) -> bool {
    let query = head.uri.query().unwrap_or_default();
    query::decode_parameter(query, OFFSET_PARAMETER)
        .next()
        .is_some()
}

fn has_live_mode(head: &Parts) -> bool {
    let query = head.uri.query().unwrap_or_default();
    query::decode_parameter(query, LIVE_PARAMETER).any(|live| live == "long-poll" || live == "sse")
}

impl ReadRequest {
    /// Parses the query of a request.
    ///
    /// # Errors
    /// Returns a message for the client's developer if a parameter is malformed, missing, or given twice.
    pub(super) fn parse(head: &Parts) -> Result<Self, &'static str> {
        let query = head.uri.query().unwrap_or_default();
        let live = match single_parameter_value(query, LIVE_PARAMETER)?.as_deref() {
            None => None,
            Some("long-poll") => Some(LiveMode::LongPoll),
            Some("sse") => Some(LiveMode::Sse),
            Some(_) => return Err("live is long-poll or sse"),
        };
        let offset = match single_parameter_value(query, OFFSET_PARAMETER)?.as_deref() {
            None if live.is_some() => return Err("live reads need an offset"),
            None | Some(OLDEST_OFFSET) => ReadOffset::Oldest,
            Some(NOW_OFFSET) => ReadOffset::Now,
            // Other transports announce the end of a stream with the id `~finished`. No response of this dialect has this id as offset.
            Some(EventId::FINISHED) => return Err(UNKNOWN_OFFSET_MESSAGE),
            Some(offset) => ReadOffset::After(
                EventId::from_escaped(offset).map_err(|_| UNKNOWN_OFFSET_MESSAGE)?,
            ),
        };
        let cursor = query::decode_parameter(query, CURSOR_PARAMETER).last();
        Ok(Self {
            offset,
            live,
            cache_busting_cursor: CacheBustingCursor::from_parameter(cursor.as_deref()),
        })
    }
}

impl ReadOffset {
    /// Returns where a subscription for this read starts.
    pub(super) fn start_position(&self) -> StartPosition {
        match self {
            Self::Oldest => StartPosition::Oldest,
            Self::Now => StartPosition::Now,
            Self::After(id) => StartPosition::After(id.clone()),
        }
    }

    /// Returns the event id that the offset is; `None` for `-1` and `now`.
    pub(super) fn cursor(&self) -> Option<&EventId> {
        match self {
            Self::After(id) => Some(id),
            Self::Oldest | Self::Now => None,
        }
    }

    /// Returns the value of the query parameter `offset`.
    pub(super) fn as_text(&self) -> Cow<'_, str> {
        match self {
            Self::Oldest => OLDEST_OFFSET.into(),
            Self::Now => NOW_OFFSET.into(),
            Self::After(id) => offset_of(id),
        }
    }
}

/// Returns the offset that stands for an id: the [escaped](EventId::escaped) id. An id that has the form of a special offset is escaped
/// too.
///
/// The protocol forbids the characters `,&=?/` in offsets (§6).
pub(super) fn offset_of(id: &EventId) -> Cow<'_, str> {
    match id.as_str() {
        OLDEST_OFFSET => "!2D1".into(),
        NOW_OFFSET => "!6Eow".into(),
        _ => id.escaped(),
    }
}

/// Returns the value of a parameter, and an error if the parameter is given more than once.
fn single_parameter_value<'a>(
    query: &'a str,
    name: &str,
) -> Result<Option<Cow<'a, str>>, &'static str> {
    let mut values = query::decode_parameter(query, name);
    let first = values.next();
    match values.next() {
        Some(_) => Err("offset and live may be given once each"),
        None => Ok(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<(ReadOffset, Option<LiveMode>), &'static str> {
        let request = http::Request::get(format!("/?{query}")).body(()).unwrap();
        let request = ReadRequest::parse(&request.into_parts().0)?;
        Ok((request.offset, request.live))
    }

    fn after(id: &str) -> ReadOffset {
        ReadOffset::After(EventId::new(id).unwrap())
    }

    #[test]
    fn valid_parameters_are_parsed() {
        assert_eq!(parse(""), Ok((ReadOffset::Oldest, None)));
        assert_eq!(parse("offset=-1"), Ok((ReadOffset::Oldest, None)));
        assert_eq!(parse("offset=now&x=y"), Ok((ReadOffset::Now, None)));
        assert_eq!(parse("offset=a-1"), Ok((after("a-1"), None)));
        let live = |live| Ok((after("a"), Some(live)));
        assert_eq!(
            parse("cursor=7&live=long-poll&offset=a"),
            live(LiveMode::LongPoll)
        );
        assert_eq!(
            parse("offset=%61&live=sse&cursor=x&cursor="),
            live(LiveMode::Sse)
        );
    }

    #[test]
    fn offset_is_an_escaped_id() {
        for (id, offset) in [
            ("a-1", "a-1"),
            ("a/b,c", "a!2Fb!2Cc"),
            ("now", "!6Eow"),
            ("-1", "!2D1"),
            ("!6Eow", "!216Eow"),
        ] {
            let id = EventId::new(id).unwrap();
            assert_eq!(offset_of(&id), offset);
            // A client may percent-encode an offset, or copy it into the URL.
            for query in [
                format!("offset={offset}"),
                format!("offset={}", offset.replace('!', "%21")),
            ] {
                assert_eq!(parse(&query), Ok((ReadOffset::After(id.clone()), None)));
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn id_survives_its_offset(id in proptest::prop_oneof!["[!-~]{1,200}", "-1|now|!6Eow"]) {
            let id = EventId::new(id).unwrap();
            let offset = offset_of(&id);
            proptest::prop_assert!(!offset.contains([',', '&', '=', '?', '/', '+', '%', '"']));
            let read = parse(&format!("offset={offset}"));
            if id.is_finished() {
                proptest::prop_assert!(read.is_err());
            } else {
                proptest::prop_assert_eq!(read, Ok((ReadOffset::After(id.clone()), None)));
            }
        }
    }

    #[test]
    fn invalid_parameters_are_refused() {
        let long = format!("offset={}", "x".repeat(300));
        for query in [
            "offset",
            "offset=",
            "offset=a&offset=a",
            "offset=a/b",
            "offset=a,b",
            "offset=a+b",
            "offset=a!",
            "offset=!2",
            "offset=!00",
            "offset=%00",
            "offset=%ff",
            "offset=..%2F",
            "offset=~finished",
            &long,
            "live=sse",
            "live=long-poll",
            "offset=a&live",
            "offset=a&live=",
            "offset=a&live=LONG-POLL",
            "offset=a&live=sse&live=sse",
        ] {
            assert!(parse(query).is_err(), "{query}");
        }
    }

    #[test]
    fn parameters_choose_the_dialect() {
        let is_durable = |uri: &str| {
            let request = http::Request::get(uri).body(()).unwrap();
            is_durable_request(&request.into_parts().0)
        };
        assert!(is_durable("/?offset=") && is_durable("/?x=1&live=sse"));
        assert!(is_durable("/?%6fffset=now"));
        assert!(!is_durable("/") && !is_durable("/?cursor=1") && !is_durable("/?offsets=1"));
    }
}
