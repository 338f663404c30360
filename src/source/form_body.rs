use std::{fmt, sync::Arc};

/// The form in the body of a `QUERY` request ([RFC 10008](https://www.rfc-editor.org/info/rfc10008)), in
/// `application/x-www-form-urlencoded`.
///
/// Sources and transports see only the head of a request. If the head's extensions contain a `FormBody`, a source can read the form, and
/// the form's parameter `last_event_id` is the [cursor](super::Subscription) of a request that has no cursor in its header or its query.
///
/// In a [`service`](crate::service), and inside a [`FormBodyLayer`](crate::layer::FormBodyLayer), the body is read and the `FormBody` is
/// inserted before the source sees the head. A handler that has read the body inserts the `FormBody` itself:
///
/// ```
/// use http::{Request, Response};
/// use tower_push::{PushBody, respond, source::FormBody};
///
/// async fn handler(request: Request<String>) -> Response<PushBody> {
///     let (mut head, body) = request.into_parts();
///     head.extensions.insert(FormBody::new(body));
///     respond(&mut head, tokio_stream::iter(["one", "two"])).await
/// }
/// ```
///
/// A source reads a parameter of the form:
///
/// ```
/// use tower_push::source::{FormBody, Subscription, query::decode_parameter};
///
/// fn topics(subscription: &Subscription) -> Vec<String> {
///     let form = subscription.head().extensions.get::<FormBody>();
///     let form = form.map_or("", FormBody::as_str);
///     decode_parameter(form, "topic").map(Into::into).collect()
/// }
/// ```
#[derive(Clone)]
pub struct FormBody(Arc<str>);

impl FormBody {
    /// Creates a `FormBody` from the text of the body.
    pub fn new(form: impl Into<Arc<str>>) -> Self {
        Self(form.into())
    }

    /// Returns the text of the body. [`decode_parameter`](super::query::decode_parameter) decodes its parameters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Without the text, which can have passwords and tokens.
impl fmt::Debug for FormBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FormBody").finish_non_exhaustive()
    }
}
