//! A full run at the most talkative level, with each broker: no token, signature or password that was used is in
//! anything that the bridge says, answers, or writes.

use std::fs;
use std::path::Path;

use crate::backend::Backend;
use crate::bridge::{APP, Bridge, TOPIC_CREATED, body, now, run, sign, signed_by};
use crate::broker::{self, Kind, Way};
use crate::calls::{becomes, is_delivered, start};
use crate::http;
use crate::servers::{PASSWORD, USER};

const INLINE: &str = "t0ken-inline-5f1c";
const FROM_FILE: &str = "t0ken-from-file-77ab";
const NEW: &str = "t0ken-new-19e2";
const WRONG: &str = "t0ken-wrong-c0de";
const OWN_KEY: &str = "backend-key-4b2d";

/// Sends every kind of callback, uses every command and endpoint, and looks at all that comes out.
fn check(bridge: &mut Bridge, token_file: &Path, passwords: &[&str]) {
    let mut secrets: Vec<String> = [INLINE, FROM_FILE, NEW, WRONG, OWN_KEY]
        .iter()
        .map(|secret| (*secret).to_owned())
        .collect();
    secrets.extend(passwords.iter().map(|password| (*password).to_owned()));
    let now = now();
    let mut said = String::new();
    let mut call = |token: &str, time: u64, command: &str, body: &str| {
        secrets.push(sign(token, &time.to_string()));
        let target = signed_by(APP, token, time).replace(TOPIC_CREATED, command);
        said += &format!("{:?}", http::post(bridge.ingress, &target, body.as_bytes()));
    };
    for (number, token) in (0..).zip([INLINE, FROM_FILE]) {
        call(token, now, TOPIC_CREATED, &body(&format!("topic {number}")));
        call(token, now + 1, TOPIC_CREATED, "{broken");
        call(token, now - 1, "C2C.CallbackBeforeSendMsg", "{}");
        call(token, now - 2, "group.callbackaftercreatetopic", &body("mislabelled"));
        call(token, now - 999, TOPIC_CREATED, &body("stale"));
    }
    call(WRONG, now, TOPIC_CREATED, &body("wrong"));
    fs::write(token_file, NEW).unwrap();
    bridge.signal("HUP");
    is_delivered(bridge);
    for path in ["/livez", "/readyz", "/metrics", "/nowhere"] {
        said += &format!("{:?}", bridge.get(path));
    }
    for path in ["/events?after=0", "/requests?after=0"] {
        said += &http::get(bridge.admin, path, &["Accept: application/x-ndjson"]).body;
    }
    let commands: [&[&str]; 6] = [
        &["check"],
        &["check", "--json", "--connect"],
        &["tail", "--from-start", "--count", "2"],
        &["outbox", "status"],
        &["outbox", "list", "--json"],
        &["outbox", "list", "--quarantined", "--json"],
    ];
    for command in commands {
        let mut program = bridge.command(command[0]);
        let ended = run(program.args(&command[1..]));
        assert_eq!(ended.code, Some(0), "{command:?}: {ended:?}");
        said += &format!("{ended:?}");
    }
    bridge.stop();
    said += &bridge.log();
    for secret in &secrets {
        let at = said.find(secret.as_str()).map(|at| &said[at.saturating_sub(300)..at]);
        assert_eq!(at, None, "{secret} was said");
    }
    for entry in fs::read_dir(bridge.outbox().parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        for secret in &secrets {
            let is_there = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!is_there, "{secret} is in {}", path.display());
        }
    }
    assert!(said.contains("took a callback") && said.contains("DEBUG"), "it was talkative");
}

fn with_broker(kind: Kind, way: Way, settings: &[(&str, &str)], passwords: &[&str]) {
    let Some(broker) = broker::shared(kind) else { return };
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    fs::write(&token_file, FROM_FILE).unwrap();
    let apps = format!("[{{sdk_app_id={APP},tokens=[{INLINE:?}],token_files=[{token_file:?}]}}]");
    let backend = Backend::start();
    let url = format!("http://{}/im?key={OWN_KEY}", backend.address);
    let more = [("log.level", "trace"), ("apps", &apps), ("passthrough.url", &url)];
    let mut bridge = start(&broker.target.by(way), &[settings, &more].concat());
    becomes(&bridge, "ready");
    check(&mut bridge, &token_file, passwords);
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn kafka() {
    let Some(broker) = broker::shared(Kind::Kafka) else { return };
    let ca = broker.target.certificate("ca.pem");
    let settings = [
        ("kafka.properties.security.protocol", "SASL_SSL"),
        ("kafka.properties.sasl.mechanism", "SCRAM-SHA-512"),
        ("kafka.properties.sasl.username", USER),
        ("kafka.properties.sasl.password", PASSWORD),
        ("kafka.properties.ssl.ca.location", &ca),
        ("kafka.properties.debug", "all"),
    ];
    with_broker(Kind::Kafka, Way::Sasl, &settings, &[PASSWORD]);
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn rabbitmq() {
    let Some(broker) = broker::shared(Kind::Rabbitmq) else { return };
    let password = "pa55-of-rabbit-e1";
    let _ = broker.target.broker.rabbitmqctl(&["add_user", "secretive", password]); // may be there
    broker.target.rabbitmqctl(&["set_permissions", "secretive", ".*", ".*", ".*"]);
    let settings = [("rabbitmq.username", "secretive"), ("rabbitmq.password", password)];
    with_broker(Kind::Rabbitmq, Way::Plain, &settings, &[password]);
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn nats() {
    let Some(broker) = broker::shared(Kind::Nats) else { return };
    let ca = broker.target.certificate("ca.pem");
    let settings =
        [("nats.tls.ca_file", &*ca), ("nats.username", USER), ("nats.password", PASSWORD)];
    with_broker(Kind::Nats, Way::Tls, &settings, &[PASSWORD]);
}

#[test]
fn without_a_broker() {
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    fs::write(&token_file, FROM_FILE).unwrap();
    let apps = format!("[{{sdk_app_id={APP},tokens=[{INLINE:?}],token_files=[{token_file:?}]}}]");
    let mut bridge = Bridge::start(&[("log.level", "trace"), ("apps", &apps)]);
    check(&mut bridge, &token_file, &[]);
}
