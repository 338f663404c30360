use std::fmt::Write;

use super::EventId;

/// Events that this subscriber will never get.
///
/// Every transport announces it in-band, at the place in the stream where the events are missing. Its JSON form, the same
/// everywhere, is
/// `{"reason":"expired"|"lagged"|"epoch","requested":ID|null,"resumed":ID|null,"missed":NUMBER|null}`.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::{Gap, GapReason};
///
/// let gap = Gap::new(GapReason::Lagged).missed(3);
/// assert_eq!(gap.to_json(), r#"{"reason":"lagged","requested":null,"resumed":null,"missed":3}"#);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gap {
    /// Why they are missing.
    pub reason: GapReason,
    /// The cursor that the client asked to resume from.
    pub requested: Option<EventId>,
    /// The cursor at which the stream goes on: what follows comes after it.
    pub resumed: Option<EventId>,
    /// How many are missing, if known.
    pub missed: Option<u64>,
}

/// Why a [`Gap`] is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GapReason {
    /// The cursor is older than what the source keeps.
    Expired,
    /// The subscriber was too slow.
    Lagged,
    /// The cursor is of another log's lifetime, or no cursor at all: nothing is known of what came after it.
    Epoch,
}

impl GapReason {
    /// The word that goes on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Lagged => "lagged",
            Self::Epoch => "epoch",
        }
    }
}

impl Gap {
    /// A gap of which only the reason is known.
    pub fn new(reason: GapReason) -> Self {
        Self {
            reason,
            requested: None,
            resumed: None,
            missed: None,
        }
    }

    /// The cursor that the client asked to resume from.
    #[must_use]
    pub fn requested(mut self, id: EventId) -> Self {
        self.requested = Some(id);
        self
    }

    /// The cursor at which the stream goes on.
    #[must_use]
    pub fn resumed(mut self, id: EventId) -> Self {
        self.resumed = Some(id);
        self
    }

    /// How many events are missing.
    #[must_use]
    pub fn missed(mut self, events: u64) -> Self {
        self.missed = Some(events);
        self
    }

    /// The JSON form, on one line.
    pub fn to_json(&self) -> String {
        // Ids need no escaping: see `EventId`.
        let id = |id: &Option<EventId>| {
            id.as_ref()
                .map_or("null".to_owned(), |id| format!("\"{id}\""))
        };
        let mut json = format!(
            "{{\"reason\":\"{}\",\"requested\":{},\"resumed\":{},\"missed\":",
            self.reason.name(),
            id(&self.requested),
            id(&self.resumed),
        );
        let _ = match self.missed {
            Some(missed) => write!(json, "{missed}}}"),
            None => write!(json, "null}}"),
        };
        json
    }
}
