//! `topic-bridge --version`: everything that a report of a fault should name.

use std::fmt::Write as _;

use crate::{outbox, sink, version};

/// What comes after the program's name.
pub(super) fn long() -> String {
    let features: Vec<_> = [
        ("kafka", cfg!(feature = "kafka")),
        ("nats", cfg!(feature = "nats")),
        ("otlp", cfg!(feature = "otlp")),
        ("rabbitmq", cfg!(feature = "rabbitmq")),
    ]
    .into_iter()
    .filter_map(|(name, is_in)| is_in.then_some(name))
    .collect();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
    let tls = format!("rustls {}, ring {}", version::RUSTLS, version::RING);
    let mut lines = vec![
        ("commit", version::COMMIT.to_owned()),
        ("features", features),
        ("SQLite", outbox::sqlite_version().to_owned()),
    ];
    if let Some(librdkafka) = sink::librdkafka_version() {
        lines.push(("librdkafka", format!("{librdkafka}, OpenSSL {}", version::OPENSSL)));
    }
    lines.extend([("TLS", tls), ("Rust", version::RUSTC.to_owned())]);
    let mut text = version::NUMBER.to_owned();
    for (name, value) in lines {
        let _ = write!(text, "\n{name:<11} {value}"); // writing to memory cannot fail
    }
    text
}
