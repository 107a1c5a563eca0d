//! The program as its operator sees it: how it exits, and what its commands print.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use serde_json::{Value, json};

use crate::bridge::{APP, Bridge, Ended, SAMPLE, TOKEN, body, eventually, program, run};
use crate::outbox_file::serve_on;

pub(crate) const CONFIGURATION: Option<i32> = Some(78);

pub(crate) fn topic_bridge(arguments: &[&str]) -> Ended {
    run(program().args(arguments))
}

pub(crate) fn check_refused(ended: &Ended, code: Option<i32>, texts: &[&str]) {
    assert_eq!(ended.code, code, "{ended:?}");
    assert_eq!(ended.stdout, "", "data only");
    for text in texts {
        assert!(ended.stderr.contains(text), "{text:?} should be in {}", ended.stderr);
    }
}

#[test]
fn usage_errors_end_with_2() {
    for arguments in [
        &["--nonsense"][..],
        &["nonsense"],
        &["outbox"],
        &["outbox", "show"],
        &["outbox", "list", "--dead", "--quarantined"],
        &["send", "--rate", "0"],
        &["send", "http://a/", "http://b/"],
        &["--config"],
    ] {
        let ended = topic_bridge(arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ended.stderr.contains("--help"), "{}", ended.stderr);
    }
    assert_eq!(topic_bridge(&["--version"]).code, Some(0));
    let help = topic_bridge(&["--help"]);
    assert!(help.stdout.contains("78  wrong configuration"), "{}", help.stdout);
}

#[test]
fn a_second_bridge_on_one_outbox_says_who_the_first_one_is() {
    let bridge = Bridge::start(&[]);
    let ended = run(&mut serve_on(&bridge.outbox()));
    let first = format!("(process {})", bridge.pid());
    let outbox = bridge.outbox();
    check_refused(&ended, Some(1), &["another topic-bridge", &first, outbox.to_str().unwrap()]);
    assert_eq!(bridge.call(SAMPLE).status, 200, "the first one goes on");
    let bridge = bridge.restart(&[]);
    assert_eq!(bridge.events().len(), 1, "a lock does not outlive its holder");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for key in ["ingress.listen", "admin.listen"] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = serve_on(&folder.path().join("outbox.db"));
        let ended = run(command.args(["--set", &format!("{key}={address}")]));
        check_refused(&ended, Some(1), &[key, &address, "another program using the port"]);
    }
}

/// Tries to serve on a file and to look into it; it must be the same to the byte afterwards.
fn check_untouched(path: &Path, texts: &[&str]) {
    let before = fs::read(path).unwrap();
    check_refused(&run(&mut serve_on(path)), Some(1), texts);
    let looked = run(program().args(["outbox", "status", "--path"]).arg(path));
    check_refused(&looked, Some(1), &[path.to_str().unwrap()]);
    assert_eq!(fs::read(path).unwrap(), before);
    let beside: Vec<_> = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with("-wal") || name.ends_with("-journal"))
        .collect();
    assert_eq!(beside, Vec::<String>::new());
}

#[test]
fn a_file_that_is_no_outbox_is_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.db");
    for content in [b"hello".to_vec(), b"not a database\n".repeat(1000), vec![0xff; 4096]] {
        fs::write(&path, content).unwrap();
        check_untouched(&path, &["it is not an SQLite file", "outbox.path"]);
    }
    fs::remove_file(&path).unwrap();
    let foreign = rusqlite::Connection::open(&path).unwrap();
    foreign.execute_batch("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (7)").unwrap();
    foreign.close().unwrap();
    check_untouched(&path, &["a database of another program"]);

    let nowhere = folder.path().join("no/such/folder/outbox.db");
    check_refused(&run(&mut serve_on(&nowhere)), CONFIGURATION, &["there is no directory"]);
}

#[test]
fn an_outbox_of_a_newer_release_is_refused_untouched() {
    let mut bridge = Bridge::start(&[]);
    assert_eq!(bridge.call(SAMPLE).status, 200);
    bridge.signal("TERM");
    assert_eq!(bridge.ended().code(), Some(0));
    let set_version = |version: i64| {
        let outbox = rusqlite::Connection::open(bridge.outbox()).unwrap();
        outbox.pragma_update(None, "user_version", version).unwrap();
        outbox.close().unwrap();
    };
    set_version(99);
    check_untouched(&bridge.outbox(), &["schema version 99", "newer topic-bridge"]);
    set_version(4);
    assert_eq!(bridge.restart(&[]).events().len(), 1);
}

#[test]
fn an_outbox_of_an_older_release_is_not_read_before_a_bridge_has_run_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = folder.path().join("outbox.db");
    let older = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/data/outbox-v2.db");
    std::fs::copy(older, &outbox).unwrap();
    let ended = run(program().args(["outbox", "status", "--path"]).arg(&outbox));
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("an older release"), "{ended:?}");
}

#[test]
fn the_outbox_can_be_looked_into_beside_a_bridge_and_after_it() {
    let mut bridge = Bridge::start(&[]);
    for number in 1..=3 {
        let name = format!("\u{1b}[2J tea {number}");
        let body = body(&format!("topic {number}"));
        let name = Value::from(name).to_string();
        assert_eq!(bridge.call(&body.replace("\"MyFirstTopic\"", &name)).status, 200);
    }
    assert_eq!(bridge.call("not json").status, 400);
    eventually("all is delivered", || {
        (bridge.metric("topic_bridge_outbox_pending") == 0.0).then_some(())
    });
    let events = bridge.events();
    check_outbox(&bridge, &events);
    bridge.signal("TERM");
    assert_eq!(bridge.ended().code(), Some(0));
    check_outbox(&bridge, &events);

    let missing = topic_bridge(&["outbox", "status", "--path", "/nowhere/outbox.db"]);
    check_refused(&missing, Some(1), &["/nowhere/outbox.db", "there is no such file"]);
}

fn check_outbox(bridge: &Bridge, events: &[Value]) {
    // The outbox is found by the configuration, whatever else may be missing in it.
    let outbox = |arguments: &[&str]| {
        run(program()
            .arg("outbox")
            .args(arguments)
            .env("TOPIC_BRIDGE_OUTBOX__PATH", bridge.outbox()))
    };
    let lines = |arguments: &[&str]| {
        let ended = outbox(arguments);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{arguments:?}");
        ended.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let json = |arguments: &[&str]| -> Vec<Value> {
        let lines = lines(&[arguments, &["--json"]].concat());
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let status = json(&["status"]).pop().unwrap();
    for (name, expected) in [
        ("events", json!(3)),
        ("oldest_position", json!(1)),
        ("newest_position", json!(3)),
        ("pending", json!(0)),
        ("oldest_pending_at", json!(null)),
        ("dead_letters", json!(0)),
        ("quarantined", json!(1)),
    ] {
        assert_eq!(status[name], expected, "{name} in {status}");
    }
    assert!(lines(&["status"])[0].contains("3 (positions 1 to 3)"));

    let row = |at: usize| {
        json!({
            "position": at + 1, "state": "delivered", "event": events[at],
            "accepted_at": events[at]["data"]["accepted_at"],
        })
    };
    assert_eq!(json(&["list"]), [row(0), row(1), row(2)]);
    assert_eq!(json(&["list", "--after", "1", "--limit", "1"]), [row(1)]);
    assert_eq!(json(&["list", "--pending"]), Vec::<Value>::new());
    assert_eq!(json(&["list", "--dead"]), Vec::<Value>::new());
    assert_eq!(json(&["show", "2"]), [row(1)]);
    assert_eq!(json(&["show", events[2]["id"].as_str().unwrap()]), [row(2)]);
    let quarantined = json(&["list", "--quarantined"]).pop().unwrap();
    assert_eq!((&quarantined["number"], &quarantined["body"]), (&json!(1), &json!("not json")));
    assert_eq!(json(&["show", "--quarantined", "1"]), [quarantined]);
    check_outbox_text(&lines, &outbox);
}

fn check_outbox_text(lines: &impl Fn(&[&str]) -> Vec<String>, outbox: &impl Fn(&[&str]) -> Ended) {
    let text = lines(&["list"]);
    assert_eq!(text.len(), 4, "a head and a line each: {text:?}");
    assert!(text[1].contains("topic 1") && text[1].contains("delivered"), "{text:?}");
    assert!(lines(&["show", "1"]).iter().any(|line| line.contains("\"subject\": \"topic 1\"")));
    let everything = [text, lines(&["show", "1"])].concat().concat();
    assert!(!everything.contains('\u{1b}'), "a name may not move a terminal's cursor");
    for (arguments, text) in [
        (&["show", "4"][..], "there is no event at position 4"),
        (&["show", "92f58f4e-5a60-5ecf-9e83-6cbb3350b7e3"], "there is no event with the id"),
        (&["show", "x"], "neither a position nor an id"),
        (&["show", "--quarantined", "2"], "there is no quarantined callback 2"),
    ] {
        check_refused(&outbox(arguments), Some(1), &[text]);
    }
}

#[test]
fn send_plays_the_platform_and_says_how_it_was_answered() {
    let bridge = Bridge::start(&[]);
    let url = format!("http://{}/?from=operator", bridge.ingress);
    let send = |arguments: &[&str]| run(program().args(["send", &url]).args(arguments));

    let one = send(&["--token", TOKEN]);
    assert_eq!((one.code, one.stderr.as_str()), (Some(0), ""), "{one:?}");
    assert!(one.stdout.contains("1  200 OK 0"), "{}", one.stdout);

    check_fields(&bridge, &send);
    let many = send(&["--token", TOKEN, "--count", "20", "--concurrency", "4", "--answers"]);
    assert_eq!(many.code, Some(0), "{many:?}");
    let answers = many.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut topics: Vec<_> = answers
        .inspect(|answer| assert_eq!(answer["status"], 200))
        .map(|answer| answer["topic_id"].as_str().unwrap().to_owned())
        .collect();
    let mut found = bridge.topic_ids().split_off(2);
    topics.sort();
    found.sort();
    assert_eq!(topics, found);

    for (arguments, error_code) in [
        (&["--token", "wrong"][..], 40101),
        (&[], 40101),
        (&["--token", TOKEN, "--request-time", "1669872112"], 40102),
        (&["--token", TOKEN, "--sdk-app-id", "7"], 40301),
    ] {
        let refused = send(&[arguments, &["--json"]].concat());
        assert_eq!(refused.code, Some(1), "{refused:?}");
        let summary: Value = serde_json::from_str(&refused.stdout).unwrap();
        assert_eq!(summary["answers"][0]["error_code"], error_code, "{summary}");
        assert_eq!(summary["ok"], 0);
    }
    bridge.kill();
    let nobody = send(&["--token", TOKEN, "--json"]);
    assert_eq!(nobody.code, Some(1));
    let summary: Value = serde_json::from_str(&nobody.stdout).unwrap();
    assert_eq!((&summary["answered"], &summary["failures"]["refused"]), (&json!(0), &json!(1)));
}

/// Every field can be set.
fn check_fields(bridge: &Bridge, send: &impl Fn(&[&str]) -> Ended) {
    let fields = "--token\t0012345678\t--json\t--topic-id\tmine\t--group-id\tours\t--name\tTea & 🍵\t\
                  --operator\tme\t--owner\tyou\t--custom\ta=1\t--custom\ta=2\t--event-time\t1670574414123\t\
                  --client-ip\t192.0.2.1\t--platform\tWeb";
    let whole = send(&fields.split('\t').collect::<Vec<_>>());
    assert_eq!(whole.code, Some(0), "{whole:?}");
    let summary: Value = serde_json::from_str(&whole.stdout).unwrap();
    assert_eq!((&summary["sent"], &summary["ok"]), (&json!(1), &json!(1)));
    let event = bridge.events().pop().unwrap();
    assert_eq!(event["time"], "2022-12-09T08:26:54.123Z");
    let mut data = event["data"].clone();
    data["accepted_at"].take();
    let expected = json!({
        "sdk_app_id": APP, "topic_id": "mine", "topic_name": "Tea & 🍵", "group_id": "ours",
        "group_type": "Community", "operator": "me", "owner": "you",
        "custom_fields": [{ "key": "a", "value": "1" }, { "key": "a", "value": "2" }],
        "client": { "ip": "192.0.2.1", "platform": "Web" }, "accepted_at": null, "extra": {},
    });
    assert_eq!(data, expected);
}
