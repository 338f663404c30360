use tower_push::source::relay;

use crate::error::Error;

/// The state and the counts of the reader of a [`JetStream`](crate::JetStream) or a [`JetStreamHub`](crate::JetStreamHub).
pub type ReaderStatus = relay::ReaderStatus<Error>;

pub(crate) type ReaderMetrics = relay::ReaderMetrics<Error>;
