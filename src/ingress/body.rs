//! Reading a request's body, within its limits of size and time.

use std::error::Error;
use std::io;

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
    let announced = body.size_hint().exact().unwrap_or_default().min(limit) as usize;
    // Usually there is one frame, and nothing is copied. More are gathered in one place, because each of them
    // holds a whole buffer of the connection.
    let (mut only, mut gathered) = (Bytes::new(), BytesMut::new());
    let whole = async {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| broken(&error))?.into_data() else { continue };
            *size += data.len() as u64;
            if *size > limit {
                (only, gathered) = (Bytes::new(), BytesMut::new());
            } else if only.is_empty() && gathered.is_empty() {
                only = data;
            } else {
                if gathered.is_empty() {
                    gathered.reserve(announced);
                    gathered.extend_from_slice(&std::mem::take(&mut only));
                }
                gathered.extend_from_slice(&data);
            }
        }
        Ok::<(), Answer>(())
    };
    let result = timeout_at(deadline, whole).await;
    if is_announced_too_large || *size > limit {
        return Err(Answer::TooLarge { limit });
    }
    result.map_err(|_| Answer::Timeout)??;
    Ok(if gathered.is_empty() { only } else { gathered.freeze() })
}

/// The answer to a body that ended too early: either it breaks the rules of HTTP (hyper says so in the kind of
/// an error below its own), or the client went away, and reads no answer.
fn broken(error: &axum::Error) -> Answer {
    let mut causes = std::iter::successors(Some(error as &dyn Error), |&error| error.source());
    let kind = causes.find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => Answer::Broken,
        _ => Answer::Timeout,
    }
}
