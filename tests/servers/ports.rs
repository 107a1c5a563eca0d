//! Free ports.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

/// A port of loopback where nobody listens, each only once. It is outside the range of outgoing connections: one
/// inside it a client that reconnects while the broker is down may take itself, and the broker could
/// not come back.
pub(crate) fn free() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let lowest = range.ok().and_then(|range| range.split_whitespace().next()?.parse().ok());
    let top: u16 = lowest.unwrap_or(32768);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut ports = std::iter::repeat_with(|| fastrand::u16(10_000.min(top / 2)..top)).take(500);
    ports.find(|port| is_free(*port) && given.insert(*port)).expect("one port of 500 is free")
}
