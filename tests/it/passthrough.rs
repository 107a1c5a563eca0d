//! In front of a backend: callbacks of other commands reach it as they came, its answers go back as they are, and
//! whatever becomes of it, the platform is answered in time and topics are created.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::backend::{Backend, Mood};
use crate::bridge::{Bridge, TOPIC_CREATED, body, eventually, program, run, signed};
use crate::http::{self, Connection, Reply, head};
use crate::platform::{OK, check_answer};

const BEFORE: &str = "C2C.CallbackBeforeSendMsg";

fn bridge(backend: &Backend, more: &[(&str, &str)]) -> Bridge {
    let url = backend.url();
    Bridge::start(&[&[("passthrough.url", &*url)], more].concat())
}

fn outcomes(bridge: &Bridge) -> BTreeMap<String, f64> {
    let text = bridge.get("/metrics").body;
    let series = text.lines().filter_map(|line| {
        let (outcome, count) =
            line.strip_prefix(r#"topic_bridge_passthrough_total{outcome=""#)?.split_once("\"} ")?;
        Some((outcome.to_owned(), count.parse().unwrap()))
    });
    series.filter(|(_, count)| *count > 0.0).collect()
}

fn check_outcomes(bridge: &Bridge, expected: &[(&str, f64)]) {
    let expected =
        expected.iter().map(|(outcome, count)| ((*outcome).to_owned(), *count)).collect();
    assert_eq!(outcomes(bridge), expected);
}

/// A callback of another command.
fn call(bridge: &Bridge, command: &str) -> Reply {
    http::post(bridge.ingress, &signed(command, &[]), b"{}")
}

#[test]
fn a_backend_behaves_the_same_with_the_bridge_in_between() {
    let backend = Backend::start();
    let bridge = bridge(&backend, &[]);
    let bodies: [&[u8]; 4] =
        [b"{\"CallbackCommand\":\"x\"}", b"", b"\xff\x00 not JSON", &[b'x'; 60_000]];
    let headers = ["Content-Type: text/x-any", "X-Own: 1", "X-Own: 2", "User-Agent: the platform"];
    for command in [BEFORE, "C2C.CallbackAfterSendMsg", "State.StateChange", "New.Command"] {
        for body in bodies {
            let target = signed(
                command,
                &["more=%2B%20+&x=%zz&&", "CallbackCommand=".len().to_string().as_str()],
            );
            let target = target.replace("&more", &format!("&CallbackCommand={command}&more"));
            let query = target.strip_prefix("/?").unwrap();
            let own = format!("/im/callback?key=own&{query}");
            let direct = http::request(backend.address, "POST", &own, &headers, body);
            let through = http::request(bridge.ingress, "POST", &target, &headers, body);
            assert_eq!(through, direct, "{command}");
            let seen = backend.seen();
            let [direct, through] = &seen[seen.len() - 2..] else { panic!("both arrive") };
            assert_eq!(direct.body, through.body);
            assert_eq!(direct.head[0], through.head[0], "the request line, to the letter");
            let mut lines = [&direct.head, &through.head].map(|head| {
                let is_host = |line: &&String| line.to_lowercase().starts_with("host:");
                let rest = head[1..].iter().filter(|line| !is_host(line));
                rest.map(|line| line.to_lowercase()).collect::<Vec<_>>()
            });
            lines[0].push("x-forwarded-for: 127.0.0.1".into());
            lines.iter_mut().for_each(|lines| lines.sort());
            assert_eq!(lines[0], lines[1]);
            assert_eq!(through.header("host"), Some(&*backend.address.to_string()));
        }
    }
    check_outcomes(&bridge, &[("answered", 16.0)]);
    assert_eq!(bridge.counted("ignored"), 16.0);
    assert_eq!(bridge.call(&body("topic")).body, OK);
    assert_eq!(bridge.topic_ids(), ["topic"]);
    assert_eq!(backend.seen().len(), 32, "a topic's creation is not forwarded");
}

#[test]
fn connections_to_the_backend_are_kept() {
    let backend = Backend::start();
    let bridge = bridge(&backend, &[]);
    let mut connection = Connection::open(bridge.ingress);
    for _ in 0..20 {
        assert_eq!(connection.request("POST", &signed(BEFORE, &[]), &[], b"{}").status, 200);
    }
    assert!(backend.opened() < 5, "{}", backend.opened());
}

#[test]
fn what_is_not_authentic_or_a_topics_creation_never_reaches_the_backend() {
    let backend = Backend::start();
    let bridge = bridge(&backend, &[]);
    let good = signed(BEFORE, &[]);
    for target in [good.replace("Sign=", "Sign=0"), good.replace("SdkAppid=1", "SdkAppid=2")] {
        let reply = http::post(bridge.ingress, &target, b"{}");
        assert!([401, 403].contains(&reply.status), "{reply:?}");
    }
    bridge.call(&body("topic"));
    bridge.call("{}");
    assert_eq!(backend.seen(), []);
}

#[test]
fn where_there_is_no_answer_in_time_the_platform_gets_its_ok() {
    let backend = Backend::start();
    let bridge = bridge(&backend, &[("passthrough.timeout", "200ms")]);
    for (mood, outcome) in [
        (Mood::Silent, "timeout"),
        (Mood::Slow(Duration::from_millis(600)), "timeout"),
        (Mood::Broken, "failed"),
        (Mood::Talkative(300_000), "too_large"),
        (Mood::Talkative(200_000), "answered"),
        (Mood::Answering, "answered"),
    ] {
        backend.becomes(mood);
        let before = outcomes(&bridge).get(outcome).copied().unwrap_or_default();
        let reply = call(&bridge, BEFORE);
        assert_eq!(reply.body == OK, outcome != "answered", "{mood:?}: {reply:?}");
        assert_eq!(outcomes(&bridge)[outcome], before + 1.0, "{mood:?}");
        assert_eq!(bridge.call(&body(&format!("{mood:?}"))).body, OK);
    }
    assert_eq!(bridge.readiness().1["passthrough"]["state"], "ready", "it can be reached");
}

/// The platform waits for two seconds, and so does the bridge: a backend that is slower than the timeout does its
/// work to the end.
#[test]
fn a_slow_exchange_is_not_cut_off() {
    let backend = Backend::start();
    let bridge = bridge(&backend, &[("passthrough.timeout", "100ms")]);
    backend.becomes(Mood::Slow(Duration::from_millis(600)));
    check_answer(&call(&bridge, "State.StateChange"), 200, OK);
    eventually("it is answered", || (backend.answered() == 1).then_some(()));
    assert_eq!(backend.hung_up(), 0);
}

#[test]
fn a_backend_that_is_away_is_tried_once_and_then_by_a_probe() {
    let backend = Backend::start();
    let bridge = bridge(&backend, &[]);
    assert_ne!(call(&bridge, BEFORE).body, OK);
    let address = backend.kill();
    eventually("it is known to be away", || {
        check_answer(&call(&bridge, BEFORE), 200, OK);
        (outcomes(&bridge).get("unreachable") == Some(&1.0)).then_some(())
    });
    for _ in 0..50 {
        check_answer(&call(&bridge, BEFORE), 200, OK);
    }
    let found = outcomes(&bridge);
    assert_eq!((found["unreachable"], found["skipped"] >= 50.0), (1.0, true), "{found:?}");
    let (status, readiness) = bridge.readiness();
    assert_eq!((status, &readiness["status"]), (200, &"degraded".into()), "{readiness}");
    let reason = readiness["passthrough"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("the backend cannot be reached: "), "{reason}");
    assert_eq!(bridge.call(&body("topic")).body, OK);

    let backend = Backend::on(address);
    eventually("it is there again", || (call(&bridge, BEFORE).body != OK).then_some(()));
    assert_eq!(bridge.readiness().1["passthrough"]["state"], "ready");
    assert_eq!(backend.seen().len(), 1);
    for words in ["cannot be reached: callbacks of other commands", "can be reached again"] {
        eventually("it is told once", || (bridge.logged(words).len() == 1).then_some(()));
    }
}

/// A host that is gone does not say so: connecting to it ends with a timeout.
#[test]
fn a_connect_timeout_is_paid_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connect =
        |address: &SocketAddr| TcpStream::connect_timeout(address, Duration::from_millis(100));
    let mut queue = Vec::new(); // of connections that nobody accepts, until it is full
    while let Ok(connection) = connect(&address) {
        queue.push(connection);
    }
    let url = format!("http://{address}/");
    let bridge = Bridge::start(&[("passthrough.url", &url)]);
    for _ in 0..20 {
        check_answer(&call(&bridge, BEFORE), 200, OK);
    }
    check_outcomes(&bridge, &[("skipped", 19.0), ("unreachable", 1.0)]);
}

#[test]
fn neither_many_callbacks_nor_a_silent_backend_keep_a_topics_creation_out() {
    let backend = Backend::start();
    backend.becomes(Mood::Silent);
    let more = [("passthrough.max_in_flight", "2"), ("ingress.max_in_flight", "1")];
    let bridge = bridge(&backend, &more);
    let mut waiting: Vec<_> = (0..6)
        .map(|_| {
            let mut connection = Connection::open(bridge.ingress);
            connection.send(&head("POST", &signed(BEFORE, &[]), &[], 2));
            connection.send(b"{}");
            connection
        })
        .collect();
    eventually("two of them wait, the others have their answer", || {
        (outcomes(&bridge).get("overloaded") == Some(&4.0)).then_some(())
    });
    check_answer(&bridge.call(&body("topic")), 200, OK);
    for connection in &mut waiting {
        check_answer(&connection.reply().unwrap(), 200, OK);
    }
    check_outcomes(&bridge, &[("overloaded", 4.0), ("timeout", 2.0)]);
}

#[test]
fn who_hangs_up_does_not_keep_a_callback_from_the_backend() {
    let backend = Backend::start();
    backend.becomes(Mood::Slow(Duration::from_millis(200)));
    let bridge = bridge(&backend, &[]);
    let mut connection = Connection::open(bridge.ingress);
    connection.send(&head("POST", &signed("State.StateChange", &[]), &[], 2));
    connection.send(b"{}");
    eventually("it is on its way", || (backend.seen().len() == 1).then_some(()));
    drop(connection);
    eventually("it is answered", || (backend.answered() == 1).then_some(()));
    assert_eq!(backend.hung_up(), 0);
}

#[test]
fn a_check_tries_the_backend() {
    let backend = Backend::start();
    let bridge = bridge(&backend, &[]);
    let check = || run(bridge.command("check").arg("--connect"));
    let good = check();
    assert_eq!(good.code, Some(0), "{good:?}");
    let shown = format!("good     passthrough: http://{}/im/callback?*** accepts", backend.address);
    assert!(good.stderr.contains(&shown), "{good:?}");
    assert!(!good.stdout.contains("key=own"), "its query may be a secret: {good:?}");
    backend.kill();
    let bad = check();
    assert_eq!(bad.code, Some(1), "{bad:?}");
    assert!(bad.stderr.contains("bad      passthrough: "), "{bad:?}");
}

#[test]
fn a_topics_creation_under_another_name_is_answered_ok_and_quarantined() {
    let check = |bridge: &Bridge, expected: &str| {
        let names = [
            "group.callbackaftercreatetopic",
            "Group.CallbackAfterCreateTopic%20",
            "",
            "Group%252ECallbackAfterCreateTopic",
        ];
        for (number, command) in (1..).zip(names) {
            let target = signed(command, &[]);
            let reply = http::post(bridge.ingress, &target, body("topic").as_bytes());
            assert_eq!((reply.status, &*reply.body), (200, expected), "{command}");
            assert_eq!(bridge.metric("topic_bridge_quarantined"), f64::from(number), "{command}");
        }
        assert!(bridge.events().is_empty());
        let mut list = program();
        list.args(["outbox", "list", "--quarantined", "--json", "--path"]).arg(bridge.outbox());
        let listed = run(&mut list).stdout;
        assert!(listed.contains(r#"the URL is \"group.callbackaftercreatetopic\""#), "{listed}");
        assert!(
            listed.contains(r#"that of the body is \"Group.CallbackAfterCreateTopic\""#),
            "{listed}"
        );
        let told = || bridge.logged("quarantined, and not published").len();
        eventually("it is told once", || (told() == 1).then_some(()));
    };
    check(&Bridge::start(&[]), OK);
    let backend = Backend::start();
    let own = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0,"By":"backend"}"#;
    check(&bridge(&backend, &[]), own);
    assert_eq!(backend.seen().len(), 4);

    let bridge = Bridge::start(&[("outbox.quarantine_events", "1")]);
    let call = || {
        let target = signed("group.callbackaftercreatetopic", &[]);
        http::post(bridge.ingress, &target, body("topic").as_bytes()).status
    };
    assert_eq!((call(), call()), (200, 503), "an OK says that it is kept");
    assert_eq!(signed(TOPIC_CREATED, &[]).matches(TOPIC_CREATED).count(), 1);
}
