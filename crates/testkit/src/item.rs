//! Items as short texts that a test can compare.

use tower_push::{BoxError, Item};

/// Returns an event's payload, a gap's reason and number of missed events, or the kind of any other item.
pub fn describe_item(item: Result<Item, BoxError>) -> String {
    match item {
        Ok(Item::Event(event)) => event.payload().as_text().unwrap().to_owned(),
        Ok(Item::Gap(gap)) => format!("{} {:?}", gap.reason.name(), gap.missed),
        Ok(Item::Cursor(_)) => "cursor".to_owned(),
        Ok(Item::Finished) => "finished".to_owned(),
        Err(error) => format!("error: {error}"),
        other => format!("{other:?}"),
    }
}
