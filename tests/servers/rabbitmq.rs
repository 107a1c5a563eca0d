//! RabbitMQ. TLS options hold for the whole server, so there is one TLS address: a client certificate is not asked
//! for, but one of another authority is refused.

use anyhow::Result;

use super::process::Server;
use super::{Addresses, Place, Way, ports, version};

// Not the commands in the path, which change the user.
pub(super) const CTL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

pub(super) fn servers(place: &Place) -> Result<(Vec<Server>, Addresses)> {
    let (plain, tls) = (ports::free(), ports::free());
    let config = place.write("rabbitmq", "rabbitmq.conf", &config(place, plain, tls))?;
    let own = "/etc/rabbitmq/conf.d/20-tests.conf";
    let mut server = Server {
        name: "rabbitmq",
        image: format!("rabbitmq:{}", version("rabbitmq_image")),
        script: format!("cp '{config}' {own} && exec docker-entrypoint.sh rabbitmq-server"),
        env: vec![],
        ports: vec![plain, tls],
        // AMQP's first exchange: RabbitMQ opens its listeners last, when all else runs.
        question: b"AMQP\0\0\x09\x01",
        is_ready: |answer| answer.get(7..11) == Some(b"\0\x0a\0\x0a"),
        is_on_demand: false,
    };
    let mut servers = vec![];
    if place.is_native {
        let epmd = ports::free();
        server.script = format!("exec {SERVER}");
        server.env = environment(place, plain, epmd, config)?;
        // Erlang's name server, which RabbitMQ would else start in the background.
        place.write("rabbitmq-epmd", "log", "")?;
        servers.push(Server {
            name: "rabbitmq-epmd",
            image: String::new(),
            script: format!("exec epmd -port {epmd}"),
            env: server.env.clone(),
            ports: vec![epmd],
            question: b"",
            is_ready: |_| true,
            is_on_demand: false,
        });
    }
    servers.push(server);
    let plain = format!("amqp://guest:guest@127.0.0.1:{plain}/%2f");
    let tls = format!("amqps://guest:guest@localhost:{tls}/%2f");
    Ok((servers, vec![(Way::Plain, plain), (Way::Tls, tls)]))
}

fn config(place: &Place, plain: u16, tls: u16) -> String {
    let (bind, certificates) = (place.bind, &place.certificates);
    format!(
        "listeners.tcp.1 = {bind}:{plain}
listeners.ssl.1 = {bind}:{tls}
ssl_options.cacertfile = {certificates}/ca.pem
ssl_options.certfile = {certificates}/server.pem
ssl_options.keyfile = {certificates}/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
# To a container the tests come from another address than its loopback.
loopback_users.guest = false
vm_memory_high_watermark.relative = 0.4
disk_free_limit.absolute = 50MB
heartbeat = 10
log.console = true
"
    )
}

/// A node, a name server and a cookie of its own, so that it can neither meet nor disturb another RabbitMQ of
/// the machine.
fn environment(
    place: &Place,
    port: u16,
    epmd: u16,
    config: String,
) -> Result<Vec<(&'static str, String)>> {
    let path = |name: &str| place.folder.join("rabbitmq").join(name).display().to_string();
    let loopback = "-kernel inet_dist_use_interface {127,0,0,1}";
    Ok(vec![
        ("HOME", path("")),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
        ("ERL_EPMD_PORT", epmd.to_string()),
        ("RABBITMQ_NODENAME", format!("topic-bridge-{port}@localhost")),
        ("RABBITMQ_DIST_PORT", ports::free().to_string()),
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", loopback.into()),
        ("RABBITMQ_CONFIG_FILE", config),
        ("RABBITMQ_CONF_ENV_FILE", place.write("rabbitmq", "rabbitmq-env.conf", "")?),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", place.write("rabbitmq", "enabled_plugins", "[].\n")?),
        ("RABBITMQ_MNESIA_BASE", path("data")),
        ("RABBITMQ_LOG_BASE", path("logs")),
        ("RABBITMQ_LOGS", "-".into()),
        // Lets the start script become the server, so that its process id is the server's.
        ("RUNNING_UNDER_SYSTEMD", "true".into()),
    ])
}
