//! What lapin's errors and RabbitMQ's reply codes mean for delivery, and what an operator can do about
//! them.

use std::io;
use std::time::Duration;

use lapin::{Error, ErrorKind};

use crate::verdict::{Kind, Reason};

/// Any error on an open connection.
pub(super) fn sort(error: &Error) -> Reason {
    let (kind, text) = match error.kind() {
        ErrorKind::ProtocolError(error) => answer(error.get_id(), error.get_message().as_str()),
        ErrorKind::IOError(error) => {
            (io_error(error).0, format!("the connection to RabbitMQ is lost: {error}"))
        }
        ErrorKind::MissingHeartbeatError => {
            let text =
                "RabbitMQ is silent, not even heartbeats come: it hangs, or the network is cut";
            (Kind::Unreachable, text.into())
        }
        ErrorKind::InvalidChannel(_)
        | ErrorKind::InvalidChannelState(..)
        | ErrorKind::InvalidConnectionState(_)
        | ErrorKind::RuntimeShutdownError(_) => {
            (Kind::Unreachable, format!("the connection to RabbitMQ is lost: {error}"))
        }
        ErrorKind::InvalidProtocolVersion(_) | ErrorKind::ParsingError(_) => {
            let text =
                format!("what answers is not RabbitMQ: {error}; look at rabbitmq.url's port");
            (Kind::Unreachable, text)
        }
        ErrorKind::AuthProviderError(_) => (Kind::Credentials, error.to_string()),
        _ => (Kind::Other, error.to_string()),
    };
    Reason::new(kind, text)
}

/// An error before there is a connection; `address` is the target.
pub(super) fn sort_at_connecting(error: &Error, address: &str) -> Reason {
    let Reason { kind, text } = match error.kind() {
        ErrorKind::IOError(error) => {
            let (kind, advice) = io_error(error);
            Reason::new(kind, format!("{error}{advice}"))
        }
        _ => sort(error),
    };
    Reason::new(kind, format!("cannot connect to {address}: {text}"))
}

/// The broker did not answer at all.
pub(super) fn silent(patience: Duration) -> Reason {
    let text = format!("RabbitMQ has not answered within {patience:?}: it hangs or is overloaded");
    Reason::new(Kind::Unreachable, text)
}

/// The broker closed the channel or the connection, with a code and a text.
fn answer(code: u16, says: &str) -> (Kind, String) {
    let has = |part| says.contains(part);
    let (kind, advice) = match code {
        311 => (Kind::TooLarge, "raise max_message_size there, or lower ingress.max_body_bytes"),
        406 if has("message size") => {
            (Kind::TooLarge, "raise max_message_size there, or lower ingress.max_body_bytes")
        }
        320 => (Kind::Unreachable, "it is being stopped, or somebody closed the connection"),
        402 => (Kind::Topology, "look at the virtual host in rabbitmq.url"),
        403 if has("Login") || has("login") => (
            Kind::Credentials,
            "look at rabbitmq.username and password; RabbitMQ lets guest in only from its own host",
        ),
        403 => (Kind::Credentials, "grant it with `rabbitmqctl set_permissions`"),
        404 => (Kind::Topology, "create it, or set rabbitmq.declare = \"active\""),
        405 | 406 => (Kind::Topology, "it is not declared as the bridge needs it"),
        506 => (Kind::Blocked, "it has run out of something, see its log"),
        530 if has("limit") => (Kind::Rejected, "raise the limit there"),
        530 if has("refused for user") => (
            Kind::Credentials,
            "grant access to the virtual host with `rabbitmqctl set_permissions -p`",
        ),
        530 => (Kind::Topology, "look at the virtual host in rabbitmq.url"),
        _ => (Kind::Other, "see its log"),
    };
    (kind, format!("RabbitMQ says {says}: {advice}"))
}

/// The broker's maximum message size, taken from its error about a larger one: "message size 9000000 is
/// larger than configured max size 8000000".
pub(super) fn size_limit(text: &str) -> Option<usize> {
    let (_, after) = text.split_once("max size ")?;
    let digits = after.split(|char: char| !char.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// What a network or TLS error means, and what to check if it happens while connecting.
fn io_error(error: &io::Error) -> (Kind, &'static str) {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset};
    let text = error.to_string();
    if text.contains("invalid peer certificate") {
        let advice = "; does rabbitmq.tls.ca_file name its authority, and rabbitmq.url its name?";
        (Kind::Unreachable, advice)
    } else if text.contains("received fatal alert") {
        (Kind::Credentials, "; does it want a certificate, rabbitmq.tls.cert_file and key_file?")
    } else if matches!(error.kind(), ConnectionAborted | ConnectionReset)
        || text.contains("corrupt message")
    {
        let advice =
            "; does the port want TLS (amqps://) or not (amqp://), or another certificate?";
        (Kind::Unreachable, advice)
    } else {
        (Kind::Unreachable, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::protocol::AMQPError;
    use lapin::{ChannelState, ConnectionState};

    #[test]
    fn each_error_has_its_kind() {
        let says = |code, text: &str| {
            Error::from(ErrorKind::ProtocolError(AMQPError::from_id(code, text.into()).unwrap()))
        };
        let io = |kind, text: &'static str| Error::from(io::Error::new(kind, text));
        use io::ErrorKind::{ConnectionRefused, ConnectionReset, InvalidData};
        for (error, kind) in [
            (says(311, "CONTENT_TOO_LARGE"), Kind::TooLarge),
            (says(320, "CONNECTION_FORCED - broker forced connection closure"), Kind::Unreachable),
            (says(403, "ACCESS_REFUSED - Login was refused using PLAIN"), Kind::Credentials),
            (says(403, "ACCESS_REFUSED - access to exchange 'x' refused"), Kind::Credentials),
            (says(404, "NOT_FOUND - no exchange 'x' in vhost '/'"), Kind::Topology),
            (says(405, "RESOURCE_LOCKED - exclusive"), Kind::Topology),
            (says(406, "PRECONDITION_FAILED - inequivalent arg 'type'"), Kind::Topology),
            (
                says(
                    406,
                    "PRECONDITION_FAILED - message size 9 is larger than configured max size 8",
                ),
                Kind::TooLarge,
            ),
            (says(504, "CHANNEL_ERROR"), Kind::Other),
            (says(506, "RESOURCE_ERROR"), Kind::Blocked),
            (says(530, "NOT_ALLOWED - vhost x not found"), Kind::Topology),
            (
                says(530, "NOT_ALLOWED - access to vhost 'x' refused for user 'y'"),
                Kind::Credentials,
            ),
            (
                says(
                    530,
                    "NOT_ALLOWED - access to vhost '/' refused for user 'y': connection limit (1) is \
                     reached",
                ),
                Kind::Rejected,
            ),
            (says(541, "INTERNAL_ERROR"), Kind::Other),
            (io(ConnectionRefused, "connection refused"), Kind::Unreachable),
            (io(ConnectionReset, "connection reset by peer"), Kind::Unreachable),
            (io(InvalidData, "invalid peer certificate: UnknownIssuer"), Kind::Unreachable),
            (io(InvalidData, "received fatal alert: CertificateRequired"), Kind::Credentials),
            (ErrorKind::MissingHeartbeatError.into(), Kind::Unreachable),
            (ErrorKind::InvalidChannelState(ChannelState::Closed, "x").into(), Kind::Unreachable),
            (ErrorKind::InvalidConnectionState(ConnectionState::Error).into(), Kind::Unreachable),
            (ErrorKind::AuthProviderError("x".into()).into(), Kind::Credentials),
            (ErrorKind::ChannelsLimitReached.into(), Kind::Other),
        ] {
            let reason = sort(&error);
            assert_eq!(reason.kind, kind, "{}", reason.text);
        }
    }
}
