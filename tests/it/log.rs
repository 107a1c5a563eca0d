//! The log: nobody has to read it for callbacks to be answered, and it shows no secret, whatever its level.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;

use serde_json::Value;

use crate::bridge::{APPS, Bridge, TOKEN, TOPIC_CREATED, body, eventually, program, signed};
use crate::http;

/// A bridge whose log is read until it listens, and then only if somebody wants to.
struct Unread {
    child: Child,
    stderr: BufReader<ChildStderr>,
    ingress: SocketAddr,
    admin: SocketAddr,
    _home: tempfile::TempDir,
}

impl Unread {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut command = program();
        let outbox = format!("outbox.path={}", home.path().join("outbox.db").display());
        for setting in [
            &format!("apps={APPS}"),
            "ingress.listen=127.0.0.1:0",
            "admin.listen=127.0.0.1:0",
            "log.format=json",
            "log.level=debug",
            &outbox,
        ] {
            command.arg("--set").arg(setting);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut address = |message: &str| {
            loop {
                let mut line = String::new();
                assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended");
                let line: Value = serde_json::from_str(&line).unwrap();
                if line["fields"]["message"] == message {
                    return line["fields"]["address"].as_str().unwrap().parse().unwrap();
                }
            }
        };
        let ingress = address("listening for callbacks");
        let admin = address("private listener ready");
        Unread { child, stderr, ingress, admin, _home: home }
    }

    fn dropped_lines(&self) -> u64 {
        let text = http::get(self.admin, "/metrics", &[]).body;
        let name = "topic_bridge_log_lines_dropped_total ";
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
    }

    fn load(&self, count: u32) {
        let sent = program()
            .args(["send", &format!("http://{}/", self.ingress), "--token", TOKEN])
            .args(["--count", &count.to_string(), "--concurrency", "16"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(sent.success(), "not all were answered OK");
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Release 0.1.0 stopped at the first line that the pipe did not take: it answered nothing any more.
#[test]
fn a_log_that_nobody_reads_holds_up_nothing() {
    let mut bridge = Unread::start();
    while bridge.dropped_lines() == 0 {
        bridge.load(2000);
    }
    let reply = http::post(bridge.ingress, &signed(TOPIC_CREATED, &[]), body("last").as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");

    // Whoever reads again is told how much is missing.
    let dropped = bridge.dropped_lines();
    let told = loop {
        let mut line = String::new();
        assert!(bridge.stderr.read_line(&mut line).unwrap() > 0);
        let line: Value = serde_json::from_str(&line).unwrap();
        if line["fields"]["message"].as_str().is_some_and(|text| text.contains("were dropped")) {
            break line["fields"]["lines"].as_u64().unwrap();
        }
    };
    assert!(told >= dropped, "{told} of {dropped}");
}

#[test]
fn a_bridge_whose_log_nobody_reads_ends_when_asked_to() {
    let mut bridge = Unread::start();
    while bridge.dropped_lines() == 0 {
        bridge.load(2000);
    }
    let pid = bridge.child.id().to_string();
    assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
    let status = eventually("it ends", || bridge.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn the_last_lines_are_written_before_the_end() {
    let mut bridge = Bridge::start(&[("log.level", "debug")]);
    for number in 0..50 {
        assert_eq!(bridge.call(&body(&format!("topic {number}"))).status, 200);
    }
    bridge.stop();
    assert_eq!(bridge.logged("took a callback").len(), 50);
    assert!(bridge.log().lines().last().unwrap().contains("\"stopped\""), "{}", bridge.log());
}

const SECRET: &str = "s3cr3t-and-wrong";

/// Says something to each client until it has heard `enough`, then hangs up. Counts those that got so far.
fn server(greeting: &'static [u8], enough: &'static [u8]) -> (SocketAddr, impl Fn() -> usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (heard, count) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            if hears(&mut client, greeting, enough) && heard.send(()).is_err() {
                return;
            }
        }
    });
    (address, move || count.try_iter().count())
}

fn hears(client: &mut TcpStream, greeting: &[u8], enough: &[u8]) -> bool {
    let mut heard = Vec::new();
    let mut bytes = [0; 4096];
    if client.write_all(greeting).is_err() {
        return false;
    }
    while !heard.windows(enough.len()).any(|part| part == enough) {
        match client.read(&mut bytes) {
            Ok(read) if read > 0 => heard.extend_from_slice(&bytes[..read]),
            _ => return false,
        }
    }
    true
}

/// As a broker's first frame: `Connection.Start` of AMQP 0-9-1, with the mechanism PLAIN.
const AMQP_START: &[u8] =
    b"\x01\0\0\0\0\0\x1c\0\x0a\0\x0a\0\x09\0\0\0\0\0\0\0\x05PLAIN\0\0\0\x05en_US\xce";
const NATS_INFO: &[u8] =
    b"INFO {\"server_id\":\"x\",\"server_name\":\"x\",\"version\":\"2.12.0\",\"go\":\"x\",\
    \"host\":\"127.0.0.1\",\"port\":4222,\"headers\":true,\"max_payload\":1048576,\"proto\":1,\
    \"auth_required\":true}\r\n";

#[test]
fn no_broker_client_logs_a_credential() {
    let check = |greeting, enough, settings: &dyn Fn(SocketAddr) -> Vec<(&'static str, String)>| {
        for level in ["debug", "trace"] {
            let (address, heard) = server(greeting, enough);
            let settings = settings(address);
            let mut settings: Vec<_> =
                settings.iter().map(|(key, value)| (*key, &**value)).collect();
            settings.push(("log.level", level));
            let mut bridge = Bridge::start(&settings);
            assert_eq!(bridge.call(&body("topic")).status, 200);
            let mut attempts = 0;
            eventually("it has tried to log in, and once more", || {
                attempts += heard();
                (attempts >= 2).then_some(())
            });
            bridge.signal("KILL");
            bridge.ended();
            let log = bridge.log();
            assert!(log.contains("took a callback"), "the level is {level}: {log}");
            let shown = log.lines().find(|line| line.contains("s3cr3t"));
            assert_eq!(shown, None, "{settings:?}");
        }
    };
    check(NATS_INFO, b"CONNECT", &|address| {
        vec![("sink", "nats".into()), ("nats.servers", format!("nats://bridge:{SECRET}@{address}"))]
    });
    check(NATS_INFO, b"CONNECT", &|address| {
        vec![
            ("sink", "nats".into()),
            ("nats.servers", format!("nats://{address}")),
            ("nats.token", SECRET.into()),
        ]
    });
    check(AMQP_START, b"PLAIN", &|address| {
        vec![
            ("sink", "rabbitmq".into()),
            ("rabbitmq.url", format!("amqp://bridge:{SECRET}@{address}/%2f")),
        ]
    });
    check(b"", b"librdkafka", &|address| {
        vec![
            ("sink", "kafka".into()),
            ("kafka.brokers", address.to_string()),
            ("kafka.properties.security.protocol", "SASL_PLAINTEXT".into()),
            ("kafka.properties.sasl.mechanism", "PLAIN".into()),
            ("kafka.properties.sasl.username", "bridge".into()),
            ("kafka.properties.sasl.password", SECRET.into()),
            ("kafka.properties.debug", "all".into()),
        ]
    });
}
