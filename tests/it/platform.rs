//! The public listener as the platform sees it, over real sockets. Each kind of arrival has its one
//! answer, which can always be read; what is authentic comes out as an event or is kept in
//! quarantine, to the letter; and every limit holds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::bridge::{
    APP, Bridge, SAMPLE, TOKEN, TOPIC_CREATED, body, eventually, now, program, run, signed,
    signed_by,
};
use crate::http::{self, Connection, Reply, head};

const OK: &str = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;

fn fail(code: u32, info: &str) -> String {
    format!(r#"{{"ActionStatus":"FAIL","ErrorInfo":"{info}","ErrorCode":{code}}}"#)
}

fn check_answer(reply: &Reply, status: u16, answer: &str) {
    assert_eq!((reply.status, reply.body.as_str()), (status, answer), "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let retry_after = (status == 503).then_some("1");
    assert_eq!(reply.header("retry-after"), retry_after, "{reply:?}");
    let allow = (status == 405).then_some("POST");
    assert_eq!(reply.header("allow"), allow, "{reply:?}");
}

/// Every `callbacks_total`, by outcome.
fn outcomes(bridge: &Bridge) -> BTreeMap<String, f64> {
    let text = bridge.get("/metrics").body;
    let series = text.lines().filter_map(|line| {
        let (outcome, count) =
            line.strip_prefix(r#"topic_bridge_callbacks_total{outcome=""#)?.split_once("\"} ")?;
        Some((outcome.to_owned(), count.parse().unwrap()))
    });
    series.collect()
}

/// The target without one of its parameters.
fn without(name: &str, target: &str) -> String {
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

const UNKNOWN_APP: &str = "SdkAppid is missing or is not one of this bridge's apps";

#[test]
fn every_arrival_is_answered_and_counted_as_what_it_is() {
    let bridge = Bridge::start(&[(
        "apps",
        r#"[{sdk_app_id=1400000000,tokens=["0012345678","its second token"]},
            {sdk_app_id=2,tokens=["true"]},
            {sdk_app_id=3,tokens=["[abc]"],allow_unsigned=true}]"#,
    )]);
    let mut topics = 0;
    let mut check = |target: &str, outcome: &str, status: u16, answer: &str| {
        topics += 1;
        let body = body(&format!("topic {topics}"));
        let mut expected = outcomes(&bridge);
        *expected.get_mut(outcome).unwrap() += 1.0;
        check_answer(&http::post(bridge.ingress, target, body.as_bytes()), status, answer);
        assert_eq!(outcomes(&bridge), expected, "{target}");
    };
    let now = now();
    let good = signed_by(APP, TOKEN, now);

    let mut accepted = |target: &str| check(target, "accepted", 200, OK);
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

    let mut unknown = |target: &str| check(target, "unknown_app", 403, &fail(40301, UNKNOWN_APP));
    unknown("/");
    unknown("/?");
    unknown(&without("SdkAppid", &good));
    unknown(&signed_by(4, TOKEN, now));
    unknown(&good.replace("SdkAppid=", "SdkAppid=%2B"));

    let mut refused = |target: &str, info: &str| {
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
    refused(
        &signed_by(APP, "its second token", now - 1)
            .replace(&(now - 1).to_string(), &now.to_string()),
        "Sign is wrong",
    );
    refused(&signed_by(APP, "not a token", now - 999), "Sign is wrong");

    let info = "RequestTime is more than 60 s from this bridge's clock";
    let mut stale = |target: &str| check(target, "stale", 401, &fail(40102, info));
    stale(&signed_by(APP, TOKEN, now - 65));
    stale(&signed_by(APP, TOKEN, now + 120));
    stale(&signed_by(APP, TOKEN, 0));

    assert_eq!(bridge.events().len(), 12);
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

    let kept = quarantine(&bridge, &["list", "--quarantined", "--json"]);
    assert_eq!(kept.len(), sent.len());
    for (index, (kept, (body, info))) in kept.iter().zip(&sent).enumerate() {
        let body = match std::str::from_utf8(body) {
            Ok(text) => json!(text),
            Err(_) => json!({ "hex": hex::encode(body) }),
        };
        assert_eq!((&kept["body"], &kept["reason"]), (&body, &json!(info)));
        assert_eq!((&kept["number"], &kept["sdk_app_id"]), (&json!(index + 1), &json!(APP)));
    }
    let shown = quarantine(&bridge, &["show", "--quarantined", "--json", "7"]);
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

fn chunked(method: &str, target: &str, body: &[u8]) -> Vec<u8> {
    let mut request =
        format!("{method} {target} HTTP/1.1\r\nHost: bridge\r\nTransfer-Encoding: chunked\r\n\r\n")
            .into_bytes();
    for chunk in body.chunks(10_000) {
        request.extend(format!("{:x}\r\n", chunk.len()).bytes());
        request.extend(chunk);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    request
}

#[test]
fn a_body_may_be_as_large_as_the_limit_and_not_a_byte_larger() {
    let bridge = Bridge::start(&[("ingress.max_body_bytes", "10 kB")]);
    let target = signed(TOPIC_CREATED, &[]);
    let of_size = |topic: &str, size: usize| {
        let body = body(topic);
        format!("{body}{}", " ".repeat(size - body.len())).into_bytes()
    };
    let too_large = fail(41301, "body is larger than the limit of 10000 bytes");
    let check = |request: &[u8], status: u16, answer: &str| {
        let mut connection = Connection::open(bridge.ingress);
        connection.send(request);
        check_answer(&connection.reply().unwrap(), status, answer);
    };
    let whole = |body: &[u8]| [&head("POST", &target, &[], body.len()), body].concat();
    check(&whole(&of_size("whole", 10_000)), 200, OK);
    check(&chunked("POST", &target, &of_size("in chunks", 10_000)), 200, OK);
    check(&whole(&of_size("too large", 10_001)), 413, &too_large);
    check(&chunked("POST", &target, &of_size("too large", 10_001)), 413, &too_large);
    let expecting = head("POST", &target, &["Expect: 100-continue"], 10_001);
    check(&expecting, 413, &too_large);
    assert_eq!(bridge.counted("too_large"), 3.0);
    assert_eq!(bridge.topic_ids(), ["whole", "in chunks"]);
}

/// Closing a connection while something unread is in it takes one's own last words back, and many a
/// client does not look for an answer after a write that failed. So all of it can be sent.
#[test]
fn a_refusal_can_be_read_by_who_is_still_sending() {
    let bridge = Bridge::start(&[("ingress.request_timeout", "10s")]);
    let large = vec![b'x'; 5_000_000];
    let good = signed(TOPIC_CREATED, &[]);
    let check = |method: &str, target: &str, status: u16, answer: &str| {
        let whole = [&head(method, target, &[], large.len()), &large[..]].concat();
        for request in [whole, chunked(method, target, &large)] {
            let mut connection = Connection::open(bridge.ingress);
            connection.send(&request);
            check_answer(&connection.reply().unwrap(), status, answer);
        }
    };
    check("POST", &good, 413, &fail(41301, "body is larger than the limit of 65536 bytes"));
    check("POST", &without("Sign", &good), 401, &fail(40101, "Sign is missing"));
    check("POST", "/", 403, &fail(40301, UNKNOWN_APP));
    check("POST", "/nowhere", 404, &fail(40401, "no such path: see ingress.path"));
    check("PUT", &good, 405, &fail(40501, "the method must be POST"));
}

#[test]
fn a_slow_body_is_told_so_and_cut_off() {
    let bridge = Bridge::start(&[("ingress.request_timeout", "300ms")]);
    let (target, body) = (signed(TOPIC_CREATED, &[]), body("slow"));
    let whole = [&head("POST", &target, &[], body.len()), body.as_bytes()].concat();
    let in_chunks = chunked("POST", &target, body.as_bytes());
    let other = head("POST", &signed("State.StateChange", &[]), &[], 5);
    for half in [&whole[..whole.len() - 1], &in_chunks[..in_chunks.len() - 3], &other] {
        let mut connection = Connection::open(bridge.ingress);
        connection.send(half);
        let reply = connection.reply().unwrap();
        check_answer(&reply, 408, &fail(40801, "request was not complete in time"));
        assert_eq!(reply.header("connection"), Some("close"));
        assert!(connection.is_closed());
    }
    assert_eq!(bridge.counted("timeout"), 3.0);
    assert!(bridge.events().is_empty());
}

#[test]
fn a_half_sent_head_is_cut_off() {
    let bridge = Bridge::start(&[("ingress.header_timeout", "300ms")]);
    let mut after_a_request = Connection::open(bridge.ingress);
    let target = signed(TOPIC_CREATED, &[]);
    let reply = after_a_request.request("POST", &target, &[], body("first").as_bytes());
    assert_eq!(reply.status, 200);
    after_a_request.send(b"POST");
    assert!(after_a_request.is_closed());
    for half in ["", "P", "POST / HTTP/1.1\r\nHost: bridge\r\n"] {
        let mut connection = Connection::open(bridge.ingress);
        connection.send(half.as_bytes());
        assert!(connection.is_closed(), "{half:?}");
    }
    // Nor does a letter now and then buy time.
    let mut trickling = Connection::open(bridge.ingress);
    trickling.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let started = Instant::now();
    eventually("the trickle is cut off", || {
        let sent = std::io::Write::write_all(&mut trickling.stream, b"P");
        let read = std::io::Read::read(&mut trickling.stream, &mut [0]);
        let is_over = sent.is_err() || read.as_ref().is_ok_and(|read| *read == 0);
        let is_reset = read.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset);
        (is_over || is_reset).then_some(())
    });
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn an_idle_connection_outlives_the_limit_of_a_head_and_is_closed_in_its_own_time() {
    let (header_timeout, idle_timeout) = (Duration::from_millis(300), Duration::from_secs(3));
    let bridge =
        Bridge::start(&[("ingress.header_timeout", "300ms"), ("ingress.idle_timeout", "3s")]);
    let mut idle = Connection::open(bridge.ingress);
    let mut call = |topic: &str| {
        let target = signed(TOPIC_CREATED, &[]);
        assert_eq!(idle.request("POST", &target, &[], body(topic).as_bytes()).status, 200);
    };
    for topic in ["one", "two"] {
        call(topic);
        let since = Instant::now();
        assert!(Connection::open(bridge.ingress).is_closed(), "who sends no head is cut off");
        assert!(since.elapsed() >= header_timeout);
    }
    call("three");
    let since = Instant::now();
    assert!(idle.is_closed());
    let idled = since.elapsed();
    assert!(idled + Duration::from_millis(50) > idle_timeout, "closed after {idled:?}");
}

#[test]
fn a_connection_too_many_is_told_so() {
    let bridge = Bridge::start(&[("ingress.max_connections", "2")]);
    let target = signed(TOPIC_CREATED, &[]);
    let admitted = ["one", "two"].map(|topic| {
        let mut connection = Connection::open(bridge.ingress);
        let reply = connection.request("POST", &target, &[], body(topic).as_bytes());
        assert_eq!(reply.status, 200);
        connection
    });
    let mut third = Connection::open(bridge.ingress);
    let reply = third.request("POST", &target, &[], body("three").as_bytes());
    check_answer(&reply, 503, &fail(50301, "too many connections"));
    assert_eq!(reply.header("connection"), Some("close"));
    assert_eq!(bridge.counted("overloaded"), 1.0);
    drop(admitted);
    eventually("there is room", || (bridge.call(&body("three")).status == 200).then_some(()));
}

#[test]
fn a_callback_too_many_is_told_so_and_one_that_is_gone_makes_room() {
    let bridge = Bridge::start(&[
        ("ingress.max_in_flight", "1"),
        ("ingress.request_timeout", "10m"), // so that only the hang-up can make room
    ]);
    let target = signed(TOPIC_CREATED, &[]);
    let hold = || {
        let mut held = Connection::open(bridge.ingress);
        held.send(&head("POST", &target, &["Expect: 100-continue"], 10));
        let word = held.read_until(|text| text.ends_with("\r\n\r\n"));
        assert!(word.starts_with("HTTP/1.1 100 "), "{word}"); // so it is being worked on
        held
    };
    let mut held = hold();
    let refusal = fail(50301, "too many callbacks are being worked on");
    check_answer(&bridge.call(&body("topic")), 503, &refusal);
    assert_eq!(bridge.counted("overloaded"), 1.0);
    held.send(b"not a body");
    assert_eq!(held.reply().unwrap().status, 400);
    check_answer(&bridge.call(&body("topic")), 200, OK);

    let mut held = hold();
    check_answer(&bridge.call(&body("another")), 503, &refusal);
    held.send(b"half");
    drop(held);
    eventually("there is room", || (bridge.call(&body("another")).status == 200).then_some(()));
    assert_eq!(bridge.topic_ids(), ["topic", "another"]);
    assert_eq!(bridge.metric("topic_bridge_quarantined"), 1.0);
}

/// Locks the outbox from outside, as an operator's `sqlite3` might, so that no commit can come.
fn lock_out(bridge: &Bridge) -> rusqlite::Connection {
    let intruder = rusqlite::Connection::open(bridge.outbox()).unwrap();
    intruder.execute_batch("BEGIN IMMEDIATE").unwrap();
    intruder
}

#[test]
fn an_event_that_commits_after_its_deadline_is_refused_and_delivered_all_the_same() {
    let bridge = Bridge::start(&[("ingress.ack_deadline", "100ms")]);
    let intruder = lock_out(&bridge);
    let refusal = fail(50301, "the disk did not answer in time");
    check_answer(&bridge.call(&body("late")), 503, &refusal);
    assert_eq!(bridge.counted("overloaded"), 1.0);
    intruder.execute_batch("ROLLBACK").unwrap();
    eventually("the event is there", || (bridge.topic_ids() == ["late"]).then_some(()));
}

#[test]
fn a_locked_outbox_refuses_and_takes_again_by_itself() {
    let bridge = Bridge::start(&[("ingress.ack_deadline", "10s")]);
    let intruder = lock_out(&bridge);
    check_answer(&bridge.call(&body("topic")), 503, &fail(50301, "the outbox is locked"));
    assert_eq!(bridge.readiness().0, 503);
    intruder.execute_batch("ROLLBACK").unwrap();
    eventually("it is ready again", || (bridge.readiness().0 == 200).then_some(()));
    check_answer(&bridge.call(&body("topic")), 200, OK);
    assert_eq!(bridge.topic_ids(), ["topic"]);
}

#[test]
fn one_connection_carries_many_requests_one_after_another_and_at_once() {
    let bridge = Bridge::start(&[]);
    let target = signed(TOPIC_CREATED, &[]);
    let mut connection = Connection::open(bridge.ingress);
    for number in 0..200 {
        let body = body(&format!("in turn {number}"));
        let reply = connection.request("POST", &target, &[], body.as_bytes());
        check_answer(&reply, 200, OK);
        assert_eq!(reply.header("connection"), None);
    }
    let mut requests = Vec::new();
    for number in 0..50 {
        let body = body(&format!("at once {number}"));
        let target = if number % 3 == 0 { "/" } else { &target };
        requests.extend(head("POST", target, &[], body.len()));
        requests.extend(body.bytes());
    }
    connection.send(&requests);
    for number in 0..50 {
        let expected = if number % 3 == 0 { 403 } else { 200 };
        assert_eq!(connection.reply().unwrap().status, expected, "answer {number}");
    }
    assert_eq!(bridge.events().len(), 200 + 33);
}

#[test]
fn who_hangs_up_without_waiting_for_the_answer_loses_nothing_and_holds_nothing_up() {
    let bridge =
        Bridge::start(&[("ingress.max_in_flight", "10"), ("ingress.max_connections", "10")]);
    let target = signed(TOPIC_CREATED, &[]);
    for number in 1..=50 {
        let body = body(&format!("topic {number}"));
        let mut connection = Connection::open(bridge.ingress);
        connection.send(&[&head("POST", &target, &[], body.len()), body.as_bytes()].concat());
        drop(connection);
        eventually("its event is there", || {
            (bridge.page("").header("next-after") == Some(&number.to_string())).then_some(())
        });
    }
    check_answer(&bridge.call(&body("last")), 200, OK);
    assert_eq!(bridge.counted("accepted"), 51.0);
}
