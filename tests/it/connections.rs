//! The public listener's limits, over real sockets: on a body, a head, a connection, and all connections
//! together. A refused client can read why.

use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use crate::bridge::{Bridge, TOPIC_CREATED, body, eventually, signed};
use crate::http::{Connection, head};
use crate::platform::{OK, UNKNOWN_APP, check_answer, fail, without};

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
    let bridge =
        Bridge::start(&[("ingress.request_timeout", "2s"), ("ingress.ack_deadline", "2s")]);
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

/// Whose chunks are broken will not send a whole body, however long one waits.
#[test]
fn a_body_with_broken_chunks_is_no_body() {
    let bridge = Bridge::start(&[]);
    let good = signed(TOPIC_CREATED, &[]);
    let broken = fail(40001, "body is not valid HTTP: its chunks are broken");
    let check = |target: &str, chunks: &str, status: u16, answer: &str| {
        let mut request = format!(
            "POST {target} HTTP/1.1\r\nHost: bridge\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
        );
        request += &"x".repeat(100_000); // what follows is not read as anything
        let mut connection = Connection::open(bridge.ingress);
        connection.send(request.as_bytes());
        let reply = connection.reply().unwrap();
        check_answer(&reply, status, answer);
        assert_eq!(reply.header("connection"), Some("close"));
        // A close at once would be a reset, which may take the answer back before it is read.
        for _ in 0..10 {
            connection.send(&[b'x'; 1000]);
            thread::yield_now();
        }
        assert!(connection.is_closed());
    };
    check(&good, "five\r\nhello\r\n", 400, &broken);
    check(&good, "5\r\nhelloo", 400, &broken);
    check(&good, "5\nhello", 400, &broken);
    check(&good, "-5\r\nhello", 400, &broken);
    check(&good, "fffffffffffffffff\r\nhello", 400, &broken);
    check(&good, "1;\n\r\n{", 400, &broken);
    check(&signed("Group.CallbackBeforeSendMsg", &[]), "five\r\n", 400, &broken);
    assert_eq!(bridge.counted("malformed"), 7.0);
    assert_eq!(bridge.metric("topic_bridge_quarantined"), 0.0, "a part of a body is none");
}

#[test]
fn a_head_may_be_as_large_as_the_limit_and_not_a_byte_larger() {
    let bridge = Bridge::start(&[]);
    let (target, body) = (signed(TOPIC_CREATED, &[]), body("topic"));
    let whole = |size: usize, in_target: bool| {
        let (mut target, mut headers) = (target.clone(), "X-Filler: ".to_owned());
        let missing = size - head("POST", &target, &[&headers], body.len()).len();
        let filled = if in_target { &mut target } else { &mut headers };
        let letters = "=x".chars().chain(std::iter::repeat('x'));
        filled.extend("&".chars().take(in_target.into()).chain(letters).take(missing));
        let head = head("POST", &target, &[&headers], body.len());
        assert_eq!(head.len(), size);
        [&head, body.as_bytes()].concat()
    };
    let check = |size: usize, status: u16| {
        for in_target in [false, true] {
            let whole = whole(size, in_target);
            for pieces in [1, 2, 7] {
                let mut connection = Connection::open(bridge.ingress);
                for piece in whole.chunks(whole.len().div_ceil(pieces)) {
                    // The refusal may come before all of it is out.
                    let _ = connection.stream.write_all(piece);
                }
                let reply = connection.reply().expect("an answer");
                assert_eq!(reply.status, status, "{size} bytes, {pieces} pieces");
                if status == 431 {
                    assert!(connection.is_closed());
                }
            }
        }
    };
    for size in [16_384, 32_000, 32_767, 32_768] {
        check(size, 200);
    }
    for size in [32_769, 33_000, 40_000, 65_535, 65_536, 65_537, 100_000, 1_000_000] {
        check(size, 431);
    }
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

/// The private listener's connections may all be taken by readers; a probe that fails would end the bridge.
#[test]
fn health_is_shown_however_many_read_the_events() {
    let bridge = Bridge::start(&[("admin.max_connections", "1")]);
    let _reader = bridge.stream("/events", &[]);
    for path in ["/livez", "/readyz"] {
        let reply = bridge.get(path);
        assert_eq!((reply.status, reply.header("connection")), (200, Some("close")), "{reply:?}");
    }
    for path in ["/metrics", "/events", "/nowhere"] {
        let reply = bridge.get(path);
        assert_eq!(reply.body, r#"{"error":"too many connections"}"#);
        assert_eq!((reply.status, reply.header("connection")), (503, Some("close")), "{reply:?}");
    }
}

#[test]
fn a_callback_too_many_is_told_so_and_one_that_is_answered_makes_room() {
    let bridge = Bridge::start(&[("ingress.max_in_flight", "1")]);
    let lock = lock_out(&bridge);
    let too_many = fail(50301, "too many callbacks are being worked on");
    // One of them waits for its commit, which cannot come, until it is told so.
    let replies: Vec<_> = thread::scope(|scope| {
        let calls = ["one", "two"].map(|name| {
            let bridge = &bridge;
            scope.spawn(move || bridge.call(&body(name)))
        });
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert!(replies.iter().all(|reply| reply.status == 503), "{replies:?}");
    let refused = replies.iter().filter(|reply| reply.body == too_many).count();
    assert_eq!(refused, 1, "{replies:?}");
    assert_eq!(bridge.counted("overloaded"), 2.0);
    drop(lock);
    eventually("there is room", || (bridge.call(&body("three")).status == 200).then_some(()));
}

#[test]
fn slow_bodies_and_other_commands_keep_no_topics_creation_out() {
    let bridge = Bridge::start(&[
        ("ingress.max_in_flight", "1"),
        ("ingress.request_timeout", "2s"),
        ("ingress.ack_deadline", "2s"),
    ]);
    let other = signed("Group.CallbackBeforeSendMsg", &[]);
    let hold = |target: &str| {
        let mut held = Connection::open(bridge.ingress);
        held.send(&head("POST", target, &["Expect: 100-continue"], 10));
        let word = held.read_until(|text| text.ends_with("\r\n\r\n"));
        assert!(word.starts_with("HTTP/1.1 100 "), "{word}"); // so its body is being read
        held.send(b"half");
        held
    };
    let replayed = signed(TOPIC_CREATED, &[]);
    let mut topics = Vec::new();
    eventually("they are finished in time", || {
        let mut held: Vec<_> = [&*replayed, &replayed, &other, &other].map(hold).into();
        topics.push(format!("topic {}", topics.len()));
        check_answer(&bridge.call(&body(topics.last().unwrap())), 200, OK);
        let statuses = [0, 2].map(|at| {
            held[at].send(b" body.");
            held[at].reply().unwrap().status
        });
        let is_late = statuses.contains(&408); // on a machine that is busy for two seconds
        assert!(is_late || statuses == [400, 200], "{statuses:?}");
        (!is_late).then_some(())
    });
    check_answer(&bridge.call(&body("another")), 200, OK);
    topics.push("another".into());
    assert_eq!(bridge.topic_ids(), topics);
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
    let bridge = Bridge::start(&[("ingress.ack_deadline", "2s")]);
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
