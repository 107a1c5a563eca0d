//! The public listener as the platform sees it, over real sockets. Each kind of request has exactly one
//! answer, which can always be read, and every authentic callback becomes an event.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::bridge::{
    APP, Bridge, SAMPLE, TOKEN, TOPIC_CREATED, body, eventually, now, signed, signed_by,
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
        ("Bot.OnC2CMessage", "Bot.OnC2CMessage"),
        ("Push.SomethingNew", "Push."),
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
