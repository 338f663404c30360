use axum_core::response::{IntoResponse, Response};

use crate::{
    source::{Push, Rejection},
    transport::rejected,
};

/// The response that carries the push to the [layer](super::TransportLayer) around the router.
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl IntoResponse for Push {
    fn into_response(self) -> Response {
        http::Response::<String>::from(self).into_response()
    }
}

#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        rejected(self).into_response()
    }
}
