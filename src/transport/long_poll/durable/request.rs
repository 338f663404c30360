use std::borrow::Cow;

use http::request::Parts;

use super::StreamCursor;
use crate::{
    event::EventId,
    source::{StartPosition, query},
};

const OFFSET: &str = "offset";
const LIVE: &str = "live";
const CURSOR: &str = "cursor";

const NO_SUCH_OFFSET: &str = "no such offset";

/// What a client of Durable Streams asks for.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) offset: Offset,
    pub(super) live: Option<Live>,
    pub(super) cursor: StreamCursor,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Offset {
    Oldest,
    Now,
    After(EventId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Live {
    LongPoll,
    Sse,
}

/// Whether a request is of this dialect: it says where to begin, or how to go on, in the protocol's words.
pub(in crate::transport::long_poll) fn is_durable(head: &Parts) -> bool {
    has_offset(head) || is_live(head)
}

/// Whether it can be of no other: it says both.
pub(in crate::transport::long_poll) fn is_live_read(head: &Parts) -> bool {
    has_offset(head) && is_live(head)
}

fn has_offset(head: &Parts) -> bool {
    let query = head.uri.query().unwrap_or_default();
    query::parameter_values(query, OFFSET).next().is_some()
}

fn is_live(head: &Parts) -> bool {
    let query = head.uri.query().unwrap_or_default();
    query::parameter_values(query, LIVE).any(|live| live == "long-poll" || live == "sse")
}

impl Request {
    /// # Errors
    /// What is wrong with it, for a person.
    pub(super) fn read(head: &Parts) -> Result<Self, &'static str> {
        let query = head.uri.query().unwrap_or_default();
        let live = match only(query, LIVE)?.as_deref() {
            None => None,
            Some("long-poll") => Some(Live::LongPoll),
            Some("sse") => Some(Live::Sse),
            Some(_) => return Err("live is long-poll or sse"),
        };
        let offset = match only(query, OFFSET)?.as_deref() {
            None if live.is_some() => return Err("live reads need an offset"),
            None | Some("-1") => Offset::Oldest,
            Some("now") => Offset::Now,
            // The word for an end belongs to the other transports: no answer of this dialect has it as an offset.
            Some(EventId::FINISHED) => return Err(NO_SUCH_OFFSET),
            Some(offset) => Offset::After(EventId::new(offset).map_err(|_| NO_SUCH_OFFSET)?),
        };
        let cursor = query::parameter_values(query, CURSOR).last();
        Ok(Self {
            offset,
            live,
            cursor: StreamCursor::of(cursor.as_deref()),
        })
    }
}

impl Offset {
    pub(super) fn start(&self) -> StartPosition {
        match self {
            Self::Oldest => StartPosition::Oldest,
            Self::Now => StartPosition::Now,
            Self::After(id) => StartPosition::After(id.clone()),
        }
    }

    pub(super) fn id(&self) -> Option<&EventId> {
        match self {
            Self::After(id) => Some(id),
            Self::Oldest | Self::Now => None,
        }
    }

    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Oldest => "-1",
            Self::Now => "now",
            Self::After(id) => id.as_str(),
        }
    }
}

fn only<'a>(query: &'a str, name: &str) -> Result<Option<Cow<'a, str>>, &'static str> {
    let mut values = query::parameter_values(query, name);
    let first = values.next();
    match values.next() {
        Some(_) => Err("offset and live may be given once each"),
        None => Ok(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<(Offset, Option<Live>), &'static str> {
        let request = http::Request::get(format!("/?{query}")).body(()).unwrap();
        let request = Request::read(&request.into_parts().0)?;
        Ok((request.offset, request.live))
    }

    fn after(id: &str) -> Offset {
        Offset::After(EventId::new(id).unwrap())
    }

    #[test]
    fn what_is_asked_for() {
        assert_eq!(read(""), Ok((Offset::Oldest, None)));
        assert_eq!(read("offset=-1"), Ok((Offset::Oldest, None)));
        assert_eq!(read("offset=now&x=y"), Ok((Offset::Now, None)));
        assert_eq!(read("offset=a-1"), Ok((after("a-1"), None)));
        let live = |live| Ok((after("a"), Some(live)));
        assert_eq!(
            read("cursor=7&live=long-poll&offset=a"),
            live(Live::LongPoll)
        );
        assert_eq!(
            read("offset=%61&live=sse&cursor=x&cursor="),
            live(Live::Sse)
        );
    }

    #[test]
    fn what_is_refused() {
        let long = format!("offset={}", "x".repeat(300));
        for query in [
            "offset",
            "offset=",
            "offset=a&offset=a",
            "offset=a/b",
            "offset=a,b",
            "offset=a+b",
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
            assert!(read(query).is_err(), "{query}");
        }
    }

    #[test]
    fn its_parameters_tell_the_dialect() {
        let is = |uri: &str| {
            let request = http::Request::get(uri).body(()).unwrap();
            is_durable(&request.into_parts().0)
        };
        assert!(is("/?offset=") && is("/?x=1&live=sse") && is("/?%6fffset=now"));
        assert!(!is("/") && !is("/?cursor=1") && !is("/?offsets=1"));
    }
}
