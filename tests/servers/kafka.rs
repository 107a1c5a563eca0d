//! Kafka, which serves all its addresses from one process; and a second broker of the same cluster, which only runs
//! while a test wants two replicas.

use anyhow::Result;

use super::process::Server;
use super::{Addresses, PASSWORD, Place, USER, Way, installed, ports, version};

// The quick compiler only and the simplest collector: it starts in half the time.
const HEAP: &str = "-Xms256m -Xmx512m";
const QUICK: &str = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1";

/// Each with the host that clients are told.
const LISTENERS: [(Way, &str, &str); 4] = [
    (Way::Plain, "PLAIN", "127.0.0.1"),
    (Way::Tls, "TLS", "localhost"),
    (Way::Mtls, "MTLS", "localhost"),
    (Way::Sasl, "SASL", "localhost"),
];

pub(super) fn servers(place: &Place) -> Result<(Vec<Server>, Addresses)> {
    let controller = ports::free();
    let options =
        format!("--standalone --add-scram 'SCRAM-SHA-512=[name={USER},password={PASSWORD}]'");
    let first = server(place, "kafka", "broker,controller", controller, &options)?;
    let addresses = LISTENERS.iter().zip(&first.ports);
    let addresses = addresses.map(|((way, _, host), port)| (*way, format!("{host}:{port}")));
    let addresses = addresses.collect();
    let mut servers = vec![first];
    if place.is_native {
        let options = "--no-initial-controllers";
        let second = server(place, "kafka-2", "broker", controller, options)?;
        servers.push(Server { is_on_demand: true, ..second });
    }
    Ok((servers, addresses))
}

fn server(
    place: &Place,
    name: &'static str,
    roles: &str,
    controller: u16,
    options: &str,
) -> Result<Server> {
    let jars = installed(&format!("kafka-{}", version("kafka")));
    let java = format!("java {HEAP} {QUICK} -Dlog4j2.level=INFO -cp '{}/*'", jars.display());
    let [storage, broker] = if place.is_native {
        ["kafka.tools.StorageTool", "kafka.Kafka"].map(|class| format!("{java} {class}"))
    } else {
        ["kafka-storage.sh", "kafka-server-start.sh"].map(|file| format!("/opt/kafka/bin/{file}"))
    };
    let ports = LISTENERS.map(|_| ports::free());
    let data = place.data(name);
    let config = config(place, name, roles, ports, controller);
    let config = place.write(name, "server.properties", &config)?;
    let format = format!("format --cluster-id dG9waWMtYnJpZGdlLXRzdA {options}");
    Ok(Server {
        name,
        image: format!("apache/kafka:{}", version("kafka")),
        script: format!(
            "{{ test -e '{data}/meta.properties' || {storage} {format} --config '{config}'; }} && \
             exec {broker} '{config}'"
        ),
        // For the image's scripts, which choose another collector where the second is not set.
        env: vec![("KAFKA_HEAP_OPTS", HEAP.into()), ("KAFKA_JVM_PERFORMANCE_OPTS", QUICK.into())],
        ports: ports.to_vec(),
        // Metadata (version 1, of no topic): a broker lists itself once it may lead partitions.
        question: b"\0\0\0\x0e\0\x03\0\x01\0\0\0\x01\xff\xff\0\0\0\0",
        is_ready: |answer| answer.get(8..12) > Some(&[0; 4]),
        is_on_demand: false,
    })
}

fn config(place: &Place, name: &str, roles: &str, ports: [u16; 4], controller: u16) -> String {
    let listeners = |bind: Option<&str>| {
        let each = LISTENERS.iter().zip(ports);
        let each =
            each.map(|((_, name, host), port)| format!("{name}://{}:{port}", bind.unwrap_or(host)));
        each.collect::<Vec<_>>().join(",")
    };
    let (bound, advertised) = (listeners(Some(place.bind)), listeners(None));
    let (id, of_controller) = match name {
        "kafka" => (1, format!(",CONTROLLER://127.0.0.1:{controller}")),
        _ => (2, String::new()),
    };
    let (data, certificates) = (place.data(name), &place.certificates);
    format!(
        "process.roles={roles}
node.id={id}
listeners={bound}{of_controller}
advertised.listeners={advertised}
listener.security.protocol.map=PLAIN:PLAINTEXT,TLS:SSL,MTLS:SSL,SASL:SASL_SSL,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAIN
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
log.dirs={data}
ssl.keystore.type=PEM
ssl.keystore.location={certificates}/server-both.pem
ssl.truststore.type=PEM
ssl.truststore.location={certificates}/ca.pem
listener.name.tls.ssl.client.auth=none
listener.name.mtls.ssl.client.auth=required
listener.name.sasl.ssl.client.auth=none
listener.name.sasl.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl.scram-sha-512.sasl.jaas.config=\\
  org.apache.kafka.common.security.scram.ScramLoginModule required;
# A topic that the tests did not make is a mistake.
auto.create.topics.enable=false
log.retention.hours=-1
# One broker can hold one replica; few partitions of its own topics start faster.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# After SIGKILL the controller lets the broker come back only when its last session ended; 9 s by default.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
"
    )
}
