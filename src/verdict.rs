//! What a sink says about an event: its [`Verdict`], with the [`Reason`] and its [`Kind`]. Pure.

/// The outcome of one event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// Confirmed.
    Delivered,
    /// Not now, for a reason of this event's own: it is retried separately, and the queue moves on.
    Later(Reason),
    /// Refused as part of a batch, perhaps because of other events: the relay retries it alone, at once.
    Alone(Reason),
    /// Never: it becomes a dead letter.
    Refused(Reason),
    /// The sink accepts nothing now. The event keeps its place in the queue.
    Away(Reason),
}

impl Verdict {
    /// Why it was not delivered.
    pub(crate) fn reason(&self) -> Option<&Reason> {
        match self {
            Verdict::Delivered => None,
            Verdict::Later(reason)
            | Verdict::Alone(reason)
            | Verdict::Refused(reason)
            | Verdict::Away(reason) => Some(reason),
        }
    }
}

/// For tests: the verdict and the kind of its reason.
#[cfg(test)]
impl std::fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        let verdict = match self {
            Verdict::Delivered => return formatter.write_str("delivered"),
            Verdict::Later(_) => "later",
            Verdict::Alone(_) => "alone",
            Verdict::Refused(_) => "refused",
            Verdict::Away(_) => "away",
        };
        let kind = self.reason().map_or("", |reason| reason.kind.name());
        write!(formatter, "{verdict} {kind}")
    }
}

/// Why an event was not delivered, or a sink is not up.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reason {
    pub(crate) kind: Kind,
    /// For the operator: what happened, its likely cause, and what to do.
    pub(crate) text: String,
}

impl Reason {
    pub(crate) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Reason { kind, text: text.into() }
    }
}

/// The label `kind` of `publish_errors_total`: one closed set for all sinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// There is no connection to the broker.
    Unreachable,
    /// Sent, but not confirmed in time: it may have arrived.
    Timeout,
    /// The broker does not let this user connect, or do this.
    Credentials,
    /// Topic, exchange or stream is missing, or is not what the bridge needs.
    Topology,
    /// The broker accepts nothing now: an alarm, or too few replicas.
    Blocked,
    /// The broker received it and rejected it: a limit is reached.
    Rejected,
    /// No queue is bound for it.
    Unroutable,
    /// Too large for the broker, permanently.
    TooLarge,
    /// Invalid in itself, permanently.
    Invalid,
    Other,
}

impl Kind {
    pub(crate) const ALL: [Kind; 10] = [
        Kind::Unreachable,
        Kind::Timeout,
        Kind::Credentials,
        Kind::Topology,
        Kind::Blocked,
        Kind::Rejected,
        Kind::Unroutable,
        Kind::TooLarge,
        Kind::Invalid,
        Kind::Other,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Unreachable => "unreachable",
            Kind::Timeout => "timeout",
            Kind::Credentials => "credentials",
            Kind::Topology => "topology",
            Kind::Blocked => "blocked",
            Kind::Rejected => "rejected",
            Kind::Unroutable => "unroutable",
            Kind::TooLarge => "too_large",
            Kind::Invalid => "invalid",
            Kind::Other => "other",
        }
    }
}
