//! A full outbox and a full disk: refused with 503, nothing lost, and taking resumes by itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bridge::{Bridge, TOPIC_CREATED, body, eventually, signed};
use crate::http::{Connection, Reply};

/// Sends distinct topics until one is refused; the answered ones and the refusal.
fn fill(bridge: &Bridge, prefix: &str) -> (Vec<String>, Reply) {
    let mut connection = Connection::open(bridge.ingress);
    let name = "x".repeat(8000);
    let mut answered = Vec::new();
    for number in 0..20_000 {
        let topic_id = format!("{prefix}{number}");
        let body = body(&topic_id).replace("MyFirstTopic", &name);
        let reply = connection.request("POST", &signed(TOPIC_CREATED, &[]), &[], body.as_bytes());
        if reply.status != 200 {
            return (answered, reply);
        }
        answered.push(topic_id);
    }
    panic!("never refused");
}

fn check_refusal(bridge: &Bridge, reply: &Reply, reason: &str) {
    assert_eq!(reply.status, 503);
    assert_eq!(reply.header("retry-after"), Some("1"));
    let expected = format!(r#"{{"ActionStatus":"FAIL","ErrorInfo":"{reason}","ErrorCode":50301}}"#);
    assert_eq!(reply.body, expected);
    let (status, readiness) = bridge.readiness();
    assert_eq!((status, &readiness["outbox"]["reason"]), (503, &reason.into()));
    // The log's lines are read by a thread of their own, which may be behind.
    eventually("the log says so", || {
        bridge.log().contains("callbacks are answered 503").then_some(())
    });
}

fn resumes(bridge: &Bridge) {
    eventually("it is ready again", || (bridge.readiness().0 == 200).then_some(()));
    assert_eq!(bridge.call(&body("resumed")).status, 200);
}

#[test]
fn a_full_outbox_refuses_loses_nothing_and_resumes_with_more_room() {
    let bridge = Bridge::start(&[("outbox.max_bytes", "1 MiB")]);
    let (answered, refusal) = fill(&bridge, "t");
    assert!(answered.len() > 50, "only {} fit", answered.len());
    check_refusal(&bridge, &refusal, "the outbox is full");
    assert_eq!(bridge.topic_ids(), answered);

    let retried = bridge.call(&body("t0").replace("MyFirstTopic", "any"));
    assert_eq!(retried.status, 200, "a repeat of what is durable needs no room");
    let misfit = bridge.call(&"not json".repeat(2000));
    assert_eq!(misfit.status, 503, "nor is anything else kept");

    let bridge = bridge.restart(&[("outbox.max_bytes", "2 MiB")]);
    resumes(&bridge);
    let found = bridge.topic_ids();
    assert_eq!((&found[..answered.len()], found.len()), (&answered[..], answered.len() + 1));
}

#[test]
fn a_full_outbox_resumes_when_the_history_has_served_its_time() {
    let bridge = Bridge::start(&[
        ("outbox.max_bytes", "1 MiB"),
        ("outbox.history", "3s"),
        ("outbox.dedupe_window", "1s"),
    ]);
    let (_, refusal) = fill(&bridge, "t");
    check_refusal(&bridge, &refusal, "the outbox is full");
    resumes(&bridge);
    eventually("all of it is gone", || bridge.events().is_empty().then_some(()));
    let again = fill(&bridge, "u").0;
    assert!(again.len() > 50, "the space of {} events was used again", again.len());
}

/// A small file system of its own, gone at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        std::fs::create_dir(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs", at.to_str().unwrap()])
            .status();
        assert!(mounted.unwrap().success(), "a small tmpfs cannot be mounted: run as root");
        SmallDisk(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_loses_nothing_and_resumes_with_room() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&folder.path().join("disk"));
    let outbox = disk.0.join("outbox.db");
    let bridge = Bridge::start(&[("outbox.path", outbox.to_str().unwrap())]);
    assert_eq!(bridge.call(&body("first")).status, 200);
    let ballast = disk.0.join("ballast");
    std::fs::write(&ballast, vec![0; 900_000]).unwrap();

    let (answered, refusal) = fill(&bridge, "t");
    check_refusal(&bridge, &refusal, "the disk is full");
    let mut expected = vec!["first".to_owned()];
    expected.extend(answered);
    assert_eq!(bridge.topic_ids(), expected);

    std::fs::remove_file(&ballast).unwrap();
    resumes(&bridge);
    expected.push("resumed".into());
    assert_eq!(bridge.topic_ids(), expected);

    let bridge = bridge.restart(&[]);
    assert_eq!(bridge.topic_ids(), expected, "the same after a kill on a small disk");
}

#[test]
fn history_goes_when_it_is_long_enough_and_its_space_is_given_back() {
    let bridge = Bridge::start(&[("outbox.history_events", "100")]);
    let mut connection = Connection::open(bridge.ingress);
    let name = "x".repeat(20_000);
    for number in 0..2000 {
        let body = body(&format!("t{number}")).replace("MyFirstTopic", &name);
        let reply = connection.request("POST", &signed(TOPIC_CREATED, &[]), &[], body.as_bytes());
        assert_eq!(reply.status, 200);
    }
    let kept = eventually("only the newest are kept", || {
        let kept = bridge.topic_ids();
        (kept.len() == 100).then_some(kept)
    });
    assert_eq!((kept[0].as_str(), kept[99].as_str()), ("t1900", "t1999"));
    eventually("the file is small again", || {
        let length = std::fs::metadata(bridge.outbox()).unwrap().len();
        let used = bridge.metric("topic_bridge_outbox_bytes");
        (length < 12_000_000 && used < 4_000_000.0).then_some(())
    });
}
