//! A full outbox, a full disk, an exhausted quota and a slow disk: callbacks are refused with 503,
//! nothing is lost, and the bridge accepts callbacks again without a restart.

use crate::bridge::{Bridge, TOPIC_CREATED, body, eventually, is_delivered, signed};
use crate::broker::{self, Kind, Verb};
use crate::calls::topic_ids;
use crate::http::{Connection, Reply};
use crate::preload::faulty_disk;
use crate::small_disk::SmallDisk;

/// Sends distinct topics, with names so long, until one is refused; the answered ones and the refusal.
pub(crate) fn fill(bridge: &Bridge, prefix: &str, length: usize) -> (Vec<String>, Reply) {
    let mut connection = Connection::open(bridge.ingress);
    let name = "x".repeat(length);
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

/// What the platform is told and what the operator is told are two texts, or one.
pub(crate) fn check_refusal(bridge: &Bridge, reply: &Reply, error: &str, reason: &str) {
    assert_eq!(reply.status, 503);
    assert_eq!(reply.header("retry-after"), Some("1"));
    let expected = format!(r#"{{"ActionStatus":"FAIL","ErrorInfo":"{error}","ErrorCode":50301}}"#);
    assert_eq!(reply.body, expected);
    not_ready(bridge, reason);
    // The log's lines are read by a thread of their own, which may be behind.
    eventually("the log says so", || {
        bridge.log().contains("callbacks are answered 503").then_some(())
    });
}

/// It says so by itself, and at once after a refusal.
fn not_ready(bridge: &Bridge, reason: &str) {
    let (status, readiness) = bridge.readiness();
    let told = readiness["outbox"]["reason"].as_str().unwrap_or_default();
    assert!(status == 503 && told.contains(reason), "{status} {readiness}");
}

pub(crate) fn resumes(bridge: &Bridge) {
    eventually("it is ready again", || (bridge.readiness().0 == 200).then_some(()));
    assert_eq!(bridge.call(&body("resumed")).status, 200);
}

#[test]
fn a_full_outbox_refuses_loses_nothing_and_resumes_with_more_room() {
    let bridge = Bridge::start(&[("outbox.max_bytes", "1 MiB")]);
    let (answered, refusal) = fill(&bridge, "t", 8000);
    assert!(answered.len() > 50, "only {} fit", answered.len());
    check_refusal(&bridge, &refusal, "the outbox is full", "the outbox is full");
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
    let (_, refusal) = fill(&bridge, "t", 8000);
    check_refusal(&bridge, &refusal, "the outbox is full", "the outbox is full");
    resumes(&bridge);
    eventually("all of it is gone", || bridge.events().is_empty().then_some(()));
    let again = fill(&bridge, "u", 8000).0;
    assert!(again.len() > 50, "the space of {} events was used again", again.len());
}

#[test]
fn a_full_disk_refuses_loses_nothing_and_resumes_with_room() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&folder.path().join("disk"), "2m");
    let outbox = disk.0.join("outbox.db");
    let bridge = Bridge::start(&[("outbox.path", outbox.to_str().unwrap())]);
    assert_eq!(bridge.call(&body("first")).status, 200);
    let ballast = disk.0.join("ballast");
    std::fs::write(&ballast, vec![0; 900_000]).unwrap();

    let (answered, refusal) = fill(&bridge, "t", 8000);
    check_refusal(&bridge, &refusal, "the disk is full", "the disk is full");
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

/// There is room for what SQLite keeps beside the file while it is open, and not for an event.
#[test]
fn a_bridge_that_starts_on_a_full_disk_is_not_ready_before_a_callback_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&folder.path().join("disk"), "2m");
    let outbox = disk.0.join("outbox.db");
    let mut bridge = Bridge::start(&[("outbox.path", outbox.to_str().unwrap())]);
    assert_eq!(bridge.call(&body("first")).status, 200);
    bridge.stop();
    let ballast = disk.fill_up(32 * 1024 + 8 * 1024);
    let bridge = bridge.restart(&[]);
    eventually("it says so", || (bridge.readiness().0 == 503).then_some(()));
    not_ready(&bridge, "the disk is full");
    let reply = bridge.call(&body("refused"));
    check_refusal(&bridge, &reply, "the disk is full", "the disk is full");

    std::fs::remove_file(&ballast).unwrap();
    resumes(&bridge);
    assert_eq!(bridge.topic_ids(), ["first", "resumed"]);
}

/// To be delivered takes no room: were the broker's return to wait for somebody who makes some, both
/// would wait for ever.
#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn on_a_full_disk_the_backlog_is_delivered_and_makes_room_by_itself() {
    let Some(broker) = broker::alone(Kind::Nats) else { return };
    broker.tell(Verb::Stop);
    let folder = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&folder.path().join("disk"), "8m");
    let outbox = disk.0.join("outbox.db");
    let settings = broker.target.settings();
    let settings = settings.iter().map(|(key, value)| (*key, value.as_str()));
    let path = [("outbox.path", outbox.to_str().unwrap())];
    let bridge = Bridge::start(&settings.chain(path).collect::<Vec<_>>());
    let (mut answered, refusal) = fill(&bridge, "t", 8000);
    assert!(answered.len() > 200, "only {} fit", answered.len());
    check_refusal(&bridge, &refusal, "the disk is full", "the disk is full");

    broker.tell(Verb::Start);
    is_delivered(&bridge);
    resumes(&bridge);
    answered.push("resumed".into());
    is_delivered(&bridge);
    let found = topic_ids(&broker.target.read(answered.len()));
    assert_eq!(found, answered.into_iter().collect());
}

/// `EDQUOT`: nothing is broken, and for the user it is as if the disk were full.
#[test]
fn a_used_up_quota_refuses_as_a_full_disk_does_and_taking_resumes_with_room() {
    let folder = tempfile::tempdir().unwrap();
    let library = faulty_disk(folder.path());
    let (trigger, outbox) = (folder.path().join("no quota"), folder.path().join("outbox.db"));
    let settings = [("outbox.path", outbox.to_str().unwrap())];
    let mut bridge = Bridge::start_with(&settings, |command| {
        command.env("LD_PRELOAD", &library);
        command.env("NO_QUOTA_IF_EXISTS", &trigger).env("NO_QUOTA_FOR", &outbox);
    });
    assert_eq!(bridge.call(&body("before")).status, 200);
    std::fs::write(&trigger, "").unwrap();
    for number in 0..3 {
        let reply = bridge.call(&body(&format!("refused {number}")));
        check_refusal(&bridge, &reply, "the disk is full", "the disk is full");
    }
    assert_eq!(bridge.topic_ids(), ["before"]);

    std::fs::remove_file(&trigger).unwrap();
    resumes(&bridge);
    assert_eq!(bridge.topic_ids(), ["before", "resumed"]);
    bridge.stop();
}

#[test]
fn while_a_sync_takes_longer_than_the_platform_waits_it_is_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let library = faulty_disk(folder.path());
    let trigger = folder.path().join("slow");
    let bridge = Bridge::start_with(&[], |command| {
        command.env("LD_PRELOAD", &library).env("SLOW_SYNC_IF_EXISTS", &trigger);
    });
    assert_eq!(bridge.call(&body("before")).status, 200);
    assert_eq!(bridge.readiness().0, 200);
    std::fs::write(&trigger, "").unwrap();
    let reply = bridge.call(&body("late"));
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")), "{reply:?}");
    let reason = eventually("it is not ready", || {
        let (status, readiness) = bridge.readiness();
        let reason = readiness["outbox"]["reason"].as_str()?.to_owned();
        (status == 503).then_some(reason)
    });
    let (_, time) = reason.split_once("a commit has taken ").expect(&reason);
    assert!(time.starts_with(|char: char| char.is_ascii_digit()), "{reason}");

    std::fs::remove_file(&trigger).unwrap();
    resumes(&bridge);
    assert_eq!(bridge.topic_ids(), ["before", "late", "resumed"], "what commits late is kept");
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
