//! Kafka, which serves all its addresses from one process; and a second broker of the same cluster, which only runs
//! while a test wants two replicas.

use anyhow::Result;

use super::{Addresses, PASSWORD, Place, Probe, Server, USER, Way, installed, ports, version};

// The quick compiler only and the simplest collector: it starts in half the time.
const HEAP: &str = "-Xms256m -Xmx512m";
const QUICK: &str = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1";

/// The names of the listeners, and the host that they tell clients.
const LISTENERS: [(Way, &str, &str); 4] = [
    (Way::Plain, "PLAIN", "127.0.0.1"),
    (Way::Tls, "TLS", "localhost"),
    (Way::Mtls, "MTLS", "localhost"),
    (Way::Sasl, "SASL", "localhost"),
];

pub(super) fn servers(place: &Place) -> Result<(Vec<Server>, Addresses)> {
    let ports = LISTENERS.map(|_| ports::free());
    let controller = ports::free();
    let config = first_config(place, ports, controller);
    let options =
        format!("--standalone --add-scram 'SCRAM-SHA-512=[name={USER},password={PASSWORD}]'");
    let mut servers = vec![server(place, "kafka", &config, &options, &ports)?];
    if place.is_native {
        let port = ports::free();
        let config = second_config(place, port, controller);
        let second = server(place, "kafka-2", &config, "--no-initial-controllers", &[port])?;
        servers.push(Server { is_on_demand: true, ..second });
    }
    let addresses = LISTENERS.iter().zip(ports);
    let addresses = addresses.map(|((way, _, host), port)| (*way, format!("{host}:{port}")));
    Ok((servers, addresses.collect()))
}

fn server(
    place: &Place,
    name: &'static str,
    config: &str,
    options: &str,
    ports: &[u16],
) -> Result<Server> {
    let jars = installed(&format!("kafka-{}", version("kafka")));
    let java = format!("java {HEAP} {QUICK} -Dlog4j2.level=INFO -cp '{}/*'", jars.display());
    let [storage, broker] = if place.is_native {
        ["kafka.tools.StorageTool", "kafka.Kafka"].map(|class| format!("{java} {class}"))
    } else {
        ["kafka-storage.sh", "kafka-server-start.sh"].map(|name| format!("/opt/kafka/bin/{name}"))
    };
    let (data, cluster) = (place.data(name), "dG9waWMtYnJpZGdlLXRzdA");
    let config = place.write(name, "server.properties", config)?;
    let (data, config) = (data.display(), config.display());
    Ok(Server {
        name,
        image: format!("apache/kafka:{}", version("kafka")),
        script: format!(
            "{{ test -e '{data}/meta.properties' || \
             {storage} format --cluster-id {cluster} {options} --config '{config}'; }} && \
             exec {broker} '{config}'"
        ),
        // For the scripts of the image, which choose another collector where the last is not set.
        env: vec![("KAFKA_HEAP_OPTS", HEAP.into()), ("KAFKA_JVM_PERFORMANCE_OPTS", QUICK.into())],
        ports: ports.to_vec(),
        probe: Probe::kafka(ports[0]),
        is_on_demand: false,
    })
}

/// What both brokers have.
fn common_config(place: &Place, name: &str, controller: u16) -> String {
    format!(
        "inter.broker.listener.name=PLAIN
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listener.security.protocol.map=PLAIN:PLAINTEXT,TLS:SSL,MTLS:SSL,SASL:SASL_SSL,CONTROLLER:PLAINTEXT
log.dirs={data}
# After SIGKILL the controller lets the broker come back only when its last session ended; 9 s by default.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
",
        data = place.data(name).display()
    )
}

fn second_config(place: &Place, port: u16, controller: u16) -> String {
    let common = common_config(place, "kafka-2", controller);
    format!("process.roles=broker\nnode.id=2\nlisteners=PLAIN://127.0.0.1:{port}\n{common}")
}

fn first_config(place: &Place, ports: [u16; 4], controller: u16) -> String {
    let listeners = |bind: Option<&str>| {
        let named = LISTENERS
            .iter()
            .zip(ports)
            .map(|((_, name, host), port)| format!("{name}://{}:{port}", bind.unwrap_or(host)));
        named.collect::<Vec<_>>().join(",")
    };
    let common = common_config(place, "kafka", controller);
    let certificates = place.certificates.display();
    format!(
        "process.roles=broker,controller
node.id=1
listeners={bound},CONTROLLER://127.0.0.1:{controller}
advertised.listeners={advertised}
{common}
ssl.keystore.type=PEM
ssl.keystore.location={certificates}/server-both.pem
ssl.truststore.type=PEM
ssl.truststore.location={certificates}/ca.pem
listener.name.tls.ssl.client.auth=none
listener.name.mtls.ssl.client.auth=required
listener.name.sasl.ssl.client.auth=none
listener.name.sasl.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl.scram-sha-512.sasl.jaas.config=\
org.apache.kafka.common.security.scram.ScramLoginModule required;
# A topic that the tests did not make is a mistake.
auto.create.topics.enable=false
num.partitions=1
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
",
        bound = listeners(Some(place.bind())),
        advertised = listeners(None),
    )
}
