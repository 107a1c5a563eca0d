//! The outbox's rules.
