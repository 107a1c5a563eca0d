//! One integration binary: the real program over real sockets, files and signals, one file per promise.
//! Nothing here sleeps to synchronise; tests wait for the condition.

#![expect(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test may unwrap, also outside of its own function; nothing depends on this crate"
)]

mod backend;
mod bridge;
mod broker;
mod browser;
mod http;
mod outbox_file;
#[allow(dead_code, reason = "the torture run does more with it")]
mod preload;
#[allow(dead_code, reason = "the torture run does more with it")]
mod proxy;
#[path = "../servers/mod.rs"]
mod servers;
mod small_disk;

mod abuse;
mod architecture;
mod bounds;
mod broker_tls;
mod brokers;
mod built;
mod calls;
mod clock;
mod closed_pipes;
mod colors;
mod command;
mod commands_page;
mod configuration;
mod connections;
mod consumers;
mod contracts;
mod crash;
mod cuts;
mod damage;
mod damage_everywhere;
mod delivered;
mod disk;
mod documents;
mod files;
mod http2;
mod identity;
mod input;
mod kafka;
mod limits;
mod log;
mod metrics;
mod migration;
mod nats;
mod one_process;
mod operator;
mod outages;
mod page;
mod passthrough;
mod platform;
mod power_cut;
mod rabbitmq;
mod reader;
mod readers;
mod recovery;
mod refused;
mod reload;
mod requests;
mod sdks;
mod secrets;
mod servers_end;
mod service;
mod shells;
#[cfg(feature = "otlp")]
mod spans;
mod stop;
mod stream;
mod taken_away;
mod tls;
mod unroutable;
