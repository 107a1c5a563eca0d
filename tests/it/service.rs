//! Under a service manager: it is told when the bridge serves, lives and stops; and a health check needs nothing but
//! the program.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::bridge::{Bridge, body, eventually, program, run};

/// What systemd would have been told, as lines.
struct Told(UnixDatagram);

impl Told {
    fn next(&self) -> String {
        let mut datagram = [0; 512];
        let length = self.0.recv(&mut datagram).unwrap();
        String::from_utf8(datagram[..length].to_vec()).unwrap()
    }

    /// Waits for such a line.
    fn until(&self, line: &str) {
        while !self.next().lines().any(|told| told == line) {}
    }
}

#[test]
fn systemd_is_told_that_the_bridge_serves_lives_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let told = Told(UnixDatagram::bind(&socket).unwrap());
    told.0.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut bridge = Bridge::start_with(&[], |command| {
        command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "100000");
    });
    told.until("READY=1");
    assert_eq!(bridge.call(&body("after READY=1")).status, 200);
    for _ in 0..3 {
        told.until("WATCHDOG=1");
    }
    bridge.signal("TERM");
    told.until("STOPPING=1");
    assert_eq!(bridge.ended().code(), Some(0), "{}", bridge.log());
}

/// `systemctl start` must not hang or fail on a socket that is gone.
#[test]
fn a_service_manager_that_cannot_be_reached_is_reported_and_does_not_matter() {
    let mut bridge = Bridge::start_with(&[], |command| {
        command.env("NOTIFY_SOCKET", "/nonexistent/notify");
    });
    assert_eq!(bridge.call(&body("served all the same")).status, 200);
    bridge.stop();
    assert!(!bridge.logged("cannot reach the service manager").is_empty(), "{}", bridge.log());
}

#[test]
fn a_health_check_needs_only_the_program() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut bridge = Bridge::start(&[]);
    let admin = bridge.admin.to_string();
    let ask = |admin: &str, ready: &str| {
        let set = format!("admin.listen={admin}");
        run(program().args(["--set", &set, "check", ready]))
    };
    for ready in ["--ready", "--ready=accepting", "--ready=delivering"] {
        let ended = eventually("it is ready", || {
            let ended = ask(&admin, ready);
            (ended.code == Some(0)).then_some(ended)
        });
        assert!(ended.stdout.contains(r#""status":"ready""#), "{ended:?}");
        assert_eq!(ended.stderr, "", "a check that passes is silent");
    }
    let ended = ask(&free, "--ready");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("cannot reach the private listener"), "{ended:?}");
    let ended = ask("127.0.0.1:0", "--ready");
    assert!(ended.code == Some(1) && ended.stderr.contains("free port"), "{ended:?}");
    bridge.stop();

    let bridge = Bridge::start(&[("ingress.drain_delay", "10m")]);
    let admin = bridge.admin.to_string();
    bridge.signal("TERM");
    eventually("it is stopping", || bridge.log().contains("stopping").then_some(()));
    let ended = eventually("it is not ready", || {
        let ended = ask(&admin, "--ready");
        (ended.code == Some(1)).then_some(ended)
    });
    assert!(ended.stderr.contains("not_ready (503): ingress: the bridge is stopping"), "{ended:?}");
}

/// A broker that is away must not make a container's engine restart the bridge, which keeps accepting.
#[cfg(feature = "nats")]
#[test]
fn without_its_broker_the_bridge_accepts_and_does_not_deliver() {
    let bridge = Bridge::start(&[("sink", "nats"), ("nats.servers", r#"["nats://127.0.0.1:1"]"#)]);
    let set = format!("admin.listen={}", bridge.admin);
    let ask = |ready: &str| run(program().args(["--set", &set, "check", ready]));
    assert_eq!(ask("--ready").code, Some(0));
    let ended = ask("--ready=delivering");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("degraded (200): sink: "), "{ended:?}");
}
