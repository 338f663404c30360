use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Poll, ready},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

/// The version of HTTP that a client speaks on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HttpVersion {
    /// HTTP/1.1 or HTTP/1.0.
    Http1,
    /// HTTP/2.
    Http2,
}

/// The first bytes that a client sends on an HTTP/2 connection (RFC 9113 §3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads the first bytes of a connection until they show the version of HTTP. Returns the version, and the bytes.
///
/// # Errors
/// Fails if the connection fails. If the input ends before it shows a version, the version is HTTP/1: hyper then reports the end of the
/// input.
pub(super) async fn read_http_version<IO>(io: &mut IO) -> io::Result<(HttpVersion, Bytes)>
where
    IO: AsyncRead + Unpin,
{
    let mut bytes = [0; HTTP2_PREFACE.len()];
    let mut buffer = ReadBuf::new(&mut bytes);
    let version = poll_fn(|cx| {
        loop {
            let len_before = buffer.filled().len();
            ready!(Pin::new(&mut *io).poll_read(cx, &mut buffer))?;
            let read = buffer.filled();
            if read.len() == len_before || !HTTP2_PREFACE.starts_with(read) {
                return Poll::Ready(io::Result::Ok(HttpVersion::Http1));
            }
            if read.len() == HTTP2_PREFACE.len() {
                return Poll::Ready(Ok(HttpVersion::Http2));
            }
        }
    })
    .await?;
    Ok((version, Bytes::copy_from_slice(buffer.filled())))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn version_of(input: &[u8], split_at: usize) -> (HttpVersion, Bytes) {
        let (first, second) = input.split_at(split_at);
        let mut io = tokio::io::join(
            tokio::io::AsyncReadExt::chain(first, second),
            tokio::io::sink(),
        );
        read_http_version(&mut io).await.unwrap()
    }

    #[tokio::test]
    async fn version_is_read_from_split_input() {
        let get = b"GET / HTTP/1.1\r\n\r\n".as_slice();
        let almost = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rx".as_slice();
        for split_at in 0..=10 {
            for (input, expected) in [
                (HTTP2_PREFACE, HttpVersion::Http2),
                (almost, HttpVersion::Http1),
                (get, HttpVersion::Http1),
                (&get[..10], HttpVersion::Http1),
            ] {
                let (version, bytes) = version_of(input, split_at).await;
                assert_eq!(version, expected);
                assert!(input.starts_with(&bytes));
            }
        }
        assert_eq!(version_of(b"", 0).await, (HttpVersion::Http1, Bytes::new()));
    }
}
