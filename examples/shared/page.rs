//! Pages that use the JavaScript client.

use axum::{
    Router,
    http::header::CONTENT_TYPE,
    routing::{MethodRouter, get},
};

/// Returns the routes of a page, and of the JavaScript client at `/tower-push/`.
pub fn routes(page: &'static str) -> Router {
    let client = include_str!("../../clients/js/dist/index.js");
    let topics = include_str!("../../clients/js/dist/topics.js");
    Router::new()
        .route("/", file("text/html; charset=utf-8", page))
        .route("/tower-push/index.js", script(client))
        .route("/tower-push/topics.js", script(topics))
}

/// Returns the route of a script.
pub fn script(content: &'static str) -> MethodRouter {
    file("text/javascript; charset=utf-8", content)
}

/// Returns the route of a file.
pub fn file(media_type: &'static str, content: &'static str) -> MethodRouter {
    get(([(CONTENT_TYPE, media_type)], content))
}
