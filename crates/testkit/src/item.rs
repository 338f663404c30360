//! Items, as short texts to compare.

use tower_push::{BoxError, Item};

/// An item in a word or two.
pub fn short(item: Result<Item, BoxError>) -> String {
    match item {
        Ok(Item::Event(event)) => event.payload().as_text().unwrap().to_owned(),
        Ok(Item::Gap(gap)) => format!("{} {:?}", gap.reason.name(), gap.missed),
        Ok(Item::Cursor(_)) => "cursor".to_owned(),
        Ok(Item::Finished) => "finished".to_owned(),
        Err(error) => format!("error: {error}"),
        other => format!("{other:?}"),
    }
}
