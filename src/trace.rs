//! W3C trace context: which trace a callback and its event belong to, as the header `traceparent` of a request
//! and of a message says it. Pure.

use std::fmt;

use uuid::Uuid;

/// A `traceparent`: the trace, the span in it that caused what comes next, and whether the trace is recorded.
/// Shown as version `00` of the header.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct TraceContext {
    pub(crate) trace: TraceId,
    pub(crate) span: u64,
    pub(crate) flags: u8,
}

/// Shown as 32 hexadecimal digits, as everywhere where traces are looked up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct TraceId(pub(crate) u128);

/// The bit of the flags that says that the trace is recorded.
const SAMPLED: u8 = 1;

impl TraceContext {
    /// Reads a header. `None` if it is not valid by the rules of the W3C recommendation; a version later than
    /// this one is read as far as it is known.
    pub(crate) fn parse(header: &str) -> Option<Self> {
        let is_hex =
            |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let parts: Vec<_> = header.trim().split('-').collect();
        let [version, trace, span, flags, ..] = parts[..] else { return None };
        let lengths = [version.len(), trace.len(), span.len(), flags.len()];
        let is_version_known = version != "00" || parts.len() == 4;
        let is_valid = lengths == [2, 32, 16, 2]
            && [version, trace, span, flags].into_iter().all(is_hex)
            && version != "ff"
            && is_version_known;
        let context = TraceContext {
            trace: TraceId(u128::from_str_radix(trace, 16).ok()?),
            span: u64::from_str_radix(span, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()?,
        };
        (is_valid && context.trace.0 != 0 && context.span != 0).then_some(context)
    }

    /// That of an event whose callback brought none. The trace id is the event's id, so it is the same on every
    /// attempt; the consumer decides whether to record it.
    pub(crate) fn of_event(id: Uuid) -> Self {
        let (_, low) = id.as_u64_pair(); // its variant bits are set, so it is not zero
        TraceContext { trace: TraceId(id.as_u128()), span: low, flags: SAMPLED }
    }

    pub(crate) fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let TraceContext { trace, span, flags } = self;
        write!(formatter, "00-{trace}-{span:016x}-{flags:02x}")
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_valid_trace_context_goes_along() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let (zero_trace, zero_span) = ("0".repeat(32), "0".repeat(16));
        for (header, expected) in [
            (good.to_owned(), Some(good)),
            (format!(" {good} "), Some(good)),
            (format!("{good}-more"), None),
            (good.to_uppercase(), None),
            (good.replace("00-", "ff-"), None),
            (good.replace("00f0", "+0f0"), None),
            (good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &zero_trace), None),
            (good.replace("00f067aa0ba902b7", &zero_span), None),
            ("00-é".into(), None),
            (String::new(), None),
            // A newer version may have more, and goes along as the one that is known.
            (format!("cc{}-what-comes", &good[2..]), Some(good)),
        ] {
            let found = TraceContext::parse(&header).map(|context| context.to_string());
            assert_eq!(found.as_deref(), expected, "{header}");
        }
    }

    #[test]
    fn an_events_own_trace_is_named_after_it() {
        let id = Uuid::parse_str("0b0f3a5e-7d0c-5f3e-9a5e-0a0b0c0d0e0f").unwrap();
        let own = TraceContext::of_event(id);
        assert_eq!(own.to_string(), "00-0b0f3a5e7d0c5f3e9a5e0a0b0c0d0e0f-9a5e0a0b0c0d0e0f-01");
        assert_eq!(TraceContext::parse(&own.to_string()), Some(own));
        assert!(own.is_sampled());
    }
}
