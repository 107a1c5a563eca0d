//! topic-bridge takes a chat platform's topic-created callbacks, makes each durable, answers, and
//! delivers a normalized event.
//!
//! ```text
//!  platform ── POST /?SdkAppid=…&CallbackCommand=…&Sign=…&RequestTime=… ── body
//!     │
//!     ▼  ingress    limits → which app? → authentic? → which command? → parse
//!     │             other commands: OK, counted, not published
//!     ▼  outbox     many waiters, one transaction, one sync  ──────▶ 200 {"ActionStatus":"OK",…}
//!     │             an SQLite file; its writer is one named thread
//!     ▼  relay      read a batch in order → sink → settle each event
//!     ▼  sink       confirms before an event counts as delivered
//! ```
//!
//! Reading order: `time`, `secret`, `config` and `verdict` are what everything else uses; `callback`, `answer`,
//! `signature`, `message`, `routing` and `event` are pure; `outbox`, `sink`, `relay` and `ingress` are the path of
//! a callback, from the inside out; `metrics`, `log`, `tasks`, `tls`, `server` and `admin` serve and show it;
//! `settings` and `app` put everything together; `cli` holds every subcommand except `serve`. More in
//! `docs/architecture.md`.

#![cfg_attr(
    not(all(feature = "kafka", feature = "nats", feature = "rabbitmq")),
    allow(dead_code, unused_imports, reason = "what only the brokers left out would use")
)]

mod admin;
mod answer;
pub mod app;
mod callback;
pub mod cli;
pub mod config;
mod event;
#[cfg(test)]
mod fuzz;
mod ingress;
pub mod log;
mod message;
mod metrics;
mod notify;
mod outbox;
mod passthrough;
mod relay;
pub mod reload;
mod requests;
mod routing;
mod schema;
mod secret;
mod server;
pub mod settings;
mod signature;
mod sink;
mod spans;
mod tasks;
mod time;
mod tls;
mod trace;
mod verdict;
mod version;
mod watched;
