use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use http::{Extensions, HeaderMap, HeaderValue, Response, StatusCode, header};

use crate::{
    source::Push,
    transport::{NoBody, PushBody},
};

/// What a service behind a layer answers with: a [`Push`], or a response, which may carry one.
pub trait MaybePush {
    /// The body of the responses that carry none.
    type Body;

    /// Which of the two it is.
    fn into_answer(self) -> Answer<Self::Body>;
}

/// What a service answered with.
#[derive(Debug)]
pub enum Answer<B> {
    /// A push, and what the response that carried it has beside: headers and extensions that services in between have set.
    Push(Push, HeaderMap, Extensions),
    /// Any other response.
    Response(Response<B>),
}

impl MaybePush for Push {
    type Body = NoBody;

    fn into_answer(self) -> Answer<NoBody> {
        Answer::Push(self, HeaderMap::new(), Extensions::new())
    }
}

impl<B> MaybePush for Response<B> {
    type Body = B;

    fn into_answer(mut self) -> Answer<B> {
        let carried = self.extensions_mut().remove::<Carried>();
        let Some(push) = carried.and_then(Carried::take) else {
            return Answer::Response(self);
        };
        let (mut carrier, _) = self.into_parts();
        for name in ABOUT_THE_MESSAGE {
            carrier.headers.remove(name);
        }
        Answer::Push(push, carrier.headers, carrier.extensions)
    }
}

/// What describes the carrying response's own content.
const ABOUT_THE_MESSAGE: [http::HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::ETAG,
    header::TRANSFER_ENCODING,
];

/// A push inside a response's extensions, which want to be `Clone`.
#[derive(Clone)]
struct Carried(Arc<Mutex<Option<Push>>>);

impl Carried {
    /// The first of the clones to ask gets it.
    fn take(self) -> Option<Push> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The response that carries a push to the layer around the service. Without a layer it is what it looks like: a 500 that says
/// so.
impl From<Push> for Response<String> {
    fn from(push: Push) -> Self {
        let mut response = Response::new(UNLAYERED.to_owned());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, text);
        let carried = Carried(Arc::new(Mutex::new(Some(push))));
        response.extensions_mut().insert(carried);
        response
    }
}

const UNLAYERED: &str = "This response carries a tower_push::Push, but no layer turned it into a push response: \
    add .layer(tower_push::PushLayer::new()) around the service.\n";

impl fmt::Debug for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Carried")
    }
}

/// The push's response, under what its carrier has beside.
pub(super) fn merge<B>(
    response: Response<PushBody>,
    headers: HeaderMap,
    extensions: Extensions,
) -> Response<PushBody<B>> {
    let mut response = response.map(PushBody::beside);
    let mut merged = headers;
    for (name, value) in response.headers() {
        if name == header::VARY {
            merged.append(name, value.clone());
        } else {
            merged.insert(name, value.clone());
        }
    }
    *response.headers_mut() = merged;
    response.extensions_mut().extend(extensions);
    response
}
