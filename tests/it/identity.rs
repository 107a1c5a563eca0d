//! A topic that is recreated under its old id is a new event with its own id, even after the first one
//! has been removed from the history, and after a restart.

use serde_json::Value;

use crate::bridge::{APPS, Bridge, body, eventually, is_delivered, program, run};
use crate::outbox_file::{ask, number};

const SHORT: [(&str, &str); 2] = [("outbox.dedupe_window", "1s"), ("outbox.history", "1s")];

fn only_id(bridge: &Bridge) -> Option<String> {
    Some(bridge.events().first()?["id"].as_str().unwrap().to_owned())
}

/// Creates the topic until that counts as another event.
fn create_anew(bridge: &Bridge, topic: &str, name: &str) -> Value {
    let before = number(&bridge.outbox(), "SELECT coalesce(max(position), 0) FROM events");
    eventually("the window is over", || {
        assert_eq!(bridge.call(&body(topic).replace("MyFirstTopic", name)).status, 200);
        let page = bridge.page(&format!("?after={before}"));
        page.body.lines().next().map(|line| serde_json::from_str(line).unwrap())
    })
}

#[test]
fn a_topic_created_anew_after_the_history_and_a_restart_gets_another_id() {
    let bridge = Bridge::start(&SHORT);
    assert_eq!(bridge.call(&body("topic")).status, 200);
    let first = only_id(&bridge).expect("it is in the history for a second");
    is_delivered(&bridge);
    eventually("the history is trimmed", || bridge.events().is_empty().then_some(()));

    let bridge = bridge.restart(&[]);
    let second = create_anew(&bridge, "topic", "anew");
    assert_ne!(second["id"], first.as_str(), "consumers that keep ids would drop it");
    is_delivered(&bridge);
    eventually("the history is trimmed", || bridge.events().is_empty().then_some(()));

    // And so for as long as ids are remembered, however often it was created since.
    let bridge = bridge.restart(&[]);
    let third = create_anew(&bridge, "topic", "and anew");
    assert_ne!(third["id"], first.as_str());
    assert_ne!(third["id"], second["id"]);
}

#[test]
fn a_recreated_topic_is_shown_under_each_of_its_ids() {
    let bridge = Bridge::start(&[("outbox.dedupe_window", "1s")]);
    for name in ["first", "second", "third"] {
        create_anew(&bridge, "topic", name);
    }
    let events = bridge.events();
    assert_eq!(events.len(), 3);
    for event in events {
        let shown = ask(&bridge.outbox(), &["show", event["id"].as_str().unwrap()]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown["event"], event);
    }
}

/// All creations of a topic have their first id in common, by which they are known as one topic's.
#[test]
fn a_topics_first_id_does_not_show_a_later_creation_once_the_first_is_gone() {
    let bridge = Bridge::start(&[("outbox.dedupe_window", "1s"), ("outbox.history_events", "1")]);
    let first = create_anew(&bridge, "topic", "first");
    let second = create_anew(&bridge, "topic", "second");
    eventually("the first one is gone", || (bridge.events() == [second.clone()]).then_some(()));
    let show = |event: &Value| {
        let mut command = program();
        command.args(["outbox", "show", event["id"].as_str().unwrap(), "--json", "--path"]);
        run(command.arg(bridge.outbox()))
    };
    let shown: Value = serde_json::from_str(&show(&second).stdout).unwrap();
    assert_eq!(shown["event"], second);
    let gone = show(&first);
    assert_eq!((gone.code, gone.stdout.as_str()), (Some(1), ""), "{gone:?}");
}

#[test]
fn how_long_and_how_many_ids_are_remembered_is_configured() {
    let apps = format!("apps={APPS}");
    let check = |set: &[&str]| {
        let mut command = program();
        command.args(["check", "--json", "--set", &apps]);
        let ended = run(command.args(set));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        serde_json::from_str::<Value>(&ended.stdout).unwrap()["outbox"].take()
    };
    let outbox = check(&[]);
    assert_eq!(outbox["remember_ids"], "90d");
    assert_eq!(outbox["remember_ids_max"], 1_000_000);
    let set = ["--set", "outbox.remember_ids=30d", "--set", "outbox.remember_ids_max=1000"];
    let outbox = check(&set);
    assert_eq!(outbox["remember_ids"], "30d");
    assert_eq!(outbox["remember_ids_max"], 1000);
}
