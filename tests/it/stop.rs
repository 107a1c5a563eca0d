//! Stopping in order, and exiting when the bridge can no longer keep its promises.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::bridge::{Bridge, TOKEN, TOPIC_CREATED, body, eventually, program, signed};
use crate::http::{Connection, head};
use crate::preload::faulty_disk;

/// SIGTERM in the middle of a load over many kept-alive connections: each request that was sent is
/// answered, and what was answered OK is in the stream.
#[test]
fn sigterm_under_load_cuts_no_request_off() {
    for signal in ["TERM", "INT", "TERM"] {
        let mut bridge = Bridge::start(&[]);
        // Into a file: a pipe that nobody reads yet would hold the load up.
        let answers = bridge.home().join("answers");
        let mut send = program()
            .args(["send", "--url", &format!("http://{}/", bridge.ingress)])
            .args(["--token", TOKEN, "--concurrency", "32", "--duration", "60s", "--answers"])
            .stdout(std::fs::File::create(&answers).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let accepted = r#"topic_bridge_callbacks_total{outcome="accepted"}"#;
        eventually("the load is on", || (bridge.metric(accepted) > 500.0).then_some(()));
        bridge.signal(signal);
        assert_eq!(bridge.ended().code(), Some(0), "{}", bridge.log());

        let pid = send.id().to_string();
        assert!(Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
        send.wait().unwrap();
        let answers = std::fs::read_to_string(&answers).unwrap();
        let answers: Vec<Value> =
            answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let mut ok = Vec::new();
        for answer in answers {
            match answer["status"].as_u64() {
                Some(200) => ok.push(answer["topic_id"].as_str().unwrap().to_owned()),
                Some(status) => panic!("answered {status}: {answer}"),
                None => assert_eq!(answer["failure"], "refused", "cut off: {answer}"),
            }
        }
        assert!(ok.len() > 500, "{} answers", ok.len());
        let bridge = bridge.restart(&[]);
        let mut found = bridge.topic_ids();
        found.sort();
        ok.sort();
        assert_eq!(found, ok, "the stream holds what was answered OK");
    }
}

#[test]
fn a_request_in_progress_is_finished_and_its_connection_closed() {
    let mut bridge = Bridge::start(&[]);
    let body = body("in progress");
    let mut connection = Connection::open(bridge.ingress);
    connection.send(&head("POST", &signed(TOPIC_CREATED, &[]), &[], body.len()));
    connection.send(&body.as_bytes()[..10]);
    bridge.signal("TERM");
    eventually("it is stopping", || bridge.log().contains("stopping").then_some(()));
    connection.send(&body.as_bytes()[10..]);
    let reply = connection.reply().unwrap();
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    assert_eq!(bridge.ended().code(), Some(0));
    assert_eq!(bridge.restart(&[]).topic_ids(), ["in progress"]);
}

#[test]
fn while_draining_it_answers_and_says_that_it_is_not_ready() {
    let mut bridge = Bridge::start(&[("ingress.drain_delay", "2s")]);
    assert_eq!(bridge.readiness().0, 200);
    bridge.signal("TERM");
    let (status, readiness) = eventually("it is not ready", || {
        let (status, readiness) = bridge.readiness();
        (status == 503).then_some((status, readiness))
    });
    assert_eq!((status, &readiness["status"]), (503, &"not_ready".into()));
    let reply = bridge.call(&body("late"));
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
    assert_eq!(bridge.ended().code(), Some(0));
    assert_eq!(bridge.restart(&[]).topic_ids(), ["late"]);
}

#[test]
fn an_endless_stream_shows_all_and_ends() {
    let mut bridge = Bridge::start(&[]);
    let mut stream = bridge.stream("/events", &[]);
    bridge.call(&body("last"));
    bridge.signal("TERM");
    let text = stream.read_until(|_| false);
    assert!(text.contains(r#""topic_id":"last""#), "{text}");
    assert_eq!(bridge.ended().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut bridge = Bridge::start(&[("ingress.drain_delay", "10m")]);
    bridge.signal("TERM");
    eventually("it is stopping", || bridge.log().contains("stopping").then_some(()));
    bridge.signal("TERM");
    assert_eq!(bridge.ended().code(), Some(1));
}

/// After a failed sync the page may be gone although the next sync says OK (so PostgreSQL learned in
/// 2018): nothing is acknowledged any more, and the process ends with the reason.
#[test]
fn after_a_failed_sync_nothing_is_acknowledged_and_the_process_ends() {
    let folder = tempfile::tempdir().unwrap();
    let library = faulty_disk(folder.path());
    let trigger = folder.path().join("fail");
    let mut bridge = Bridge::start_with(&[], |command| {
        command.env("LD_PRELOAD", &library).env("FAIL_SYNC_IF_EXISTS", &trigger);
    });
    assert_eq!(bridge.call(&body("before")).status, 200);
    std::fs::write(&trigger, "").unwrap();
    let reply = bridge.call(&body("after"));
    assert_eq!((reply.status, reply.json()["ErrorCode"].as_u64()), (503, Some(50301)));
    assert_eq!(bridge.ended().code(), Some(1));
    let log = bridge.log();
    assert!(log.contains("the outbox failed") && log.contains("a sync failed"), "{log}");

    let bridge = bridge.restart(&[]);
    assert_eq!(bridge.topic_ids().first().map(String::as_str), Some("before"));
    assert_eq!(bridge.call(&body("after")).status, 200);
    let found = bridge.topic_ids();
    assert_eq!(found.iter().filter(|topic_id| *topic_id == "after").count(), 1);
}
