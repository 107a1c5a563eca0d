//! The outcome of an event: the answer of JetStream, or of its client on JetStream's behalf.

use std::error::Error as _;

use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::{self, ErrorCode};
use tokio::time::{Instant, timeout_at};

use super::connection::{Watch, lost};
use crate::verdict::{Kind, Reason, Verdict};

/// Waits for one acknowledgement, but not past the deadline, and not on a lost connection.
pub(super) async fn confirmed(
    ack: PublishAckFuture,
    watch: &mut Watch,
    deadline: Instant,
) -> Verdict {
    tokio::select! {
        biased; // an acknowledgement that has arrived counts, whatever happened since
        ack = timeout_at(deadline, ack) => match ack {
            // A duplicate is already in the stream, so it counts as delivered.
            Ok(Ok(_)) => Verdict::Delivered,
            Ok(Err(error)) => judge(&error),
            Err(_) => Verdict::Away(not_in_time()),
        },
        reason = watch.failed() => Verdict::Away(reason),
    }
}

pub(super) fn not_in_time() -> Reason {
    Reason::new(
        Kind::Timeout,
        "no acknowledgement within relay.confirm_timeout: is the server overloaded, or stopped?",
    )
}

/// What the server, or the client on its behalf, says about one publish.
pub(super) fn judge(error: &PublishError) -> Verdict {
    match error.kind() {
        PublishErrorKind::StreamNotFound => Verdict::Away(Reason::new(
            Kind::Topology,
            "no stream takes this subject: does nats.stream exist, and have it among its subjects?",
        )),
        PublishErrorKind::MaxPayloadExceeded => {
            let text = format!("{error}: raise max_payload in the server's configuration");
            Verdict::Refused(Reason::new(Kind::TooLarge, text))
        }
        PublishErrorKind::TimedOut => Verdict::Away(not_in_time()),
        PublishErrorKind::BrokenPipe => Verdict::Away(lost()),
        PublishErrorKind::MaxAckPending => {
            Verdict::Away(Reason::new(Kind::Blocked, error.to_string()))
        }
        PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::Other => {
            let refusal =
                error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
            match refusal {
                Some(refusal) => judge_refusal(refusal.error_code(), &refusal.to_string()),
                None => Verdict::Later(Reason::new(Kind::Other, error.to_string())),
            }
        }
    }
}

/// What JetStream says about a publish that it did not accept.
fn judge_refusal(code: ErrorCode, text: &str) -> Verdict {
    let reason = |kind, hint: &str| Reason::new(kind, format!("{text}: {hint}"));
    match code {
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            Verdict::Refused(reason(Kind::TooLarge, "raise the stream's max_msg_size"))
        }
        ErrorCode::STREAM_NOT_MATCH | ErrorCode::STREAM_NOT_FOUND => Verdict::Away(reason(
            Kind::Topology,
            "another stream than nats.stream has this subject",
        )),
        ErrorCode::STREAM_SEALED => {
            Verdict::Away(reason(Kind::Topology, "the stream takes nothing more, name another"))
        }
        ErrorCode::STREAM_STORE_FAILED => {
            Verdict::Away(reason(Kind::Rejected, "is the stream at one of its limits?"))
        }
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED => {
            Verdict::Away(reason(Kind::Blocked, "give JetStream more room"))
        }
        ErrorCode::CLUSTER_NOT_AVAILABLE
        | ErrorCode::CLUSTER_NOT_LEADER
        | ErrorCode::CLUSTER_NO_PEERS
        | ErrorCode::STREAM_OFFLINE => {
            Verdict::Away(reason(Kind::Blocked, "is a majority of the stream's replicas up?"))
        }
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            Verdict::Away(reason(Kind::Topology, "enable JetStream on the server"))
        }
        _ => Verdict::Later(Reason::new(Kind::Other, text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::error::Error;

    #[test]
    fn each_error_has_its_verdict() {
        use PublishErrorKind::*;
        for (kind, expected) in [
            (StreamNotFound, "away topology"),
            (MaxPayloadExceeded, "refused too_large"),
            (TimedOut, "away timeout"),
            (BrokenPipe, "away unreachable"),
            (MaxAckPending, "away blocked"),
            (WrongLastSequence, "later other"),
            (Other, "later other"),
        ] {
            assert_eq!(judge(&Error::new(kind)).to_string(), expected, "{kind:?}");
        }
        for (code, expected) in [
            (ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM, "refused too_large"),
            (ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM, "refused too_large"),
            (ErrorCode::STREAM_NOT_MATCH, "away topology"),
            (ErrorCode::STREAM_NOT_FOUND, "away topology"),
            (ErrorCode::STREAM_SEALED, "away topology"),
            (ErrorCode::STREAM_STORE_FAILED, "away rejected"),
            (ErrorCode::ACCOUNT_RESOURCES_EXCEEDED, "away blocked"),
            (ErrorCode::STORAGE_RESOURCES_EXCEEDED, "away blocked"),
            (ErrorCode::CLUSTER_NOT_LEADER, "away blocked"),
            (ErrorCode::STREAM_OFFLINE, "away blocked"),
            (ErrorCode::JETSTREAM_NOT_ENABLED, "away topology"),
            (ErrorCode::BAD_REQUEST, "later other"),
        ] {
            let refusal = serde_json::json!({ "code": 400, "err_code": code, "description": "x" });
            let refusal: jetstream::Error = serde_json::from_value(refusal).unwrap();
            let error = Error::with_source(Other, refusal);
            assert_eq!(judge(&error).to_string(), expected, "{code:?}");
        }
    }
}
