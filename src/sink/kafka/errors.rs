//! What librdkafka's errors mean: their kind, whether they are permanent, and how to fix them. Pure.

use rdkafka::error::RDKafkaErrorCode::*;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::verdict::{Kind, Reason};

/// An error's code, whatever type wraps it.
pub(super) fn code_of(error: &KafkaError) -> RDKafkaErrorCode {
    match error {
        KafkaError::Canceled => RDKafkaErrorCode::PurgeQueue,
        KafkaError::AdminOp(code) => *code,
        error => error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown),
    }
}

/// Whether the event can never be delivered.
pub(super) fn is_final(code: RDKafkaErrorCode) -> bool {
    matches!(sort(code).0, Kind::TooLarge | Kind::Invalid)
}

/// Whether other events in the same batch may have caused the error.
pub(super) fn is_of_the_batch(code: RDKafkaErrorCode) -> bool {
    is_final(code) || code == RDKafkaErrorCode::InvalidDifferentRecord
}

/// For the operator. `detail` is whatever is known beyond the code.
pub(super) fn reason(code: RDKafkaErrorCode, detail: Option<&str>) -> Reason {
    let (kind, what, advice) = sort(code);
    let detail = detail.map_or_else(|| in_words(code), str::to_owned);
    Reason::new(kind, format!("{what} ({detail}): {advice}"))
}

/// For "InvalidRecord (Broker: Broker failed to validate record)", the part in parentheses.
pub(super) fn in_words(code: RDKafkaErrorCode) -> String {
    let code = code.to_string();
    let words = code.split_once(" (").and_then(|(_, words)| words.strip_suffix(')'));
    words.map_or_else(|| code.clone(), str::to_owned)
}

/// The meaning of each error: its kind, what happened, and what to do about it.
const MEANINGS: &[(&[RDKafkaErrorCode], Kind, &str, &str)] = &[
    (
        &[
            AllBrokersDown,
            BrokerTransportFailure,
            Resolve,
            NetworkException,
            BrokerNotAvailable,
            BrokerDestroy,
            DestroyBroker,
        ],
        Kind::Unreachable,
        "there is no connection to the broker",
        "is it up, is kafka.brokers right, is security.protocol that of the listener, and can what \
             the brokers advertise (advertised.listeners) be reached from here?",
    ),
    (
        &[SSL],
        Kind::Unreachable,
        "the broker and the bridge do not agree on TLS",
        "check security.protocol and ssl.* in [kafka.properties]: is the broker's certificate \
             signed by ssl.ca.location and made for this host name, and does it ask for one of ours?",
    ),
    (
        &[
            MessageTimedOut,
            OperationTimedOut,
            TimedOutQueue,
            RequestTimedOut,
            PurgeQueue,
            PurgeInflight,
        ],
        Kind::Timeout,
        "the broker did not confirm in time",
        "is it overloaded or stuck? The event is sent again, so it may be stored twice, under one \
             id",
    ),
    (
        &[
            Authentication,
            SaslAuthenticationFailed,
            UnsupportedSASLMechanism,
            IllegalSASLState,
            DelegationTokenExpired,
            DelegationTokenNotFound,
            DelegationTokenAuthDisabled,
        ],
        Kind::Credentials,
        "the broker does not let this user in",
        "check sasl.mechanism, sasl.username and sasl.password in [kafka.properties]",
    ),
    (
        &[TopicAuthorizationFailed, ClusterAuthorizationFailed, DelegationTokenAuthorizationFailed],
        Kind::Credentials,
        "the broker does not let this user do that",
        "allow it Write and Describe on the topic, as with kafka-acls.sh",
    ),
    (
        &[UnknownTopic, UnknownPartition, UnknownTopicOrPartition, UnknownTopicId],
        Kind::Topology,
        "the topic, or a partition of it, is missing",
        "create it, or set kafka.create_topic = true",
    ),
    (
        &[
            InvalidTopic,
            InvalidPartitions,
            InvalidReplicationFactor,
            PolicyViolation,
            UnsupportedForMessageFormat,
        ],
        Kind::Topology,
        "the topic is not as the bridge needs it, or the cluster allows none such",
        "compare kafka.partitions and kafka.replication with the number of brokers and their \
             policies",
    ),
    (
        &[NotEnoughReplicas, NotEnoughReplicasAfterAppend, ISRInsufficient],
        Kind::Blocked,
        "too few replicas are in sync",
        "bring the other brokers back, or lower min.insync.replicas of the topic",
    ),
    (
        &[LeaderNotAvailable, NotLeaderForPartition, ReplicaNotAvailable],
        Kind::Blocked,
        "a partition has no leader now",
        "it gets one by itself if one of its brokers is up",
    ),
    (
        &[KafkaStorageError, LogDirNotFound],
        Kind::Blocked,
        "the broker cannot write to its disk",
        "check its disks and its log",
    ),
    (
        &[ThrottlingQuotaExceeded],
        Kind::Blocked,
        "the broker's quota is used up",
        "raise it for this user or client.id",
    ),
    (
        &[MessageSizeTooLarge, MessageBatchTooLarge],
        Kind::TooLarge,
        "the event is larger than the topic takes",
        "raise max.message.bytes of the topic",
    ),
    (
        &[InvalidRecord, InvalidMessage],
        Kind::Invalid,
        "the broker refuses the event as invalid",
        "check what the topic requires of a record, and the broker's log",
    ),
    (
        &[InvalidTimestamp],
        Kind::Other,
        "the broker does not take the time of the event",
        "are the clocks of this host and of the broker right?",
    ),
    (
        &[QueueFull],
        Kind::Other,
        "the client's queue is full",
        "are queue.buffering.max.messages and queue.buffering.max.kbytes in [kafka.properties] \
             smaller than one event?",
    ),
];

fn sort(code: RDKafkaErrorCode) -> (Kind, &'static str, &'static str) {
    let meaning = MEANINGS.iter().find(|(codes, ..)| codes.contains(&code));
    let other = (Kind::Other, "Kafka reports an error", "check the broker's log");
    meaning.map_or(other, |(_, kind, what, advice)| (*kind, *what, *advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_one_meaning() {
        use RDKafkaErrorCode::*;
        for (code, kind, is_for_good) in [
            (MessageSizeTooLarge, Kind::TooLarge, true),
            (MessageBatchTooLarge, Kind::TooLarge, true),
            (InvalidRecord, Kind::Invalid, true),
            (InvalidMessage, Kind::Invalid, true),
            (MessageTimedOut, Kind::Timeout, false),
            (RequestTimedOut, Kind::Timeout, false),
            (PurgeQueue, Kind::Timeout, false),
            (PurgeInflight, Kind::Timeout, false),
            (BrokerTransportFailure, Kind::Unreachable, false),
            (AllBrokersDown, Kind::Unreachable, false),
            (Resolve, Kind::Unreachable, false),
            (NetworkException, Kind::Unreachable, false),
            (SSL, Kind::Unreachable, false),
            (Authentication, Kind::Credentials, false),
            (SaslAuthenticationFailed, Kind::Credentials, false),
            (TopicAuthorizationFailed, Kind::Credentials, false),
            (ClusterAuthorizationFailed, Kind::Credentials, false),
            (UnknownTopic, Kind::Topology, false),
            (UnknownPartition, Kind::Topology, false),
            (UnknownTopicOrPartition, Kind::Topology, false),
            (InvalidReplicationFactor, Kind::Topology, false),
            (NotEnoughReplicas, Kind::Blocked, false),
            (NotEnoughReplicasAfterAppend, Kind::Blocked, false),
            (LeaderNotAvailable, Kind::Blocked, false),
            (KafkaStorageError, Kind::Blocked, false),
            (InvalidTimestamp, Kind::Other, false),
            (OutOfOrderSequenceNumber, Kind::Other, false),
            (Fatal, Kind::Other, false),
            (InvalidDifferentRecord, Kind::Other, false),
            (Unknown, Kind::Other, false),
        ] {
            assert_eq!((reason(code, None).kind, is_final(code)), (kind, is_for_good), "{code:?}");
        }
    }

    #[test]
    fn a_refusal_may_be_the_fault_of_others() {
        for code in
            [RDKafkaErrorCode::MessageSizeTooLarge, RDKafkaErrorCode::InvalidDifferentRecord]
        {
            assert!(is_of_the_batch(code));
        }
        assert!(!is_of_the_batch(RDKafkaErrorCode::MessageTimedOut));
    }
}
