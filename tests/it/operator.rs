//! The operator's tools: what is dead, quarantined or missing is brought back, beside a running bridge and without
//! one, and nobody else can do that.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use crate::bridge::{self, APP, Bridge, Ended, body, eventually, is_delivered, run, signed};
use crate::broker::{self, Kind};
use crate::calls::{call_many, start};
use crate::http::{self, Reply};

const JSON: &str = "Content-Type: application/json";
const NDJSON: &str = "Content-Type: application/x-ndjson";

/// The command, for an outbox that no bridge uses or the bridge that uses it.
fn outbox(bridge: &Bridge, arguments: &[&str]) -> Command {
    outbox_at(bridge, &bridge.admin.to_string(), arguments)
}

fn outbox_at(bridge: &Bridge, listen: &str, arguments: &[&str]) -> Command {
    let mut command = bridge.command("--set");
    command.arg(format!("admin.listen={listen}")).arg("outbox").args(arguments);
    command
}

/// The counts that an act prints.
fn act(bridge: &Bridge, arguments: &[&str]) -> Value {
    let ended = run(outbox(bridge, arguments).arg("--json"));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Prints one object a line.
fn export(bridge: &Bridge, arguments: &[&str]) -> Vec<Value> {
    let ended = run(&mut outbox(bridge, &[&["export"], arguments].concat()));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A body that says topic created where the URL names another command: quarantined, and good for today's parser.
fn quarantine(bridge: &Bridge, topic: &str) {
    let target = signed("Group.CallbackAfterNewMemberJoin", &[]);
    assert_eq!(http::post(bridge.ingress, &target, body(topic).as_bytes()).status, 200);
}

/// The same once beside the bridge, and once after its end.
fn beside_and_offline(settings: &[(&str, &str)], check: impl Fn(&mut Bridge, bool)) {
    for is_offline in [false, true] {
        let mut bridge = Bridge::start(settings);
        check(&mut bridge, is_offline);
    }
}

fn stop_if(bridge: &mut Bridge, is_offline: bool) {
    if is_offline {
        bridge.stop();
    }
}

#[test]
fn a_quarantined_body_is_tried_again() {
    beside_and_offline(&[], |bridge, is_offline| {
        assert_eq!(bridge.call(&body("known")).status, 200);
        for topic in ["one", "known", "two"] {
            quarantine(bridge, topic);
        }
        assert_eq!(bridge.call("not json").status, 400);
        let listed = export(bridge, &["--quarantined"]);
        assert_eq!(listed.len(), 4);
        assert_eq!(
            (&listed[0]["sdk_app_id"], &listed[3]["body"]),
            (&json!(APP), &json!("not json"))
        );
        assert_eq!(listed[0]["client"], json!({"ip": "127.0.0.1", "platform": "iOS"}));
        stop_if(bridge, is_offline);

        let counted = act(bridge, &["retry", "--quarantined", "--dry-run"]);
        assert_eq!((&counted["matched"], &counted["done"]), (&json!(4), &json!(0)), "{counted}");
        let ended = run(&mut outbox(bridge, &["retry", "--quarantined", "1"]));
        assert_eq!((ended.code, &*ended.stdout), (Some(0), "1 quarantined body queued again\n"));
        assert!(ended.stderr.starts_with("1 quarantined body matches\n"), "{ended:?}");
        let tally = act(bridge, &["retry", "--quarantined"]);
        let counts = ["matched", "done", "duplicates", "kept"].map(|name| tally[name].as_u64());
        assert_eq!(counts, [3, 1, 1, 1].map(Some), "{tally}");
        let tally = act(bridge, &["retry", "--quarantined", "--reason", "no such reason"]);
        assert_eq!(tally["matched"], 0);
        if is_offline {
            let by = format!("offline, user {}", rustix::process::getuid().as_raw());
            assert!(ended.stderr.contains("an operator's act on the outbox"), "{ended:?}");
            assert!(ended.stderr.contains(&by), "{ended:?}");
            return;
        }
        let logged = bridge.logged("an operator's act on the outbox");
        assert_eq!((logged.len(), &logged[0]["level"]), (2, &json!("INFO")), "{logged:?}");
        let fields = &logged[1]["fields"];
        assert!(fields["by"].as_str().unwrap().starts_with("127.0.0.1:"), "{fields}");
        let found = ["act", "of", "matched"].map(|name| &fields[name]);
        assert_eq!(found, [&json!("retry"), &json!("quarantined"), &json!(3)]);

        let events = bridge.events();
        assert_eq!(bridge.topic_ids(), ["known", "one", "two"]);
        for event in events {
            let topic = event["subject"].as_str().unwrap();
            let received = listed.iter().find(|l| l["body"].as_str().unwrap().contains(topic));
            if topic != "known" {
                let received_at = &received.unwrap()["received_at"];
                assert_eq!(&event["data"]["accepted_at"], received_at, "as one of its time");
            }
        }
        assert_eq!(bridge.call(&body("one")).status, 200);
        assert_eq!(bridge.counted("duplicate"), 1.0, "it is remembered");
        assert_eq!(bridge.metric("topic_bridge_quarantined"), 1.0);
    });
}

#[test]
fn nothing_is_dropped_without_a_yes() {
    beside_and_offline(&[], |bridge, is_offline| {
        quarantine(bridge, "one");
        quarantine(bridge, "two");
        stop_if(bridge, is_offline);
        let ended = run(&mut outbox(bridge, &["drop", "--quarantined"]));
        assert_eq!((ended.code, &*ended.stdout), (Some(2), ""), "{ended:?}");
        assert!(ended.stderr.contains("2 quarantined bodies match"), "{ended:?}");
        assert!(ended.stderr.contains("nothing was changed: to drop them, say --yes"), "{ended:?}");
        assert_eq!(export(bridge, &["--quarantined"]).len(), 2);
        let dropped = act(bridge, &["drop", "--quarantined", "--yes", "2"]);
        assert_eq!((&dropped["matched"], &dropped["done"]), (&json!(1), &json!(1)), "{dropped}");
        assert_eq!(export(bridge, &["--quarantined"])[0]["number"], 1);
        for (arguments, text) in [
            (&["drop", "--yes"][..], "--dead"),
            (&["drop", "--dead", "--quarantined"], "cannot be used with"),
            (&["retry", "--quarantined", "--topic", "x"], "neither an event's id nor a topic"),
            (&["retry", "--since", "yesterday"], "2h for two hours ago"),
            (&["replay"], "say since when"),
        ] {
            let ended = run(&mut outbox(bridge, arguments));
            assert_eq!(ended.code, Some(2), "{ended:?}");
            assert!(ended.stderr.contains(text), "{ended:?}");
        }
        let ended = run(&mut outbox(bridge, &["replay", "--since", "1h"]));
        assert_ne!(ended.code, Some(0));
        assert!(ended.stderr.contains("read it again from an earlier position"), "{ended:?}");
    });
}

#[test]
fn what_one_bridge_exports_another_imports_under_the_same_ids() {
    beside_and_offline(&[], |bridge, is_offline| {
        let first = Bridge::start(&[]);
        for topic in ["a", "b", "c", "d"] {
            assert_eq!(first.call(&body(topic)).status, 200);
        }
        is_delivered(&first);
        let events = first.events();
        assert_eq!(export(&first, &[]), events);
        assert_eq!(export(&first, &["--pending"]), [json!(null); 0]);
        assert_eq!(export(&first, &["--topic", "b"]), events[1..2]);
        assert_eq!(export(&first, &["2"]), events[1..2]);
        assert_eq!(export(&first, &["--id", events[2]["id"].as_str().unwrap()]), events[2..3]);
        assert_eq!(export(&first, &["--since", "1h"]), events);
        assert_eq!(export(&first, &["--until", "1h"]), [json!(null); 0]);

        assert_eq!(bridge.call(&body("b")).status, 200);
        let file = bridge.home().join("events.ndjson");
        let page = first.page("").body;
        fs::write(&file, &page).unwrap();
        stop_if(bridge, is_offline);
        let file = file.to_str().unwrap();
        let counted = act(bridge, &["import", file, "--dry-run"]);
        assert_eq!((&counted["done"], &counted["duplicates"]), (&json!(3), &json!(1)), "{counted}");
        let ended = run(&mut outbox(bridge, &["import", file]));
        assert_eq!((ended.code, &*ended.stdout), (Some(0), "3 events imported, 1 known already\n"));
        let again = act(bridge, &["import", file]);
        assert_eq!((&again["done"], &again["duplicates"]), (&json!(0), &json!(4)), "{again}");

        let third = page.lines().nth(2).unwrap().replace("\"c\"", "\"other\"");
        let faulty = format!("{third}\n{{\"oops\":1}}\n");
        fs::write(file, faulty).unwrap();
        let ended = run(&mut outbox(bridge, &["import", file]));
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("line 2 is not an event of this bridge"), "{ended:?}");
        let exported = export(bridge, &[]);
        let ids =
            |events: &[Value]| events.iter().map(|e| e["id"].to_string()).collect::<BTreeSet<_>>();
        assert_eq!(ids(&exported), ids(&events), "nothing of a file with a faulty line");
        if !is_offline {
            eventually("the stream shows them", || (bridge.events().len() == 4).then_some(()));
            assert_eq!(bridge.topic_ids(), ["b", "a", "c", "d"]);
        }
    });
}

#[test]
fn a_pipe_is_imported_as_it_comes() {
    let first = Bridge::start(&[]);
    let topics: Vec<_> = (0..700).map(|number| format!("t{number}")).collect();
    for topic in &topics {
        assert_eq!(first.call(&body(topic)).status, 200);
    }
    let second = Bridge::start(&[]);
    let mut from =
        outbox(&first, &["export"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let pipe = from.stdout.take().unwrap();
    let output = outbox(&second, &["import", "-"]).stdin(pipe).output().unwrap();
    assert!(from.wait().unwrap().success());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"700 events imported, 0 known already\n");
    assert_eq!(second.topic_ids(), topics);
}

fn post(bridge: &Bridge, target: &str, headers: &[&str], body: &str) -> Reply {
    http::request(bridge.admin, "POST", target, headers, body.as_bytes())
}

#[test]
fn a_website_cannot_change_anything() {
    let bridge = Bridge::start(&[]);
    quarantine(&bridge, "one");
    let order = r#"{"of":"quarantined"}"#;
    for (headers, status) in [
        (&[][..], 415),
        (&["Content-Type: text/plain"], 415),
        (&["Content-Type: application/x-www-form-urlencoded"], 415),
        (&[JSON, "Origin: http://localhost:9090"], 403),
        (&[JSON, "Origin: null"], 403),
    ] {
        let reply = post(&bridge, "/outbox/drop", headers, order);
        assert_eq!(reply.status, status, "{headers:?} {reply:?}");
        assert!(reply.json()["error"].is_string());
    }
    for target in ["/outbox/retry", "/outbox/drop", "/outbox/replay", "/outbox/import"] {
        assert_eq!(bridge.get(target).status, 405, "{target}");
    }
    for (order, status) in [("", 400), ("{}", 400), ("{\"of\":\"all\"}", 400), ("{\"x\":1}", 400)] {
        assert_eq!(post(&bridge, "/outbox/drop", &[JSON], order).status, status, "{order}");
    }
    let large = format!("{{\"filter\":{{\"topic\":\"{}\"}}}}", "x".repeat(70_000));
    assert_eq!(post(&bridge, "/outbox/drop", &[JSON], &large).status, 400);
    assert_eq!(bridge.metric("topic_bridge_quarantined"), 1.0);
    let tally = post(&bridge, "/outbox/drop", &[JSON], order).json();
    assert_eq!(tally, json!({"matched": 1, "done": 1, "duplicates": 0, "kept": 0}));
    assert_eq!(bridge.metric("topic_bridge_quarantined"), 0.0);
}

#[test]
fn a_token_is_needed_wherever_there_is_one_or_the_listener_is_not_on_loopback() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, "correct-horse\n").unwrap();
    let token_file = file.to_str().unwrap();
    let order = r#"{"of":"quarantined"}"#;
    let status = |bridge: &Bridge, headers: &[&str]| {
        post(bridge, "/outbox/retry", &[&[JSON], headers].concat(), order).status
    };

    let open = Bridge::start(&[("admin.listen", "0.0.0.0:0")]);
    let reply = post(&open, "/outbox/retry", &[JSON], order);
    assert_eq!(reply.status, 403);
    assert!(reply.body.contains("admin.token_file"), "{reply:?}");
    assert_eq!(open.get("/livez").status, 200, "reading is as before");

    for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
        fs::write(&file, "correct-horse\n").unwrap();
        let bridge = Bridge::start(&[("admin.listen", listen), ("admin.token_file", token_file)]);
        quarantine(&bridge, "one");
        let none = post(&bridge, "/outbox/retry", &[JSON], order);
        assert_eq!((none.status, none.header("www-authenticate")), (401, Some("Bearer")));
        assert_eq!(status(&bridge, &["Authorization: Bearer wrong"]), 401);
        assert_eq!(status(&bridge, &["Authorization: Bearer correct-horse"]), 200);
        let import = post(&bridge, "/outbox/import", &[NDJSON], "");
        assert_eq!(import.status, 401);
        // The command takes the token from the same configuration.
        assert_eq!(act(&bridge, &["retry", "--quarantined"])["matched"], 0);
        fs::write(&file, "battery").unwrap();
        assert_eq!(status(&bridge, &["Authorization: Bearer correct-horse"]), 401);
        assert_eq!(status(&bridge, &["Authorization: Bearer battery"]), 200);
        fs::write(&file, "").unwrap();
        assert_eq!(status(&bridge, &["Authorization: Bearer "]), 403);
        let log = bridge.log();
        assert!(!log.contains("correct-horse") && !log.contains("battery"), "{log}");
    }
    let folder_is_no_file = run(bridge::program()
        .args(["check", "--set"])
        .arg(format!("admin.token_file={}", folder.path().display())));
    assert_eq!(folder_is_no_file.code, Some(78));
}

#[test]
fn the_bridge_that_is_asked_must_be_the_one_that_has_the_outbox() {
    let (bridge, other) = (Bridge::start(&[]), Bridge::start(&[]));
    quarantine(&bridge, "one");
    quarantine(&other, "one");
    let path = other.outbox();
    let drop_by = |listen: &str, more: &[&str]| {
        let arguments = [&["drop", "--quarantined", "--yes"], more].concat();
        run(&mut outbox_at(&bridge, listen, &arguments))
    };
    let own = bridge.admin.to_string();
    let drop = |more: &[&str]| drop_by(&own, more);
    let check = |ended: &Ended, texts: &[&str]| {
        assert_eq!((ended.code, &*ended.stdout), (Some(1), ""), "{ended:?}");
        for text in texts {
            assert!(ended.stderr.contains(text), "{text:?} should be in {ended:?}");
        }
    };
    let path = path.to_str().unwrap();
    check(&drop(&["--path", path]), &["409", "has another outbox", "--admin"]);
    let free = drop_by("127.0.0.1:0", &["--path", path]);
    check(&free, &["admin.listen takes a free port", "--admin"]);
    let nobody = drop_by("127.0.0.1:1", &["--path", path]);
    let holder = format!("(process {})", other.pid());
    check(&nobody, &[&holder, "cannot reach", "127.0.0.1:1"]);
    check(&drop(&["--admin", "localhost:9090"]), &["is not the address of a private listener"]);
    let none = run(bridge::program().args(["outbox", "retry", "--path", "/nowhere/outbox.db"]));
    check(&none, &["/nowhere/outbox.db", "there is no such file"]);
    assert_eq!(bridge.metric("topic_bridge_quarantined"), 1.0);
    let dropped = drop(&["--admin", &format!("http://{}", other.admin)]);
    assert_eq!(dropped.code, Some(0), "{dropped:?}");
    assert_eq!(other.metric("topic_bridge_quarantined"), 0.0);
    assert_eq!(bridge.metric("topic_bridge_quarantined"), 1.0);
}

/// A stream that refuses everything, until `raise` is called.
fn lower(broker: &broker::Shared) -> impl Fn() {
    let subjects = [format!("{}.*", broker.target.name)];
    broker.target.make(&json!({"subjects": subjects, "max_msg_size": 100}));
    move || broker.target.make(&json!({"subjects": subjects, "max_msg_size": -1}))
}

fn are_dead(bridge: &Bridge, count: usize) {
    eventually("all are dead letters", || {
        let dead = bridge.metric("topic_bridge_dead_letters");
        (dead == count as f64 && bridge.metric("topic_bridge_outbox_pending") == 0.0).then_some(())
    });
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn dead_letters_are_all_delivered_in_order_once_the_limit_is_raised() {
    for is_offline in [false, true] {
        let Some(broker) = broker::shared(Kind::Nats) else { return };
        let raise = lower(&broker);
        let mut bridge = start(&broker.target, &[]);
        let topics = call_many(&bridge, "dead", 300);
        are_dead(&bridge, 300);
        let dead = export(&bridge, &["--dead"]);
        raise();
        if is_offline {
            bridge.stop();
        }
        let tally = act(&bridge, &["retry"]);
        assert_eq!((&tally["matched"], &tally["done"]), (&json!(300), &json!(300)), "{tally}");
        let bridge = if is_offline { bridge.restart(&[]) } else { bridge };
        is_delivered(&bridge);
        assert_eq!(bridge.metric("topic_bridge_dead_letters"), 0.0);
        let messages = broker.target.read(300);
        let found: Vec<_> = messages.iter().map(broker::Message::topic_id).collect();
        assert_eq!(found, topics, "in order");
        let bodies: Vec<_> = messages.into_iter().map(|message| message.body).collect();
        assert_eq!(bodies, dead, "under their ids");

        // Once more, into a stream that knows them by their ids.
        let published = "topic_bridge_published_total{sink=\"nats\"}";
        let before = bridge.metric(published);
        let since = dead[100]["data"]["accepted_at"].as_str().unwrap();
        let tally = act(&bridge, &["replay", "--since", since]);
        assert!(tally["done"].as_u64().unwrap() >= 200, "{tally}");
        is_delivered(&bridge);
        assert_eq!(bridge.metric(published) - before, tally["done"].as_f64().unwrap());
        assert_eq!(broker.target.read(300).len(), 300);
    }
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn a_kill_in_the_middle_of_a_retry_loses_and_invents_nothing() {
    let Some(broker) = broker::shared(Kind::Nats) else { return };
    let raise = lower(&broker);
    let bridge = start(&broker.target, &[("relay.batch", "16")]);
    let topics = call_many(&bridge, "killed", 2000);
    are_dead(&bridge, 2000);
    raise();
    let mut retry = outbox(&bridge, &["retry"]);
    let retrying = thread::spawn(move || run(&mut retry));
    eventually("some are delivered", || {
        (bridge.metric("topic_bridge_published_total{sink=\"nats\"}") > 0.0).then_some(())
    });
    let bridge = bridge.restart(&[]); // by kill -9
    let ended = retrying.join().unwrap();
    let left = act(&bridge, &["retry"]);
    assert_eq!(left["matched"], left["done"], "{left} after {ended:?}");
    is_delivered(&bridge);
    assert_eq!(bridge.metric("topic_bridge_dead_letters"), 0.0);
    let messages = broker.target.read(2000);
    let found: Vec<_> = messages.iter().map(broker::Message::topic_id).collect();
    assert_eq!(found, topics, "each once, by its id, and in order");
}
