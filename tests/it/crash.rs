//! Answered OK means durable: the process is killed with `kill -9` at random moments under load, again
//! and again on one outbox, and every callback that was answered OK is in the stream afterwards,
//! exactly once, and nothing that was never sent.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::bridge::{Bridge, TOKEN, body, eventually, program};

const ROUNDS: u64 = 25;

#[test]
fn an_answered_event_survives_a_kill_at_any_moment() {
    let mut bridge = Bridge::start(&[]);
    let (mut answered, mut sent_in_all) = (HashSet::new(), HashSet::new());
    for round in 0..ROUNDS {
        let killed_after = 1 + round * 97 % 300; // answers, so that the moment differs each round
        let (ok, sent) = load_until_killed(&bridge, killed_after);
        assert!(ok.len() as u64 >= killed_after, "round {round}: {} answers", ok.len());
        answered.extend(ok);
        sent_in_all.extend(sent);

        bridge = bridge.restart(&[]);
        let mut count: HashMap<String, u32> = HashMap::new();
        for topic_id in bridge.topic_ids() {
            *count.entry(topic_id).or_default() += 1;
        }
        for topic_id in &answered {
            assert_eq!(count.get(topic_id), Some(&1), "round {round}: {topic_id} was answered OK");
        }
        for topic_id in count.keys() {
            assert!(is_of(topic_id, &sent_in_all), "round {round}: {topic_id} was never sent");
        }
    }
    let events = bridge.events();
    let ids: HashSet<_> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), events.len(), "an id stands for one event");
}

/// Loads the bridge with `send`, kills it after so many answers, and returns the topics answered OK
/// and the run that all of them were of.
pub(crate) fn load_until_killed(bridge: &Bridge, answers: u64) -> (Vec<String>, Vec<String>) {
    let mut send = program()
        .args(["send", "--url", &format!("http://{}/", bridge.ingress)])
        .args(["--token", TOKEN, "--concurrency", "64", "--duration", "20s", "--answers"])
        // Large events make long writes, and a long write is where a kill can hurt.
        .args(["--name", &"x".repeat(4000)])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(send.stdout.take().unwrap()).lines();
    let (to_main, from_thread) = mpsc::channel();
    let reading = thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = to_main.send(serde_json::from_str::<Value>(&line).unwrap());
        }
    });
    let topic = |answer: &Value| answer["topic_id"].as_str().unwrap().to_owned();
    let (mut ok, mut sent) = (Vec::new(), Vec::new());
    let mut killed = false;
    while let Ok(answer) = from_thread.recv_timeout(Duration::from_secs(30)) {
        if answer["status"] == 200 {
            ok.push(topic(&answer));
        }
        sent.push(topic(&answer));
        if ok.len() as u64 >= answers && !killed {
            killed = true;
            bridge.signal("KILL");
            // Not killed: the answers of the last moment, which tell a lie from a promise, are still
            // on their way to it.
            let pid = send.id().to_string();
            assert!(Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
        }
    }
    send.wait().unwrap();
    reading.join().unwrap();
    assert!(killed, "only {} answers in 20 s", ok.len());
    (ok, sent)
}

/// A callback whose answer was cut off is in no list, so it is known by its run: all of a run's topics
/// share what stands before their number.
fn is_of(topic_id: &str, sent: &HashSet<String>) -> bool {
    let run = |topic_id: &str| topic_id.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    let wanted = run(topic_id);
    sent.iter().any(|sent| run(sent) == wanted)
}

#[test]
fn positions_and_deduplication_go_on_after_a_kill() {
    let bridge = Bridge::start(&[]);
    assert_eq!(bridge.call(&body("one")).status, 200);
    let bridge = bridge.restart(&[]);
    assert_eq!(bridge.call(&body("one")).status, 200);
    assert_eq!(bridge.call(&body("two")).status, 200);
    assert_eq!(bridge.topic_ids(), ["one", "two"]);
    assert_eq!(bridge.page("").header("next-after"), Some("2"));
    assert_eq!(bridge.metric(r#"topic_bridge_callbacks_total{outcome="duplicate"}"#), 1.0);
}

#[test]
fn an_event_answered_before_delivery_is_delivered_after_a_kill() {
    let bridge = Bridge::start(&[]);
    for number in 0..50 {
        assert_eq!(bridge.call(&body(&format!("topic {number}"))).status, 200);
    }
    let bridge = bridge.restart(&[]);
    eventually("all is delivered", || {
        (bridge.metric("topic_bridge_outbox_pending") == 0.0).then_some(())
    });
    assert_eq!(bridge.events().len(), 50);
}
