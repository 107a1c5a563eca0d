//! The public listener as the platform sees it, over real sockets. Each kind of request has exactly one
//! answer, which can always be read; an authentic callback becomes an event or is quarantined byte for
//! byte; and every limit holds.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::bridge::{
    APP, Bridge, SAMPLE, TOKEN, TOPIC_CREATED, body, eventually, now, program, run, signed,
    signed_by,
};
use crate::http::{self, Connection, Reply};

pub(crate) const OK: &str = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;

pub(crate) fn fail(code: u32, info: &str) -> String {
    format!(r#"{{"ActionStatus":"FAIL","ErrorInfo":"{info}","ErrorCode":{code}}}"#)
}

pub(crate) fn check_answer(reply: &Reply, status: u16, answer: &str) {
    assert_eq!((reply.status, reply.body.as_str()), (status, answer), "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let retry_after = (status == 503).then_some("1");
    assert_eq!(reply.header("retry-after"), retry_after, "{reply:?}");
    let allow = (status == 405).then_some("POST");
    assert_eq!(reply.header("allow"), allow, "{reply:?}");
}

/// Every `callbacks_total`, by outcome.
pub(crate) fn outcomes(bridge: &Bridge) -> BTreeMap<String, f64> {
    let text = bridge.get("/metrics").body;
    let series = text.lines().filter_map(|line| {
        let (outcome, count) =
            line.strip_prefix(r#"topic_bridge_callbacks_total{outcome=""#)?.split_once("\"} ")?;
        Some((outcome.to_owned(), count.parse().unwrap()))
    });
    series.collect()
}

/// The target without one of its parameters.
pub(crate) fn without(name: &str, target: &str) -> String {
    let (path, query) = target.split_once('?').unwrap();
    let rest = query.split('&').filter(|pair| !pair.starts_with(&format!("{name}=")));
    format!("{path}?{}", rest.collect::<Vec<_>>().join("&"))
}

fn check_sample(apps: &str, target: &str) {
    let bridge = Bridge::start(&[("apps", apps)]);
    let before = SystemTime::now();
    check_answer(&http::post(bridge.ingress, target, SAMPLE.as_bytes()), 200, OK);
    let after = SystemTime::now();

    let event = bridge.events().pop().unwrap();
    let time = event["time"].as_str().unwrap();
    assert!(time.len() == "2026-11-22T18:00:00.123Z".len() && time.ends_with('Z'), "{time}");
    let accepted = humantime::parse_rfc3339(time).unwrap();
    let millisecond = Duration::from_millis(1); // is cut off
    assert!(accepted + millisecond >= before && accepted <= after, "{time}");
    let expected = json!({
        "specversion": "1.0",
        "id": "92f58f4e-5a60-5ecf-9e83-6cbb3350b7e3",
        "type": "chat.topic.created.v1",
        "source": "/apps/1400000000",
        "subject": "@TGS#_@TGS#cQVLVHIM62CJ@TOPIC#_@TOPIC#cRTE3HIM62C5",
        "time": time,
        "datacontenttype": "application/json",
        "dataschema": "urn:topic-bridge:schema:topic-created:v1",
        "partitionkey": "@TGS#2J4SZEAEL",
        "data": {
            "sdk_app_id": 1400000000,
            "topic_id": "@TGS#_@TGS#cQVLVHIM62CJ@TOPIC#_@TOPIC#cRTE3HIM62C5",
            "topic_name": "MyFirstTopic",
            "group_id": "@TGS#2J4SZEAEL",
            "group_type": "Community",
            "operator": "group_root",
            "owner": "leckie",
            "custom_fields": [
                { "key": "UserDefined1", "value": "hello" },
                { "key": "UserDefined2", "value": "world" },
            ],
            "client": { "ip": "127.0.0.1", "platform": "iOS" },
            "accepted_at": time,
            "extra": {},
        },
    });
    assert_eq!(event, expected);
}

#[test]
fn the_platforms_sample_becomes_the_documented_event() {
    let apps = r#"[{sdk_app_id=1400000000,tokens=["0012345678"]}]"#;
    check_sample(apps, &signed(TOPIC_CREATED, &[]));
    let apps = "[{sdk_app_id=1400000000,allow_unsigned=true}]";
    let target = "/?SdkAppid=1400000000&CallbackCommand=Group.CallbackAfterCreateTopic\
        &contenttype=json&ClientIP=127.0.0.1&OptPlatform=iOS";
    check_sample(apps, target);
}

#[test]
fn what_is_absent_in_a_callback_is_absent_in_its_event() {
    let bridge = Bridge::start(&[]);
    let target = without("OptPlatform", &without("ClientIP", &signed(TOPIC_CREATED, &[])));
    assert_eq!(http::post(bridge.ingress, &target, body("bare").as_bytes()).status, 200);
    let event = bridge.events().pop().unwrap();
    let data = event["data"].as_object().unwrap();
    let mut names: Vec<_> = data.keys().map(String::as_str).collect();
    names.sort_unstable();
    let expected = [
        "accepted_at",
        "extra",
        "group_id",
        "group_type",
        "operator",
        "owner",
        "sdk_app_id",
        "topic_id",
        "topic_name",
    ];
    assert_eq!(names, expected);
}

pub(crate) const UNKNOWN_APP: &str = "SdkAppid is missing or is not one of this bridge's apps";

/// Three apps, with several tokens and without.
fn apps() -> Bridge {
    Bridge::start(&[(
        "apps",
        r#"[{sdk_app_id=1400000000,tokens=["0012345678","its second token"]},
            {sdk_app_id=2,tokens=["true"]},
            {sdk_app_id=3,tokens=["[abc]"],allow_unsigned=true}]"#,
    )])
}

/// Each arrival is answered and counted as what it is.
fn check_arrival(bridge: &Bridge, target: &str, outcome: &str, status: u16, answer: &str) {
    let body = body(&format!("topic {}", fastrand::u64(..)));
    let mut expected = outcomes(bridge);
    *expected.get_mut(outcome).unwrap() += 1.0;
    check_answer(&http::post(bridge.ingress, target, body.as_bytes()), status, answer);
    assert_eq!(outcomes(bridge), expected, "{target}");
}

#[test]
fn every_authentic_arrival_is_answered_ok_and_counted_as_accepted() {
    let bridge = apps();
    let now = now();
    let good = signed_by(APP, TOKEN, now);
    let accepted = |target: &str| check_arrival(&bridge, target, "accepted", 200, OK);
    accepted(&good);
    accepted(&signed_by(APP, "its second token", now));
    accepted(&signed_by(2, "true", now));
    accepted(&signed_by(3, "[abc]", now));
    accepted(&without("Sign", &without("RequestTime", &signed_by(3, "", 0))));
    accepted(&good.replace("SdkAppid", "SdkAppId"));
    let (parameters, sign) = good.split_once("&Sign=").unwrap();
    accepted(&format!("{parameters}&Sign={}", sign.to_uppercase()));
    accepted(&format!("{parameters}&sIGN={sign}").replace("RequestTime", "REQUESTTIME"));
    accepted(&good.replace("SdkAppid", "sdkappid").replace("CallbackCommand", "callbackcommand"));
    accepted(&good.replace("/?", "/?from=an%20operator&SdkAppid=7&Sign=&"));
    accepted(&good.replace("contenttype=json", "contenttype=JSON&new=%ff&&="));
    accepted(&good.replace("Group.Callback", "Group%2ECallback"));
    assert_eq!(bridge.events().len(), 12);
}

#[test]
fn every_other_arrival_is_refused_and_counted_as_what_it_is() {
    let bridge = apps();
    let now = now();
    let good = signed_by(APP, TOKEN, now);
    let check = |target: &str, outcome: &str, status: u16, answer: &str| {
        check_arrival(&bridge, target, outcome, status, answer);
    };
    let unknown = |target: &str| check(target, "unknown_app", 403, &fail(40301, UNKNOWN_APP));
    unknown("/");
    unknown("/?");
    unknown(&without("SdkAppid", &good));
    unknown(&signed_by(4, TOKEN, now));
    unknown(&good.replace("SdkAppid=", "SdkAppid=%2B"));

    let refused = |target: &str, info: &str| {
        check(target, "unauthenticated", 401, &fail(40101, info));
    };
    refused(&without("Sign", &good), "Sign is missing");
    refused(&without("RequestTime", &good), "RequestTime is missing");
    refused(
        &good.replace("&RequestTime=", "&RequestTime=x"),
        "RequestTime is not a Unix time in seconds",
    );
    refused(&good.replace("&Sign=", "&Sign=0"), "Sign is wrong");
    refused(&signed_by(APP, "true", now), "Sign is wrong");
    refused(&signed_by(2, TOKEN, now), "Sign is wrong");
    refused(&signed_by(3, TOKEN, now), "Sign is wrong");
    let earlier = signed_by(APP, "its second token", now - 1);
    refused(&earlier.replace(&(now - 1).to_string(), &now.to_string()), "Sign is wrong");
    refused(&signed_by(APP, "not a token", now - 999), "Sign is wrong");

    let info = "RequestTime is more than 60 s from this bridge's clock";
    let stale = |target: &str| check(target, "stale", 401, &fail(40102, info));
    stale(&signed_by(APP, TOKEN, now - 65));
    stale(&signed_by(APP, TOKEN, now + 120));
    stale(&signed_by(APP, TOKEN, 0));

    assert_eq!(bridge.events().len(), 0);
    assert!(!bridge.log().contains(TOKEN), "{}", bridge.log());
}

#[test]
fn only_a_post_to_the_configured_path_is_a_callback() {
    let bridge = Bridge::start(&[("ingress.path", "/im/callback")]);
    let good = signed(TOPIC_CREATED, &[]);
    let before = outcomes(&bridge);
    let check = |method: &str, path: &str, status: u16, answer: &str| {
        let target = good.replacen('/', path, 1);
        let body = body("topic");
        let reply = Connection::open(bridge.ingress).request(method, &target, &[], body.as_bytes());
        check_answer(&reply, status, answer);
    };
    let not_found = fail(40401, "no such path: see ingress.path");
    for path in ["/", "/im", "/im/callback/", "/IM/callback", "/im/callback/x", "//im/callback"] {
        check("POST", path, 404, &not_found);
        check("GET", path, 404, &not_found);
    }
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        check(method, "/im/callback", 405, &fail(40501, "the method must be POST"));
    }
    assert_eq!(outcomes(&bridge), before);
    check("POST", "/im/callback", 200, OK);
    assert_eq!(bridge.topic_ids(), ["topic"]);
}

#[test]
fn what_a_user_wrote_comes_out_to_the_letter() {
    let bridge = Bridge::start(&[]);
    let mut number = 0;
    let mut check = |name: &str, more: &str, expected: &[&str]| {
        number += 1;
        let plain = body(&format!("topic {number}")).replace("\"MyFirstTopic\"", name);
        let body = format!("{}{more}}}", plain.strip_suffix('}').unwrap());
        assert_eq!(bridge.call(&body).body, OK, "{body}");
        let line = bridge.page(&format!("?after={}", number - 1)).body;
        assert_eq!(line.matches('\n').count(), 1, "an event is one line: {line:?}");
        for expected in expected {
            assert!(line.contains(expected), "{line} should hold {expected}");
        }
    };
    check(
        r#""MyFirstTopic""#,
        r#","UserDefinedDataList":[{"Key":"b","Value":"1"},{"Key":"a","Value":""},
            {"Value":"2","Key":"b"}]"#,
        &[
            r#""custom_fields":[{"key":"b","value":"1"},{"key":"a","value":""},{"key":"b","value":"2"}]"#,
        ],
    );
    check(
        r#""🍵 \ud83c\udf75 \"tea\" \\ \u0000\u001b\n""#,
        r#","UserDefinedDataList":[{"Key":"\u0000","Value":"日本\u2028"}]"#,
        &[
            r#""topic_name":"🍵 🍵 \"tea\" \\ \u0000\u001b\n""#,
            "\"custom_fields\":[{\"key\":\"\\u0000\",\"value\":\"日本\u{2028}\"}]",
        ],
    );
    check(
        r#""""#,
        r#","UserDefinedDataList":[]"#,
        &[r#""topic_name":"""#, r#""custom_fields":[]"#],
    );
    check(
        r#""MyFirstTopic""#,
        ",\"Whole\":18446744073709551615 , \"Real\" : 1.50,\"Nested\": {\"k\":\n[ 1, {\"x\": null}],
            \"k\": \"\\u00fc \\/\"},\"Sdk\\u0041ppid\":true",
        &[concat!(
            r#""extra":{"Nested":{"k":[1,{"x":null}],"k":"\u00fc \/"},"Real":1.50,"#,
            r#""SdkAppid":true,"Whole":18446744073709551615}"#
        )],
    );
    let deep = format!("{}{}", "[".repeat(120), "]".repeat(120));
    check(r#""MyFirstTopic""#, &format!(r#","Deep":{deep}"#), &[&format!(r#"{{"Deep":{deep}}}"#)]);
    let custom_id = r#""subject":"topic 6","#;
    check(r#""MyFirstTopic""#, r#","EventTime":null"#, &[custom_id]);
}

#[test]
fn the_platforms_event_time_is_the_time_of_the_event() {
    let bridge = Bridge::start(&[]);
    let with_time =
        |topic: &str, time: &str| body(topic).replace('}', &format!(r#","EventTime":{time}}}"#));
    let written = ["1670574414123", r#""1670574414123""#];
    for (topic, time) in [("number", written[0]), ("text", written[1])] {
        assert_eq!(bridge.call(&with_time(topic, time)).body, OK);
        let event = bridge.events().pop().unwrap();
        assert_eq!(event["time"], "2022-12-09T08:26:54.123Z");
        assert_ne!(event["time"], event["data"]["accepted_at"]);
        assert_eq!(event["data"]["topic_id"], topic);
    }
    assert_eq!(bridge.call(&with_time("number", written[1])).body, OK);
    assert_eq!(bridge.counted("duplicate"), 1.0, "however the time is written");
    assert_eq!(bridge.call(&with_time("number", "1670574414124")).body, OK);
    let events = bridge.events();
    assert_eq!(events.len(), 3, "another time is another creation");
    assert_ne!(events[0]["id"], events[2]["id"]);
}

fn quarantine(bridge: &Bridge, arguments: &[&str]) -> Vec<Value> {
    let path = bridge.outbox();
    let ended = run(program().arg("outbox").args(arguments).arg("--path").arg(path));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_cannot_be_understood_is_refused_and_kept_to_the_byte() {
    let bridge = Bridge::start(&[("ingress.max_body_bytes", "1 MiB")]);
    let mut sent: Vec<(Vec<u8>, String)> = Vec::new();
    let mut check = |target: &str, body: &[u8], reason: &str| {
        let reply = http::post(bridge.ingress, target, body);
        let info = reply.json()["ErrorInfo"].as_str().unwrap().to_owned();
        assert!(info.starts_with(reason), "{info} should say {reason}");
        let info_as_json = Value::from(&*info).to_string();
        check_answer(&reply, 400, &fail(40001, info_as_json.trim_matches('"')));
        sent.push((body.to_vec(), info));
        assert_eq!(bridge.metric("topic_bridge_quarantined"), sent.len() as f64);
        assert_eq!(bridge.counted("malformed"), sent.len() as f64);
    };
    let good = signed(TOPIC_CREATED, &[]);
    let whole: Value = serde_json::from_str(&body("topic")).unwrap();
    for name in whole.as_object().unwrap().keys() {
        let mut lacking = whole.clone();
        lacking.as_object_mut().unwrap().remove(name);
        check(&good, lacking.to_string().as_bytes(), &format!("{name} is missing"));
        let mut number = whole.clone();
        number[name] = json!(7);
        check(&good, number.to_string().as_bytes(), &format!("{name} is not a string"));
    }
    let changed = |from: &str, to: &str| whole.to_string().replace(from, to).into_bytes();
    let added = |more: &str| changed("{", &format!("{{{more},"));
    check(&good, b"", "body is not JSON");
    check(&good, b"{\"half\":", "body is not JSON");
    check(&good, &added("\"a\":01"), "body is not JSON");
    check(&good, b" [1] ", "body is not a JSON object");
    check(&good, b"\xff\x00{}", "body is not UTF-8");
    check(&good, &changed("MyFirstTopic", "\\ud800"), "body is not JSON");
    check(&good, &changed("@TGS#2J4SZEAEL", ""), "GroupId is empty");
    check(&good, &changed("\"topic\"", "\"\""), "TopicId is empty");
    check(&good, &changed("\"topic\"", "null"), "TopicId is not a string");
    let differs = "the CallbackCommand of the body is not that of the URL";
    check(&good, &changed("AfterCreateTopic", "AfterCreateGroup"), differs);
    let missing = "CallbackCommand is missing from the URL";
    check(&without("CallbackCommand", &good), &changed("", ""), missing);
    let no_list = "UserDefinedDataList is not a list of Key and Value, both strings";
    for list in ["7", "{}", "[7]", r#"[{"Key":"a"}]"#, r#"[{"Key":"a","Value":1}]"#] {
        check(&good, &added(&format!(r#""UserDefinedDataList":{list}"#)), no_list);
    }
    let no_time = "EventTime is not a time in milliseconds since the epoch";
    for time in [r#""soon""#, "-1", "1.5", "253402300800000", "[]"] {
        check(&good, &added(&format!(r#""EventTime":{time}"#)), no_time);
    }
    let too_deep = "body nests 100000 levels deep, limit is 120";
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        let deep = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        check(&good, &added(&format!(r#""Deep":{deep}"#)), too_deep);
        check(&good, &added(&format!(r#""Name":{deep}"#)), "Name is not a string");
        check(&good, &added(&format!(r#""UserDefinedDataList":{deep}"#)), no_list);
    }
    let deeper = format!("{}{}", "[".repeat(121), "]".repeat(121));
    check(&good, &added(&format!(r#""Deep":{deeper}"#)), "body nests 121 levels deep");

    check_kept(&bridge, &sent);
}

fn check_kept(bridge: &Bridge, sent: &[(Vec<u8>, String)]) {
    let kept = quarantine(bridge, &["list", "--quarantined", "--json"]);
    assert_eq!(kept.len(), sent.len());
    for (index, (kept, (body, info))) in kept.iter().zip(sent).enumerate() {
        let body = match std::str::from_utf8(body) {
            Ok(text) => json!(text),
            Err(_) => json!({ "hex": hex::encode(body) }),
        };
        assert_eq!((&kept["body"], &kept["reason"]), (&body, &json!(info)));
        assert_eq!((&kept["number"], &kept["sdk_app_id"]), (&json!(index + 1), &json!(APP)));
    }
    let shown = quarantine(bridge, &["show", "--quarantined", "--json", "7"]);
    assert_eq!(shown, kept[6..7]);
    assert!(bridge.events().is_empty());
    assert_eq!(bridge.call(&body("a good one")).body, OK);
}

#[test]
fn the_same_callback_inside_the_window_is_one_event() {
    let bridge = Bridge::start(&[]);
    for _ in 0..3 {
        check_answer(&bridge.call(SAMPLE), 200, OK);
    }
    assert_eq!((bridge.counted("accepted"), bridge.counted("duplicate")), (1.0, 2.0));
    let other_app =
        r#"[{sdk_app_id=1400000000,tokens=["0012345678"]},{sdk_app_id=2,tokens=["x"]}]"#;
    let bridge = bridge.restart(&[("apps", other_app)]);
    check_answer(&bridge.call(SAMPLE), 200, OK);
    assert_eq!((bridge.counted("accepted"), bridge.counted("duplicate")), (0.0, 1.0));
    assert_eq!(bridge.events().len(), 1);

    let target = signed_by(2, "x", now());
    check_answer(&http::post(bridge.ingress, &target, SAMPLE.as_bytes()), 200, OK);
    assert_eq!(bridge.counted("accepted"), 1.0, "the same topic id in another app");
}

#[test]
fn the_same_topic_after_the_window_is_another_event() {
    let bridge = Bridge::start(&[("outbox.dedupe_window", "1ms")]);
    let ids = eventually("the topic is created anew", || {
        check_answer(&bridge.call(SAMPLE), 200, OK);
        let events = bridge.events();
        (events.len() == 2).then(|| [events[0]["id"].clone(), events[1]["id"].clone()])
    });
    assert_ne!(ids[0], ids[1]);
    let found = bridge.events();
    assert_eq!(found[0]["data"]["topic_id"], found[1]["data"]["topic_id"]);
    assert_eq!(found[1]["time"], found[1]["data"]["accepted_at"]);
}

#[test]
fn every_other_command_is_answered_ok_counted_and_not_published() {
    let bridge = Bridge::start(&[("ingress.max_body_bytes", "1 KiB")]);
    let ignored = |label: &str| {
        bridge.metric(&format!("topic_bridge_callbacks_ignored_total{{command={label:?}}}"))
    };
    let large = vec![b'x'; 2000];
    for (command, label) in [
        ("Group.CallbackBeforeCreateTopic", "Group.CallbackBeforeCreateTopic"),
        ("Group.CallbackAfterCreateGroup", "Group.CallbackAfterCreateGroup"),
        ("State.StateChange", "State.StateChange"),
        ("Group.CallbackAfterCreateTopicX", "other"),
        ("group.callbackaftercreatetopic", "other"),
        ("", "other"),
    ] {
        for body in [&b"{\"CallbackCommand\":\"x\"}"[..], b"{broken", b"\xff", b"", &large] {
            let (of_it, of_all) = (ignored(label), bridge.counted("ignored"));
            let reply = http::post(bridge.ingress, &signed(command, &[]), body);
            check_answer(&reply, 200, OK);
            assert_eq!(ignored(label), of_it + 1.0, "{command}");
            assert_eq!(bridge.counted("ignored"), of_all + 1.0, "{command}");
        }
    }
    let unsigned = without("Sign", &signed("Group.CallbackBeforeCreateTopic", &[]));
    let refusal = fail(40101, "Sign is missing");
    check_answer(&http::post(bridge.ingress, &unsigned, b"{}"), 401, &refusal);
    assert!(bridge.events().is_empty());
    assert_eq!(bridge.metric("topic_bridge_quarantined"), 0.0);
}
