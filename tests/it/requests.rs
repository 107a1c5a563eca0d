//! The last requests at the public listener: whoever connects the platform sees what arrived, and which check
//! failed by how much. Nobody sees a token, a signature, a body, or a user.

use serde_json::{Value, json};

use crate::bridge::{
    APP, APPS, Bridge, TOKEN, TOPIC_CREATED, body, eventually, now, program, run, run_and, sign,
    signed, signed_by,
};
use crate::http::{self, Connection, head};
use crate::platform::without;

/// Every request in the list.
fn requests(bridge: &Bridge) -> Vec<Value> {
    let page = http::get(bridge.admin, "/requests", &["Accept: application/x-ndjson"]);
    assert_eq!(page.status, 200, "{page:?}");
    page.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn last(bridge: &Bridge) -> Value {
    requests(bridge).pop().unwrap()
}

#[test]
fn each_request_is_shown_with_its_outcome_and_the_reason() {
    let apps = r#"[{sdk_app_id=1400000000,tokens=["0012345678","its second token"]},
        {sdk_app_id=2,tokens=["true"]}]"#;
    let bridge = Bridge::start(&[("apps", apps), ("ingress.max_body_bytes", "1 KiB")]);
    let now = now();
    let good = signed_by(APP, TOKEN, now);
    let topic = body("topic");
    let check = |target: &str, body: &str, outcome: &str, reason: Value, app: Value| {
        let reply = http::post(bridge.ingress, target, body.as_bytes());
        let found = last(&bridge);
        assert_eq!(found["outcome"], outcome, "{target}: {reply:?}");
        assert_eq!(found["reason"], reason, "{target}");
        assert_eq!(found["sdk_app_id"], app, "{target}");
        assert_eq!(found["body_bytes"], body.len(), "{target}");
        check_shape(&found);
        found["command"].clone()
    };
    let (none, app) = (Value::Null, json!(APP));
    let mine = |target: &str, body: &str, outcome: &str, reason: &str| {
        check(target, body, outcome, json!(reason), json!(APP))
    };
    assert_eq!(check(&good, &topic, "accepted", none.clone(), app.clone()), TOPIC_CREATED);
    check(&good, &topic, "duplicate", none.clone(), app.clone());
    let other = signed("State.StateChange", &[]);
    assert_eq!(check(&other, "{}", "ignored", none.clone(), app.clone()), "State.StateChange");
    mine(&good, "{}", "malformed", "CallbackCommand is missing");
    let large = " ".repeat(2000);
    mine(&good, &large, "too_large", "body is larger than the limit of 1024 bytes");
    mine(
        &without("Sign", &good),
        &topic,
        "unauthenticated",
        "Sign is missing, and app 1400000000 has no allow_unsigned",
    );
    mine(
        &good.replace("Sign=", "Sign=0"),
        &topic,
        "unauthenticated",
        "Sign has 65 characters, a SHA-256 in hex has 64",
    );
    mine(
        &signed_by(APP, "another", now),
        &topic,
        "unauthenticated",
        "signed with none of the 2 tokens of app 1400000000",
    );
    let second = signed_by(2, TOKEN, now);
    let reason = json!("signed with another token than that of app 2");
    check(&second, &topic, "unauthenticated", reason, json!(2));
    let reason = json!("app 3 is not configured, only 1400000000, 2");
    check(&signed_by(3, TOKEN, now), &topic, "unknown_app", reason, json!(3));
    let reason = json!("SdkAppid is missing, or not a number; configured is 1400000000, 2");
    assert_eq!(check("/", "", "unknown_app", reason.clone(), none.clone()), none);
    check("/nowhere", "x", "not_found", json!("the path is /nowhere, ingress.path is /"), none);
    says_no_secret(&bridge, now);
}

fn check_shape(request: &Value) {
    let keys: Vec<_> = request.as_object().unwrap().keys().map(String::as_str).collect();
    let expected =
        ["answer_ms", "at", "body_bytes", "command", "outcome", "peer", "reason", "sdk_app_id"];
    assert_eq!(keys, expected);
    assert!(request["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{request}");
    assert!(humantime::parse_rfc3339(request["at"].as_str().unwrap()).is_ok(), "{request}");
    assert!(request["answer_ms"].is_number(), "{request}");
}

fn says_no_secret(bridge: &Bridge, now: u64) {
    let shown = format!("{:?}", requests(bridge));
    for secret in [TOKEN, "second token", &sign(TOKEN, &now.to_string()), "leckie", "group_root"] {
        assert!(!shown.contains(secret) && !bridge.log().contains(secret), "{secret}");
    }
}

#[test]
fn a_clock_that_is_off_and_a_wrong_method_are_named() {
    let bridge = Bridge::start(&[]);
    let now = now();
    http::post(bridge.ingress, &signed_by(APP, TOKEN, now - 100), body("topic").as_bytes());
    let found = last(&bridge);
    assert_eq!(found["outcome"], "stale");
    let reason = found["reason"].as_str().unwrap();
    let seconds: u64 = reason.split(' ').nth(2).unwrap().parse().unwrap();
    assert!((100..120).contains(&seconds) && reason.contains("s behind this host's"), "{reason}");
    http::request(bridge.ingress, "PUT", &signed(TOPIC_CREATED, &[]), &[], b"");
    assert_eq!(last(&bridge)["outcome"], "method_not_allowed");
    says_no_secret(&bridge, now - 100);
}

#[test]
fn a_client_that_hangs_up_is_shown_too() {
    let bridge = Bridge::start(&[]);
    let mut connection = Connection::open(bridge.ingress);
    connection.send(&head("POST", &signed(TOPIC_CREATED, &[]), &[], 100));
    connection.send(b"{\"half");
    drop(connection);
    let found = eventually("it is shown", || requests(&bridge).pop());
    assert!(found["outcome"].is_null() || found["outcome"] == "timeout", "{found}");
}

#[test]
fn a_slow_body_says_how_much_of_it_came() {
    let bridge = Bridge::start(&[("ingress.request_timeout", "200ms")]);
    let mut connection = Connection::open(bridge.ingress);
    connection.send(&head("POST", &signed(TOPIC_CREATED, &[]), &[], 100));
    connection.send(b"half of it");
    assert_eq!(connection.reply().unwrap().status, 408);
    let found = last(&bridge);
    assert_eq!((&found["outcome"], &found["body_bytes"]), (&json!("timeout"), &json!(10)));
    assert_eq!(found["reason"], "10 of 100 bytes of the body came within 200ms");
}

#[test]
fn the_last_thousand_are_kept_and_can_be_resumed() {
    let bridge = Bridge::start(&[]);
    let mut connection = Connection::open(bridge.ingress);
    for number in 0..1010 {
        let target = format!("/?SdkAppid={number}");
        assert_eq!(connection.request("POST", &target, &[], b"").status, 403);
    }
    let found = requests(&bridge);
    assert_eq!((found.len(), &found[0]["sdk_app_id"]), (1000, &json!(10)));
    let page = |query: &str| {
        let target = format!("/requests{query}");
        http::get(bridge.admin, &target, &["Accept: application/x-ndjson"])
    };
    let first = page("?after=3&limit=2");
    assert_eq!(first.header("missed-events"), Some("7"));
    assert_eq!((first.body.lines().count(), first.header("next-after")), (2, Some("12")));
    assert_eq!(page("?after=1010").body, "");
    let mut stream = Connection::open(bridge.admin);
    stream.send(&head("GET", "/requests?after=1009", &[], 0));
    let text = stream.read_until(|text| text.contains("id: 1010"));
    assert!(text.contains("content-type: text/event-stream"), "{text}");
    connection.request("POST", "/?SdkAppid=new", &[], b"");
    stream.read_until(|text| text.contains("id: 1011\ndata: {\"at\":"));
}

#[test]
fn tail_shows_requests_from_the_running_bridge() {
    let bridge = Bridge::start(&[]);
    bridge.call(&body("before"));
    let admin = bridge.admin;
    let tail = |arguments: &[&str]| {
        let mut tail = program();
        tail.env("TOPIC_BRIDGE_APPS", APPS).env("TOPIC_BRIDGE_ADMIN__LISTEN", admin.to_string());
        tail.args(["tail", "--requests"]).args(arguments);
        tail
    };
    let ended = run_and(&mut tail(&["--count", "2"]), "reading", || {
        http::post(bridge.ingress, "/", b"");
        bridge.call(&body("after"));
    });
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let outcome = |line: &str| serde_json::from_str::<Value>(line).unwrap()["outcome"].take();
    let outcomes: Vec<_> = ended.stdout.lines().map(outcome).collect();
    assert_eq!(outcomes, ["unknown_app", "accepted"]);

    let ended = run(&mut tail(&["--from-start", "--count", "3"]));
    assert_eq!((ended.code, ended.stdout.lines().count()), (Some(0), 3), "{ended:?}");

    drop(bridge);
    let ended = run(&mut tail(&[]));
    assert_eq!(ended.code, Some(1));
    let expected = format!("cannot reach the private listener at {admin}");
    assert!(ended.stderr.contains(&expected), "{ended:?}");
}

#[test]
fn a_refusals_line_in_the_log_says_where_to_look() {
    let bridge = Bridge::start(&[]);
    http::post(bridge.ingress, "/", b"");
    let line = eventually("it is logged", || bridge.logged("refused callbacks").pop());
    let expected = format!("http://{}/requests, or `topic-bridge tail --requests`", bridge.admin);
    assert_eq!(line["fields"]["see"], expected);
    assert_eq!(
        line["fields"]["reason"],
        "SdkAppid is missing, or not a number; configured is 1400000000"
    );
}
