//! Reading a request's body, within its limits of size and time.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use tokio::time::{Instant, timeout_at};

use crate::answer::Answer;

/// Reads a body to its end, keeping at most `limit` bytes. A larger body is still read, as long as there
/// is time, so that the client stays connected and gets the answer. `size` becomes what came.
pub(super) async fn read(
    mut body: Body,
    limit: u64,
    expects_word: bool,
    deadline: Instant,
    size: &mut u64,
) -> Result<Bytes, Answer> {
    let is_announced_too_large = body.size_hint().lower() > limit;
    if is_announced_too_large && expects_word {
        return Err(Answer::TooLarge { limit });
    }
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    let whole = async {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Answer::Timeout)?.into_data() else { continue };
            *size += data.len() as u64;
            if *size > limit {
                (first, rest) = (Bytes::new(), BytesMut::new());
            } else if first.is_empty() {
                first = data; // usually the only frame: nothing is copied
            } else {
                rest.extend_from_slice(&data);
            }
        }
        Ok::<(), Answer>(())
    };
    let result = timeout_at(deadline, whole).await;
    if is_announced_too_large || *size > limit {
        return Err(Answer::TooLarge { limit });
    }
    result.map_err(|_| Answer::Timeout)??;
    if rest.is_empty() {
        return Ok(first);
    }
    let mut all = BytesMut::with_capacity(first.len() + rest.len());
    all.extend_from_slice(&first);
    all.extend_from_slice(&rest);
    Ok(all.freeze())
}
