//! Code that several examples share, and that the tests use.

pub mod demo;
pub mod exposition;
pub mod page;
