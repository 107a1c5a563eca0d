//! Whoever finds the public listener can send it anything. Each kind of abuse is refused or answered within its
//! limits, nothing of it becomes an event, and honest callbacks are answered OK all the while.

use std::io::Write as _;

use crate::bridge::{Bridge, TOPIC_CREATED, body, signed};
use crate::http::{Connection, Reply, head};

/// Sends bytes as they are and reads every answer until the bridge closes, or `answers` of them came.
fn send(bridge: &Bridge, bytes: &[u8], answers: usize) -> Vec<Reply> {
    let mut connection = Connection::open(bridge.ingress);
    let _ = connection.stream.write_all(bytes); // it may be closed in the middle
    let mut replies = Vec::new();
    while replies.len() < answers {
        match connection.reply() {
            Some(reply) => replies.push(reply),
            None => break,
        }
    }
    replies
}

fn check_honest(bridge: &Bridge, what: &str) {
    assert_eq!(bridge.call(&body(&format!("honest after {what}"))).status, 200, "{what}");
}

fn request(line: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("{line} HTTP/1.1\r\nHost: bridge\r\n{headers}\r\n{body}").into_bytes()
}

/// Of two readers that count a body differently, one takes its end for a request. Only the first request may be
/// answered OK, and what is smuggled behind it never.
#[test]
fn a_smuggled_request_is_never_taken() {
    let bridge = Bridge::start(&[]);
    let hidden = body("smuggled");
    let target = signed(TOPIC_CREATED, &[]);
    let smuggled = String::from_utf8(head("POST", &target, &[], hidden.len())).unwrap() + &hidden;
    let post = "POST /";
    let chunked = "Transfer-Encoding: chunked\r\n";
    for (what, headers) in [
        ("two lengths", "Content-Length: 0\r\nContent-Length: 5\r\n".to_owned()),
        ("a list of lengths", "Content-Length: 0, 5\r\n".to_owned()),
        ("a signed length", "Content-Length: +0\r\n".to_owned()),
        ("a negative length", "Content-Length: -1\r\n".to_owned()),
        ("a length too large for any number", format!("Content-Length: {}\r\n", "9".repeat(30))),
        ("a hexadecimal length", "Content-Length: 0x5\r\n".to_owned()),
        ("chunked that is not last", "Transfer-Encoding: chunked, identity\r\n".to_owned()),
        ("an unknown coding", "Transfer-Encoding: xchunked\r\n".to_owned()),
        ("a blank before the colon", format!("Transfer-Encoding : chunked\r\n{chunked}")),
        ("a folded header", "X: y\r\n Transfer-Encoding: chunked\r\n".to_owned()),
        ("a NUL in a header", "X: \0\r\n".to_owned()),
    ] {
        let replies = send(&bridge, &request(post, &headers, &smuggled), 2);
        let statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
        assert!(statuses.len() <= 1 && !statuses.contains(&200), "{what}: {statuses:?}");
        check_honest(&bridge, what);
    }
    // With both, the chunks count, and the connection ends with this request: nobody else's comes after it.
    let both = format!("Content-Length: {}\r\n{chunked}", smuggled.len() + 5);
    let replies = send(&bridge, &request(post, &both, &format!("0\r\n\r\n{smuggled}")), 2);
    assert!(replies.len() <= 1, "{replies:?}");
    assert!(
        !bridge.topic_ids().iter().any(|topic| topic == "smuggled"),
        "{:?}",
        bridge.topic_ids()
    );
}

#[test]
fn a_broken_chunk_is_refused_and_extensions_are_bounded() {
    let bridge = Bridge::start(&[]);
    let target = signed(TOPIC_CREATED, &[]);
    let chunked = format!("POST {target}");
    for (what, body) in [
        ("a size that is not hexadecimal", "zz\r\n".to_owned()),
        ("a size without end", format!("{}\r\n", "f".repeat(40))),
        ("an endless extension", format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(100_000))),
        (
            "extensions on many chunks",
            format!("{}0\r\n\r\n", format!("1;{}\r\nx\r\n", "e".repeat(900)).repeat(100)),
        ),
        ("an endless trailer", format!("0\r\n{}\r\n", "X: y\r\n".repeat(20_000))),
        ("a chunk longer than it says", "1\r\nxyz\r\n0\r\n\r\n".to_owned()),
    ] {
        let replies = send(&bridge, &request(&chunked, "Transfer-Encoding: chunked\r\n", &body), 1);
        assert!(replies.iter().all(|reply| reply.status != 200), "{what}: {replies:?}");
        check_honest(&bridge, what);
    }
}

#[test]
fn odd_targets_and_floods_of_parameters_and_headers_are_answered_within_their_limits() {
    let bridge = Bridge::start(&[]);
    let good = signed(TOPIC_CREATED, &[]);
    let many = |parameter: &str, count: usize| parameter.repeat(count);
    let check = |what: &str, bytes: &[u8], statuses: &[u16]| {
        let replies = send(&bridge, bytes, 1);
        let found = replies.first().map_or(0, |reply| reply.status);
        assert!(statuses.contains(&found), "{what}: {found}");
        check_honest(&bridge, what);
    };
    let post = |target: &str| [&head("POST", target, &[], 2), &b"{}"[..]].concat();
    check("a NUL in the query", &post("/?SdkAppid=1\0"), &[400]);
    check("an escaped NUL", &post(&format!("{good}%00")), &[401]);
    check("a query of broken escapes", &post("/?%%%zz=%&SdkAppid=%ff%fe"), &[403]);
    check("10,000 parameters", &post(&format!("/?{}", many("a=b&", 7_000))), &[403, 414, 431]);
    check("as many as fit", &post(&format!("/?{}", many("&", 20_000))), &[403]);
    check(
        "Sign many times",
        &post(&format!("/?SdkAppid=1400000000&{}", many("Sign=0&", 3_000))),
        &[401],
    );
    check(
        "a longer line than a head may be",
        &post(&format!("/?{}", many("a", 70_000))),
        &[414, 431],
    );
    check("no such path", &post("/../../etc/passwd"), &[404]);
    check("an absolute target", &post(&format!("http://elsewhere{good}")), &[400, 404]);
    check("an asterisk", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", &[400, 404, 405]);
    check("a tunnel", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", &[400, 404, 405]);
    check("another protocol", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", &[0, 400]);
    check("no version", b"POST /\r\n\r\n", &[0, 400]);
    check("1,000 headers", &request("POST /", &many("X: y\r\n", 1_000), ""), &[431]);
    check(
        "one long header",
        &request("POST /", &format!("X: {}\r\n", many("y", 70_000)), ""),
        &[431],
    );
    let wrong = many("Sign: 1\r\nSdkAppid: 1\r\n", 10);
    check("parameters as headers", &request("POST /", &wrong, ""), &[403, 411]);
    let topics = bridge.topic_ids();
    assert!(topics.iter().all(|topic| topic.starts_with("honest")), "{topics:?}");
}

#[test]
fn garbage_behind_a_request_ends_the_connection_and_its_answer_is_still_read() {
    let bridge = Bridge::start(&[]);
    let (target, first) = (signed(TOPIC_CREATED, &[]), body("first"));
    let good = [&head("POST", &target, &[], first.len()), first.as_bytes()].concat();
    let replies = send(&bridge, &[&good[..], &[0xff; 3000], b"\r\n\r\n"].concat(), 3);
    assert_eq!(replies[0].status, 200);
    assert!(
        replies.len() <= 2 && replies[1..].iter().all(|reply| reply.status == 400),
        "{replies:?}"
    );
    // Requests one behind the other are answered one by one, in order, however many there are.
    let bad = [&head("POST", "/?SdkAppid=7", &[], 2), &b"{}"[..]].concat();
    let pipelined = [bad.repeat(200), good].concat();
    let replies = send(&bridge, &pipelined, 201);
    let statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
    assert!(statuses[..200].iter().all(|status| *status == 403), "{statuses:?}");
    assert_eq!(statuses[200..], [200]);
    assert_eq!(bridge.topic_ids(), ["first"]);
}

/// Many connections that each send next to nothing hold their places until their time is over; up to
/// `ingress.max_connections` of them leave room for others.
#[test]
fn many_slow_connections_do_not_keep_callbacks_out() {
    let limits = [("ingress.max_connections", "200"), ("ingress.header_timeout", "2s")];
    let bridge = Bridge::start(&limits);
    let mut slow: Vec<_> = (0..150).map(|_| Connection::open(bridge.ingress)).collect();
    for round in 0..5 {
        for connection in &mut slow {
            let _ = connection.stream.write_all(b"P"); // it may be cut off by now
        }
        check_honest(&bridge, &format!("{round} letters"));
    }
    for (index, connection) in slow.iter_mut().enumerate() {
        assert!(connection.is_closed() || connection.reply().is_some(), "{index} is cut off");
    }
    check_honest(&bridge, "all were cut off");
}
