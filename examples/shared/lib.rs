//! What several examples share, and what the tests borrow from them.

pub mod demo;
pub mod exposition;
