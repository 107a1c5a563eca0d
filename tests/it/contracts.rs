//! What is published is what the schemas in `docs/schema` say, by somebody else's validator, and the private listener
//! serves them.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::bridge::{Bridge, SAMPLE, TOPIC_CREATED, body, is_delivered, program, run, signed};
use crate::broker::{self, Kind, Target, python};
use crate::calls::{against_each_broker, start};
use crate::http;

const VALIDATOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/contracts/validate.py");
const URN: &str = "urn:topic-bridge:schema:topic-created:v1";

against_each_broker! {
    what_a_broker_gets_is_what_the_schemas_say
}

/// Callbacks as different as they come, about topics whose ids begin with this, each with its query.
fn varied(prefix: &str) -> Vec<(String, String)> {
    let with = |topic: &str, more: Value| {
        let topic = format!("{prefix} {topic}");
        let mut all: Value = serde_json::from_str(&body(&topic)).unwrap();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all.to_string()
    };
    let every_kind =
        json!({"N": null, "B": true, "I": -1, "F": 1.5, "S": "é\n", "A": [[], {}], "O": {"a": 1}});
    let unreadable = with("unreadable", json!({"E": 0, "H": 0}))
        .replace(r#""E":0,"#, r#""E":[1e400],"W":18446744073709551616,"P":"\ud800","#);
    let fields =
        json!({"UserDefinedDataList": [{"Key": "k", "Value": ""}, {"Key": "k", "Value": "🦀"}]});
    let bodies = [
        with("plain", json!({})),
        with("custom fields", fields),
        with("no custom fields", json!({"UserDefinedDataList": []})),
        with("every kind", every_kind),
        unreadable,
        with("event time", json!({"EventTime": 1_670_574_414_123_u64})),
        with("event time as text", json!({"EventTime": "1670574414123"})),
        with("no event time", json!({"EventTime": "yesterday"})),
        with("empty", json!({"Name": "", "Operator_Account": "", "Owner_Account": "", "Type": ""})),
        with(
            "names",
            json!({"Name": "\u{0}\u{1f} \"quoted\" \\ 🦀", "GroupId": "Größe \"1\" 100%"}),
        ),
        with("\"quoted\" näme 100% %41", json!({"GroupId": "\"whole\""})),
        with("blank ", json!({"GroupId": " both "})),
    ];
    let target = signed(TOPIC_CREATED, &[]);
    let without = target.replace("&ClientIP=127.0.0.1", "");
    let neither = without.replace("&OptPlatform=iOS", "");
    let empty = neither.clone() + "&OptPlatform=&ClientIP=";
    let mut calls: Vec<_> = bodies.into_iter().map(|body| (target.clone(), body)).collect();
    for (topic, target) in [("no ip", without), ("no client", neither), ("empty client", empty)] {
        calls.push((target, with(topic, json!({}))));
    }
    calls
}

/// Publishes them in both encodings. Says how many in each.
pub(crate) fn publish_varied(target: &Target) -> (Bridge, usize) {
    let bridge = start(target, &[]);
    let calls = varied("structured");
    call(&bridge, &calls);
    is_delivered(&bridge);
    let bridge = bridge.restart(&[("event.encoding", "binary")]);
    call(&bridge, &varied("binary"));
    is_delivered(&bridge);
    (bridge, calls.len())
}

fn call(bridge: &Bridge, calls: &[(String, String)]) {
    for (target, body) in calls {
        let reply = http::post(bridge.ingress, target, body.as_bytes());
        assert_eq!(reply.status, 200, "{reply:?} to {body}");
    }
}

/// Everything has to be what its schema says.
fn validate<'a>(values: impl IntoIterator<Item = (&'static str, &'a Value)>) {
    let values = values.into_iter();
    let lines: Vec<_> = values
        .map(|(schema, value)| json!({"schema": schema, "value": value}).to_string())
        .collect();
    let mut validator = Command::new(python());
    let validator = validator.args(["-B", VALIDATOR]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut validator = validator.spawn().unwrap();
    validator.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
    let output = validator.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.trim(), format!("valid: {} values", lines.len()));
}

mod checks {
    use super::*;

    pub(super) fn what_a_broker_gets_is_what_the_schemas_say(kind: Kind) {
        let Some(broker) = broker::shared(kind) else { return };
        let (_bridge, published) = publish_varied(&broker.target);

        let messages = broker.target.read(2 * published);
        let schema_of = |body: &Value| if body.get("data").is_some() { "event" } else { "data" };
        let kinds: Vec<_> = messages.iter().map(|message| schema_of(&message.body)).collect();
        for schema in ["event", "data"] {
            assert_eq!(
                kinds.iter().filter(|kind| **kind == schema).count(),
                published,
                "{kinds:?}"
            );
        }
        validate(messages.iter().map(|message| (schema_of(&message.body), &message.body)));
    }
}

#[test]
#[ignore = "needs the Python of tests/brokers/install: run tests/run.sh"]
fn what_the_event_stream_shows_is_what_the_schemas_say() {
    let bridge =
        Bridge::start(&[("event.type", "of.mine"), ("event.source", "urn:x:{sdk_app_id}")]);
    assert_eq!(bridge.call(SAMPLE).status, 200);
    call(&bridge, &varied("stream"));
    let events = bridge.events();
    assert_eq!(events.len(), varied("stream").len() + 1);
    validate(events.iter().map(|event| ("event", event)));
}

#[test]
fn the_private_listener_serves_what_dataschema_names() {
    let bridge = Bridge::start(&[]);
    assert_eq!(bridge.call(SAMPLE).status, 200);
    let named = bridge.events()[0]["dataschema"].as_str().unwrap().to_owned();
    assert_eq!(named, URN);
    let schema = bridge.get(&format!("/schema/{named}"));
    assert_eq!((schema.status, &schema.json()["$id"]), (200, &json!(URN)));
    assert_eq!(schema.header("content-type"), Some("application/schema+json"));

    let list = bridge.get("/schema/").json();
    let paths: Vec<_> =
        list["schemas"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    assert_eq!(paths.len(), 4, "{paths:?}");
    for path in &paths {
        let reply = bridge.get(path);
        let file = format!("{}/docs{path}", env!("CARGO_MANIFEST_DIR"));
        assert_eq!((reply.status, reply.body), (200, std::fs::read_to_string(file).unwrap()));
    }
    let unknown = bridge.get("/schema/topic-deleted.v1.json");
    assert_eq!(unknown.status, 404);
    let error = unknown.json()["error"].as_str().unwrap().to_owned();
    assert!(paths.iter().all(|path| error.contains(path)), "{error}");
}

#[test]
fn the_program_prints_its_contracts() {
    for (name, file) in [
        ("event", "schema/topic-created-event.v1.json"),
        ("data", "schema/topic-created.v1.json"),
        ("config", "schema/config.v1.json"),
        ("asyncapi", "asyncapi.yaml"),
    ] {
        let printed = run(program().args(["schema", name]));
        let file = format!("{}/docs/{file}", env!("CARGO_MANIFEST_DIR"));
        assert_eq!(printed.code, Some(0), "{printed:?}");
        assert_eq!(printed.stdout, std::fs::read_to_string(file).unwrap(), "{name}");
    }
    assert_eq!(
        run(program().arg("schema")).stdout,
        run(program().args(["schema", "event"])).stdout
    );
    assert_eq!(run(program().args(["schema", "other"])).code, Some(2));
}

/// The image is built from what `.dockerignore` lets through, and the program embeds files of other folders.
#[test]
fn the_image_is_built_with_all_that_the_program_embeds() {
    let root = env!("CARGO_MANIFEST_DIR");
    let ignored = std::fs::read_to_string(format!("{root}/.dockerignore")).unwrap();
    let wanted: Vec<_> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let found = run(Command::new("grep").current_dir(root).args([
        "-rhoE",
        r#"include_str!\("[^"]+"#,
        "src",
    ]));
    let embedded = found.stdout.lines().filter_map(|line| line.rsplit("../").next());
    let files: Vec<_> = embedded.filter(|file| file.contains('/')).collect();
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        let is_there = wanted.iter().any(|path| file.starts_with(path));
        assert!(is_there, "{file} is not let through by .dockerignore");
    }
}
