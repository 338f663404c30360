//! The relay: ids from outside, gaps of the feed, cold resumes from an upstream, and their limits.

mod cold_resume;
mod feed;
mod model;

mod store;
