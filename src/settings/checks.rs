//! What no section can check alone: values of several sections that contradict each other, and what a bridge
//! needs on this host.

use std::net::{IpAddr, SocketAddr};

use humantime::format_duration;

use super::Settings;
use crate::callback::PLATFORM_WAITS;
use crate::config::Keys;
use crate::config::value::shown;
use crate::tls;

/// An empty outbox, and room to breathe.
const LEAST_OUTBOX: u64 = 128 << 10;

/// An event can be twice as long as its callback.
const BODIES: u64 = 2;

/// Values that cannot all be meant.
pub(super) fn together(settings: &Settings, keys: &mut Keys) {
    let (ingress, outbox) = (&settings.ingress, &settings.outbox);
    let listen = settings.admin.listen;
    if keys.are_sound(&["ingress.listen", "admin.listen"]) && collide(ingress.listen, listen) {
        let reason =
            format!("{listen} collides with ingress.listen, {}: take another port", ingress.listen);
        keys.refuse("admin.listen", &reason);
    }
    if settings.passthrough.is_at(ingress.listen) {
        let reason = "is the bridge's own public listener: callbacks would go round in a circle";
        keys.refuse("passthrough.url", reason);
    }
    let (by, to_read) = (ingress.ack_deadline, ingress.request_timeout);
    if by > PLATFORM_WAITS {
        let [by, waits] = [by, PLATFORM_WAITS].map(format_duration);
        let reason = format!("{by} is longer than the platform waits for an answer, {waits}");
        keys.refuse("ingress.ack_deadline", &reason);
    }
    if to_read > by && keys.is_set("ingress.request_timeout") {
        let [by, to_read] = [by, to_read].map(format_duration);
        let reason = format!(
            "{to_read} to read a request is longer than ingress.ack_deadline, {by}, to answer it"
        );
        keys.refuse("ingress.request_timeout", &reason);
    }
    let least = LEAST_OUTBOX + BODIES * ingress.max_body_bytes;
    let are_sound = keys.are_sound(&["outbox.max_bytes", "ingress.max_body_bytes"]);
    if are_sound && outbox.max_bytes < least {
        let reason = format!(
            "{} is less than {}, the least that works: {} and {BODIES} times ingress.max_body_bytes",
            shown(outbox.max_bytes),
            shown(least),
            shown(LEAST_OUTBOX)
        );
        keys.refuse("outbox.max_bytes", &reason);
    }
}

/// Files and directories that a bridge would miss at its start. Changes nothing.
pub(super) fn host(settings: &Settings, keys: &mut Keys) {
    if let Some(Err(error)) = settings.ingress.tls.as_ref().map(tls::check) {
        keys.refuse("ingress.tls.cert_file", &format!("{error:#}"));
    }
    if keys.are_sound(&["outbox.path"])
        && let Some(reason) = settings.outbox.fault_of_path()
    {
        keys.refuse("outbox.path", &reason);
    }
}

/// Whether two listeners cannot have these addresses at once.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let [a, b] = [one, other].map(|address| address.ip().to_canonical());
    one.port() == other.port() && one.port() != 0 && (a == b || covers(a, b) || covers(b, a))
}

/// Whether `all` stands for every address of a kind, and `one` is of that kind. The one of IPv6 stands for
/// those of IPv4 as well.
fn covers(all: IpAddr, one: IpAddr) -> bool {
    all.is_unspecified() && (all.is_ipv6() || one.is_ipv4())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_collide_if_both_stand_for_the_same_one() {
        let check = |one: &str, other: &str, expected: bool| {
            let [one, other] = [one, other].map(|text| text.parse().unwrap());
            assert_eq!(collide(one, other), expected, "{one} {other}");
            assert_eq!(collide(other, one), expected, "{other} {one}");
        };
        check("127.0.0.1:8080", "127.0.0.1:8080", true);
        check("0.0.0.0:8080", "127.0.0.1:8080", true);
        check("0.0.0.0:8080", "0.0.0.0:8080", true);
        check("[::]:8080", "127.0.0.1:8080", true);
        check("[::]:8080", "[::1]:8080", true);
        check("[::]:8080", "0.0.0.0:8080", true);
        check("[::ffff:127.0.0.1]:8080", "127.0.0.1:8080", true);
        check("127.0.0.1:8080", "127.0.0.1:8081", false);
        check("127.0.0.1:8080", "127.0.0.2:8080", false);
        check("127.0.0.1:8080", "[::1]:8080", false);
        check("0.0.0.0:8080", "[::1]:8080", false);
        check("127.0.0.1:0", "127.0.0.1:0", false);
        check("0.0.0.0:0", "0.0.0.0:0", false);
    }
}
