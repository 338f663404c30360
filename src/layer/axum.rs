use axum_core::response::{IntoResponse, Response};

use crate::{
    source::{Push, Rejection},
    transport::rejection_response,
};

/// Creates a carrier response, which holds the push for the [layer](super::TransportLayer) around the router.
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl IntoResponse for Push {
    fn into_response(self) -> Response {
        http::Response::<String>::from(self).into_response()
    }
}

/// Creates the response that refuses the request, as a transport does.
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        rejection_response(self).into_response()
    }
}
