//! The official CloudEvents SDKs read what the bridge publishes, in both encodings, from each broker.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::bridge::run;
use crate::broker::{self, Kind};
use crate::contracts::publish_varied;

const SDKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk");

#[derive(Clone, Copy, PartialEq)]
enum Language {
    Python,
    Go,
}

macro_rules! the_official_sdk_reads_both_encodings {
    ($($test:ident: $kind:ident $language:ident)*) => {
        mod the_official_sdk_reads_both_encodings {$(
            #[test]
            #[ignore = "needs brokers: run tests/run.sh"]
            fn $test() {
                super::check(crate::broker::Kind::$kind, super::Language::$language);
            }
        )*}
    };
}

the_official_sdk_reads_both_encodings! {
    from_kafka_in_python: Kafka Python
    from_kafka_in_go: Kafka Go
    from_rabbitmq_in_python: Rabbitmq Python
    from_rabbitmq_in_go: Rabbitmq Go
    from_nats_in_python: Nats Python
    from_nats_in_go: Nats Go
}

fn check(kind: Kind, language: Language) {
    let Some(broker) = broker::shared(kind) else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some(mut reader) = reader(language, folder.path()) else { return };
    let (bridge, published) = publish_varied(&broker.target);
    let events = bridge.events();
    assert_eq!(events.len(), 2 * published);
    let target = &broker.target;
    let count = events.len().to_string();
    let ended = run(reader.args([kind.name(), &target.address, &target.name, &count]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines = ended.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let read: BTreeMap<_, _> = lines.map(|event| (event["id"].to_string(), event)).collect();
    // Go's binding for NATS does not undo the percent-encoding, so its reader has to.
    let is_encoded = |event: &Value| {
        let topic = event["subject"].as_str().unwrap();
        (kind, language) == (Kind::Nats, Language::Go) && topic.starts_with("binary")
    };
    for event in &events {
        let mut found = read[&event["id"].to_string()].clone();
        if is_encoded(event) {
            for name in ["subject", "partitionkey"] {
                let (sent, wanted) = (found[name].as_str().unwrap(), event[name].as_str().unwrap());
                let is_plain = wanted.trim() == wanted
                    && wanted.is_ascii()
                    && !wanted.contains('%')
                    && !wanted.starts_with('"');
                assert_eq!(is_plain, sent == wanted, "{sent:?} for {wanted:?}");
                found[name] = json!(percent_decode_str(sent).decode_utf8().unwrap());
            }
        }
        for (name, wanted) in event.as_object().unwrap() {
            if name == "time" {
                let [found, wanted] = [&found[name], wanted]
                    .map(|time| humantime::parse_rfc3339(time.as_str().unwrap()).unwrap());
                assert_eq!(found, wanted);
            } else if name == "subject" && language == Language::Go {
                // The SDK trims it.
                let [found, wanted] =
                    [&found[name], wanted].map(|text| text.as_str().unwrap().trim());
                assert_eq!(found, wanted);
            } else {
                assert_eq!(&found[name], wanted, "{name} in {found}");
            }
        }
    }
}

/// Nothing where there is no Go, or it cannot fetch the SDK.
fn reader(language: Language, folder: &Path) -> Option<Command> {
    if language == Language::Python {
        let mut python = Command::new(broker::python());
        python.args(["-B", &format!("{SDKS}/python/read.py")]);
        return Some(python);
    }
    let go = || {
        let mut go = Command::new("go");
        go.current_dir(format!("{SDKS}/go"));
        go
    };
    let fetched = go().args(["mod", "download"]).output();
    if !fetched.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: there is no Go here, or it cannot fetch the CloudEvents SDK");
        return None;
    }
    let program = folder.join("reader");
    let built = go().args(["build", "-o"]).arg(&program).arg(".").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Some(Command::new(program))
}
