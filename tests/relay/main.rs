//! The relay: ids from outside, gaps of the feed, upstream resumes from an upstream, and their limits.

mod feed;
mod model;
mod upstream_resume;

mod store;
