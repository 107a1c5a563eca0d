//! What a callback's body may hold: it comes out to the letter, or as text where readers could not read it;
//! and what cannot be understood is refused, and kept to the byte.

use serde_json::{Value, json};

use crate::bridge::{APP, Bridge, TOPIC_CREATED, body, program, run, signed};
use crate::http;
use crate::platform::{OK, check_answer, fail, without};

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
}

/// Every line of the stream can be read by a strict reader, whatever the platform adds to its callbacks.
#[test]
fn what_a_strict_reader_would_refuse_comes_out_as_text() {
    let bridge = Bridge::start(&[]);
    let mut number = 0;
    let mut check = |value: &str, expected: &str| {
        number += 1;
        let topic = format!("topic {number}");
        assert_eq!(bridge.call(&with(&topic, &format!(r#""New": {value}"#))).body, OK, "{value}");
        let line = bridge.page(&format!("?after={}", number - 1)).body;
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["subject"], topic);
        assert!(line.contains(&format!(r#""extra":{{"New":{expected}}}"#)), "{expected}: {line}");
    };
    check(r#""\ud800""#, r#""\"\\ud800\"""#);
    check(r#"{"\udc00": [1]}"#, r#""{\"\\udc00\":[1]}""#);
    check("[1e400, 2]", r#""[1e400,2]""#);
    let long = "9".repeat(310);
    check(&long, &format!("{long:?}"));
    check(r#""\ud83c\udf75""#, r#""\ud83c\udf75""#);
    check(r#"{"a":1,"a":-0,"b":1E+2}"#, r#"{"a":1,"a":-0,"b":1E+2}"#);
    check("18446744073709551616", "18446744073709551616");
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_body() {
    let bridge = Bridge::start(&[]);
    assert_eq!(bridge.call(&format!("\u{feff}{}", body("marked"))).body, OK);
    assert_eq!(bridge.topic_ids(), ["marked"]);
}

/// The body of a callback with one more field.
fn with(topic: &str, field: &str) -> String {
    body(topic).replace('}', &format!(",{field}}}"))
}

#[test]
fn the_platforms_event_time_is_the_time_of_the_event() {
    let bridge = Bridge::start(&[]);
    let with_time = |topic: &str, time: &str| with(topic, &format!(r#""EventTime":{time}"#));
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

#[test]
fn an_event_time_that_is_none_counts_as_absent() {
    let bridge = Bridge::start(&[]);
    let check = |topic: &str, time: &str| {
        let body = with(topic, &format!(r#""EventTime":{time}"#));
        assert_eq!(bridge.call(&body).body, OK, "{time}");
        let event = bridge.events().pop().unwrap();
        assert_eq!(event["time"], event["data"]["accepted_at"], "{time}");
        let kept: Value = serde_json::from_str(time).unwrap();
        assert_eq!(event["data"]["extra"], json!({ "EventTime": kept }));
    };
    let seconds = r#""1670574414""#;
    let others =
        ["0", "null", "1670574414123.5", "-1", "253402300800000", "[]", "\"\"", "\"soon\""];
    for time in others.into_iter().chain([seconds]) {
        check(&format!("topic of {time}"), time);
    }
    let accepted = bridge.events().len();
    assert_eq!(bridge.call(&body("topic of 0")).body, OK);
    assert_eq!(bridge.events().len(), accepted, "it is no part of the id");
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
    check(&good, &added(r#""\ud800":1"#), "body is not JSON");
    check(&good, b"\xef\xbb\xbf\xef\xbb\xbf{}", "body is not JSON");
    check(&good, &changed("@TGS#2J4SZEAEL", ""), "GroupId is empty");
    check(&good, &changed("\"topic\"", "\"\""), "TopicId is empty");
    check(&good, &changed("\"topic\"", "null"), "TopicId is not a string");
    let differs = "the CallbackCommand of the body is not that of the URL";
    check(&good, &changed("AfterCreateTopic", "AfterCreateGroup"), differs);
    let missing = "CallbackCommand is missing from the URL";
    check(&without("CallbackCommand", &good), &changed("", ""), missing);
    let no_list = "UserDefinedDataList is not a list of Key and Value, both strings";
    for list in
        ["7", "{}", "[7]", r#"[["a","b"]]"#, r#"[{"Key":"a"}]"#, r#"[{"Key":"a","Value":1}]"#]
    {
        check(&good, &added(&format!(r#""UserDefinedDataList":{list}"#)), no_list);
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
