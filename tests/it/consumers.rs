//! The example consumers, in each language against each broker.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::bridge::{self, Bridge, PROGRAM, is_delivered, run};
use crate::broker::{self, Kind, Target};

#[derive(Clone, Copy)]
enum Language {
    Rust,
    Python,
    Go,
}

macro_rules! a_consumer_reads_both_encodings_and_goes_on_where_it_was {
    ($($test:ident: $kind:ident $language:ident)*) => {
        mod a_consumer_reads_both_encodings_and_goes_on_where_it_was {$(
            #[test]
            #[ignore = "needs brokers: run tests/run.sh"]
            fn $test() {
                super::check(crate::broker::Kind::$kind, super::Language::$language);
            }
        )*}
    };
}

a_consumer_reads_both_encodings_and_goes_on_where_it_was! {
    kafka_in_rust: Kafka Rust
    kafka_in_python: Kafka Python
    kafka_in_go: Kafka Go
    rabbitmq_in_rust: Rabbitmq Rust
    rabbitmq_in_python: Rabbitmq Python
    rabbitmq_in_go: Rabbitmq Go
    nats_in_rust: Nats Rust
    nats_in_python: Nats Python
    nats_in_go: Nats Go
}

fn check(kind: Kind, language: Language) {
    let Some(broker) = broker::shared(kind) else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = Program::find(kind, language, folder.path()) else { return };
    let settings = broker.target.settings();
    let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();

    let bridge = Bridge::start(&settings);
    publish(&bridge, &["one \"1\" é%", "two"]);
    let bridge = bridge.restart(&[("event.encoding", "binary")]);
    publish(&bridge, &["three \"3\" é%", "four"]);

    let expected: Vec<_> = bridge.events().iter().map(line).collect();
    assert_eq!(program.consume(&broker.target, 3), expected[..3]);
    assert_eq!(program.consume(&broker.target, 1), expected[3..]);
}

fn publish(bridge: &Bridge, topics: &[&str]) {
    for topic in topics {
        assert_eq!(bridge.call(&bridge::body(topic)).status, 200);
    }
    is_delivered(bridge);
}

/// What a consumer prints for an event.
fn line(event: &Value) -> String {
    let (id, data) = (event["id"].as_str().unwrap(), &event["data"]);
    let [topic, name, owner] = ["topic_id", "topic_name", "owner"].map(|field| &data[field]);
    format!("{id} topic_id={topic} topic_name={name} owner={owner}")
}

/// An example's command line.
struct Program(Vec<String>);

impl Program {
    /// Nothing where the language, or what the example needs of others, is not to be had.
    fn find(kind: Kind, language: Language, folder: &Path) -> Option<Self> {
        let (name, examples) = (kind.name(), concat!(env!("CARGO_MANIFEST_DIR"), "/examples"));
        match language {
            Language::Rust => {
                let target = Path::new(PROGRAM).parent().unwrap();
                let program = target.join(format!("examples/consume_{name}"));
                let shown = program.display().to_string();
                assert!(
                    program.exists(),
                    "there is no {shown}: build it with `cargo build --examples`"
                );
                Some(Program(vec![shown]))
            }
            Language::Python => {
                let script = format!("{examples}/python/consume_{name}.py");
                Some(Program(vec![broker::python(), "-B".into(), script]))
            }
            Language::Go => {
                let go = || {
                    let mut go = Command::new("go");
                    go.current_dir(format!("{examples}/go"));
                    go
                };
                let fetched = go().args(["mod", "download"]).output();
                if !fetched.is_ok_and(|output| output.status.success()) {
                    eprintln!("SKIPPED: there is no Go here, or it cannot fetch the clients");
                    return None;
                }
                let program = folder.join(name).display().to_string();
                let built = go().args(["build", "-o", &program, &format!("./{name}")]).output();
                let built = built.unwrap();
                assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
                Some(Program(vec![program]))
            }
        }
    }

    /// Runs it until it has taken `count` events, and returns its lines.
    fn consume(&self, target: &Target, count: usize) -> Vec<String> {
        let (address, name) = match target.kind {
            Kind::Kafka => ("KAFKA_BROKERS", "KAFKA_TOPIC"),
            Kind::Rabbitmq => ("RABBITMQ_URL", "RABBITMQ_QUEUE"),
            Kind::Nats => ("NATS_URL", "NATS_STREAM"),
        };
        let [program, arguments @ ..] = self.0.as_slice() else { unreachable!("it has a name") };
        let mut command = Command::new(program);
        command.args(arguments).env(address, &target.address).env(name, &target.name);
        command.env("KAFKA_GROUP", &target.name).env("COUNT", count.to_string());
        let ended = run(&mut command);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.stdout.lines().map(str::to_owned).collect()
    }
}
