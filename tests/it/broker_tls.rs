//! TLS to each broker: a private authority, an untrusted one, refused passwords and refused client
//! certificates. A refusal degrades the bridge, is reported by its kind, and reveals no secret.

use crate::bridge::{Bridge, eventually};
use crate::broker::{self, Kind, Target, Way};
use crate::calls::{becomes, call, is_delivered, start};
use crate::servers::{PASSWORD, USER};

/// All that is ever logged.
const TALKATIVE: [(&str, &str); 1] = [("log.level", "trace")];

/// A bridge with these settings delivers.
fn works(target: &Target, settings: &[(&str, &str)]) {
    let bridge = start(target, &merge(settings, &TALKATIVE));
    becomes(&bridge, "ready");
    call(&bridge, "over TLS");
    is_delivered(&bridge);
    says_no_secret(&bridge);
}

/// A bridge with these settings is refused, for a reason of this kind, and still takes callbacks.
fn fails(target: &Target, settings: &[(&str, &str)], kind: &str) {
    let bridge = start(target, &merge(settings, &TALKATIVE));
    becomes(&bridge, "degraded");
    call(&bridge, "kept");
    let expected = format!("\"kind\":{kind:?}");
    eventually(&format!("it tells of {kind}: {}", bridge.log()), || {
        bridge.log().contains(&expected).then_some(())
    });
    says_no_secret(&bridge);
}

fn says_no_secret(bridge: &Bridge) {
    let told = bridge.log() + &bridge.get("/readyz").body + &bridge.get("/metrics").body;
    assert!(!told.contains(PASSWORD) && !told.contains("wr0ng"), "{told}");
}

fn merge<'a>(base: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [base, more].concat()
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn kafka() {
    let Some(broker) = broker::shared(Kind::Kafka) else { return };
    let (ca, other_ca) =
        (broker.target.certificate("ca.pem"), broker.target.certificate("other-ca.pem"));
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), format!("{PASSWORD}\n")).unwrap();

    let target = broker.target.by(Way::Sasl);
    let sasl = [
        ("kafka.properties.security.protocol", "SASL_SSL"),
        ("kafka.properties.sasl.mechanism", "SCRAM-SHA-512"),
        ("kafka.properties.sasl.username", USER),
        ("kafka.properties.debug", "broker,conf,security"),
    ];
    let trusted = [("kafka.properties.ssl.ca.location", ca.as_str())];
    let base = merge(&sasl, &trusted);
    let from_file = [("kafka.properties.sasl.password_file", password.path().to_str().unwrap())];
    works(&target, &merge(&base, &from_file));
    fails(&target, &merge(&base, &[("kafka.properties.sasl.password", "wr0ng")]), "credentials");
    let untrusted = [("kafka.properties.ssl.ca.location", other_ca.as_str())];
    let untrusted = merge(&merge(&sasl, &untrusted), &from_file);
    fails(&target, &untrusted, "unreachable");

    let target = broker.target.by(Way::Mtls);
    let ssl = [("kafka.properties.security.protocol", "SSL"), trusted[0]];
    let (cert, key) =
        (broker.target.certificate("client.pem"), broker.target.certificate("client.key"));
    let identity = [
        ("kafka.properties.ssl.certificate.location", cert.as_str()),
        ("kafka.properties.ssl.key.location", key.as_str()),
    ];
    works(&target, &merge(&ssl, &identity));
    let (cert, key) =
        (broker.target.certificate("rogue.pem"), broker.target.certificate("rogue.key"));
    let rogue = [
        ("kafka.properties.ssl.certificate.location", cert.as_str()),
        ("kafka.properties.ssl.key.location", key.as_str()),
    ];
    fails(&target, &merge(&ssl, &rogue), "unreachable");
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn rabbitmq() {
    let Some(broker) = broker::shared(Kind::Rabbitmq) else { return };
    let (ca, other_ca) =
        (broker.target.certificate("ca.pem"), broker.target.certificate("other-ca.pem"));
    let target = broker.target.by(Way::Tls);
    let trusted = [("rabbitmq.tls.ca_file", ca.as_str())];
    works(&target, &trusted);
    fails(&target, &[("rabbitmq.tls.ca_file", &other_ca)], "unreachable");
    fails(&target, &merge(&trusted, &[("rabbitmq.password", "wr0ng")]), "credentials");
    for (name, is_good) in [("client", true), ("rogue", false)] {
        let (cert, key) = (
            broker.target.certificate(&format!("{name}.pem")),
            broker.target.certificate(&format!("{name}.key")),
        );
        let identity =
            [("rabbitmq.tls.cert_file", cert.as_str()), ("rabbitmq.tls.key_file", key.as_str())];
        if is_good {
            works(&target, &merge(&trusted, &identity));
        } else {
            fails(&target, &merge(&trusted, &identity), "unreachable");
        }
    }
}

#[test]
#[ignore = "needs brokers: run tests/run.sh"]
fn nats() {
    let Some(broker) = broker::shared(Kind::Nats) else { return };
    let (ca, other_ca) =
        (broker.target.certificate("ca.pem"), broker.target.certificate("other-ca.pem"));
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), format!("{PASSWORD}\n")).unwrap();

    let target = broker.target.by(Way::Tls);
    let trusted = [("nats.tls.ca_file", ca.as_str())];
    let user = [("nats.username", USER)];
    let from_file = [("nats.password_file", password.path().to_str().unwrap())];
    works(&target, &merge(&merge(&trusted, &user), &from_file));
    let wrong = [("nats.password", "wr0ng")];
    fails(&target, &merge(&merge(&trusted, &user), &wrong), "credentials");
    fails(&target, &trusted, "credentials");
    let untrusted = [("nats.tls.ca_file", other_ca.as_str())];
    fails(&target, &merge(&merge(&untrusted, &user), &from_file), "unreachable");

    let target = broker.target.by(Way::Mtls);
    for (name, is_good) in [("client", true), ("rogue", false)] {
        let (cert, key) = (
            broker.target.certificate(&format!("{name}.pem")),
            broker.target.certificate(&format!("{name}.key")),
        );
        let identity = [("nats.tls.cert_file", cert.as_str()), ("nats.tls.key_file", key.as_str())];
        if is_good {
            works(&target, &merge(&trusted, &identity));
        } else {
            fails(&target, &merge(&trusted, &identity), "unreachable");
        }
    }
}
