//! Bodies, read whole.

use std::fmt;

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use tower_push::{BoxError, PushBody};

/// A body that must end cleanly, as text.
pub async fn text<B>(body: B) -> String
where
    B: Body<Data = Bytes>,
    B::Error: fmt::Debug,
{
    let bytes = body.collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What a body yields before it ends or fails, and how it ended.
pub async fn frames(mut body: PushBody) -> (Vec<Bytes>, Result<(), BoxError>) {
    let mut frames = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => frames.push(frame.into_data().unwrap()),
            Err(error) => return (frames, Err(error)),
        }
    }
    (frames, Ok(()))
}
