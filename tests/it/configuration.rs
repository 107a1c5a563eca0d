//! What the program says about a configuration, and where it looks for one. It never prints a secret.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::bridge::{APPS, Bridge, SAMPLE, body, now, program, run, signed_by};
use crate::command::{CONFIGURATION, check_refused, topic_bridge};
use crate::http;

/// The program with a configuration file of this text.
fn configured(text: &str) -> (tempfile::TempDir, Command) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bridge.toml");
    fs::write(&path, text).unwrap();
    let mut command = program();
    command.current_dir(&folder).arg("--config").arg(path);
    (folder, command)
}

/// What `check` shows of a good configuration.
fn effective(command: &mut Command) -> Value {
    let ended = run(command.args(["check", "--json"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

const ONE_APP: &str = "[[apps]]\nsdk_app_id = 1400000000\ntokens = [\"0012345678\"]\n";

#[test]
fn without_an_app_it_says_what_to_write() {
    for arguments in [&[][..], &["serve"], &["check"], &["--set", "apps=[]"]] {
        let ended = topic_bridge(arguments);
        let snippet = ["[[apps]]\n", "sdk_app_id = 1400000000", "tokens = [", "1 fault:"];
        check_refused(&ended, CONFIGURATION, &snippet);
        assert!(!ended.stderr.contains("1 faults"), "{}", ended.stderr);
    }
    let ended = topic_bridge(&["check"]);
    let lines = ended.stderr.lines().map(str::trim);
    let snippet: Vec<_> =
        lines.skip_while(|line| *line != "[[apps]]").take_while(|line| !line.is_empty()).collect();
    let (_folder, mut command) = configured(&snippet.join("\n"));
    let shown = effective(&mut command);
    assert_eq!(shown["apps"][0]["sdk_app_id"], 1400000000, "the snippet can be taken as it is");
}

fn check_fault(text: &str, expected: &[&str]) {
    let (_folder, mut command) = configured(text);
    let ended = run(command.arg("check"));
    check_refused(&ended, CONFIGURATION, expected);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
}

fn with_app(text: &str) -> String {
    format!("{text}\n{ONE_APP}")
}

#[test]
fn every_fault_is_named_with_its_place() {
    check_fault(
        "[ingress]\nlisten = \"nowhere\"\nmax_body_byte = 5\nidle_timeout = 30\n[outbox]\nsync = true",
        &[
            "has 5 faults:",
            "ingress.listen (",
            "bridge.toml): \"nowhere\" is not a valid address",
            "ingress.max_body_byte (",
            "did you mean ingress.max_body_bytes?",
            "ingress.idle_timeout (",
            "\"30\" is not a valid duration: write a unit, as in \"1500ms\" or \"10m\"",
            "outbox.sync (",
            "found true or false, expected text: put it in quotes",
            "[[apps]]",
        ],
    );
    check_fault(
        &with_app("[ingres]\nlisten = \"127.0.0.1:1\""),
        &["ingres.listen", "did you mean ingress.listen?"],
    );
    check_fault(
        &with_app("listen = \"127.0.0.1:1\""),
        &["listen (", "did you mean ingress.listen?"],
    );
    check_fault(&with_app("[outbox]\nflush = \"x\""), &["outbox.flush (", "unknown key"]);
    check_fault(&with_app("ingress = 7"), &["ingress (", "is a section, not a value"]);
    check_fault(
        &with_app("[log]\nlevel = \"loud\""),
        &[r#""loud" is not one of "error", "warn", "info""#],
    );
    check_fault(
        &with_app("sink = \"pulsar\""),
        &[r#"sink ("#, r#""pulsar" is not one of "embedded", "kafka""#],
    );
    check_fault(
        &with_app("[relay]\nretry_min = \"1m\""),
        &["relay.retry_min: is longer than relay.retry_max"],
    );
    check_fault(&with_app("[ingress]\nmax_skew = \"1500ms\""), &["must be whole seconds"]);
    check_fault(&with_app("[ingress]\nmax_in_flight = 0"), &["0 is not from 1 to"]);
    check_fault(
        &with_app("[ingress]\nmax_body_bytes = \"64 apples\""),
        &["\"64 apples\" is not a valid size"],
    );
    check_fault(&with_app("[ingress]\npath = \"callback?x\""), &["is not a plain URL path"]);
    check_fault(
        &with_app("[ingress.tls]\ncert_file = \"x\""),
        &["needs both cert_file and key_file"],
    );
    check_fault(&with_app("sink = "), &["bridge.toml"]);

    check_fault("[[apps]]\nsdk_app_id = 1\ntokens = [\"hunter2]", &["bridge.toml"]);
}

#[test]
fn a_fault_in_a_brokers_section_is_named_whichever_sink_is_in_use() {
    for (broker, expected) in [
        ("[nats]\nservers = [\"nats://hunter2@h\"]", "nats.servers"),
        ("[nats]\nservers = [\"http://h\"]", "expected one of nats, tls"),
        ("[nats]\nsubject = \"{group_id}\"", "must begin with fixed text"),
        ("[nats]\nsubject = \"a.{group}\"", "unknown placeholder {group}"),
        ("[nats]\nstream = \"a.b\"", "not a name for a stream"),
        ("[nats]\nduplicate_window = \"8d\"", "is longer than nats.max_age"),
        ("[nats]\nusername = \"hunter2\"", "username and password go together"),
        ("[nats]\ntoken = \"hunter2\"\ntoken_file = \"/dev/null\"", "is set twice"),
        ("[nats]\ncredentials_file = \"/no/such\"", "cannot read /no/such"),
        ("[nats.tls]\ncert_file = \"/dev/null\"", "cert_file and key_file go together"),
        ("[rabbitmq]\nurl = \"amqp://u:hunter2@/%2f\"", "rabbitmq.url"),
        ("[rabbitmq]\nurl = \"amqp://h/a/b\"", "write that as %2f"),
        ("[rabbitmq]\ndeclare = \"maybe\"", "\"none\", \"passive\", \"active\""),
        ("[kafka]\ntopic = \"a b\"", "not a name for a topic"),
        ("[kafka]\nkey = \"owner\"", "\"group_id\", \"topic_id\""),
        ("[kafka]\nbrokers = []", "names no server"),
        ("[kafka.properties]\n\"sasl.password_file\" = \"/no/such\"", "cannot read /no/such"),
        ("[kafka.properties]\na = [1]", "neither text, a number"),
    ] {
        check_fault(&with_app(broker), &[expected]);
    }
}

#[test]
fn a_fault_of_an_app_is_named_with_its_place() {
    check_fault("[[apps]]\nsdk_app_id = 1", &["apps[0]", "has no tokens"]);
    check_fault("[[apps]]\ntokens = [\"hunter2\"]", &["apps[0].sdk_app_id", "is missing"]);
    check_fault("[[apps]]\nsdk_app_id = -1\ntokens = [\"hunter2\"]", &["is not a whole number"]);
    check_fault(&format!("{ONE_APP}{ONE_APP}"), &["apps[1]", "sdk_app_id 1400000000 is set twice"]);
    check_fault(
        &format!("{ONE_APP}token = \"hunter2\""),
        &["apps[0].token", "did you mean tokens?"],
    );
    check_fault("[[apps]]\nsdk_app_id = 1\ntokens = [12]", &["apps[0].tokens", "found a number"]);
    check_fault(
        "[[apps]]\nsdk_app_id = 1\ntokens = \"hunter2\"",
        &["apps[0].tokens", "is not a list"],
    );
    check_fault("[[apps]]\nsdk_app_id = 1\ntokens = [\"\"]", &["a token has 1 to 128 characters"]);
    let long = format!("[[apps]]\nsdk_app_id = 1\ntokens = [\"{}\"]", "hunter2".repeat(19));
    check_fault(&long, &["a token has 1 to 128 characters, this one has 133"]);
    check_fault(
        "[[apps]]\nsdk_app_id = 1\ntoken_files = [\"/nowhere/token\"]",
        &["apps[0].token_files", "cannot read /nowhere/token"],
    );
}

#[test]
fn a_named_file_must_be_there() {
    let missing = ["/nowhere/bridge.toml", "there is no such configuration file"];
    check_refused(
        &topic_bridge(&["--config", "/nowhere/bridge.toml", "check"]),
        CONFIGURATION,
        &missing,
    );
    let named = run(program().env("TOPIC_BRIDGE_CONFIG", "/nowhere/bridge.toml"));
    check_refused(&named, CONFIGURATION, &missing);
}

#[test]
fn what_comes_later_counts_more() {
    let (folder, mut command) = configured(&format!(
        "[ingress]\nmax_body_bytes = \"1 KiB\"\nmax_in_flight = 1\nmax_connections = 1\n{ONE_APP}"
    ));
    command
        .env("TOPIC_BRIDGE_INGRESS__MAX_IN_FLIGHT", "2")
        .env("TOPIC_BRIDGE_INGRESS__MAX_CONNECTIONS", "2")
        .env("TOPIC_BRIDGE_INGRESS__TRUST_NETWORK", "true")
        .args(["--set", "ingress.max_connections=3", "--set", "ingress.drain_delay = 3s"]);
    let ingress = &effective(&mut command)["ingress"];
    assert_eq!(ingress["path"], "/", "a default");
    assert_eq!(ingress["max_body_bytes"], "1 KiB", "from the file");
    assert_eq!(ingress["max_in_flight"], 2, "the environment over the file");
    assert_eq!(ingress["trust_network"], true, "from the environment");
    assert_eq!(ingress["max_connections"], 3, "a flag over the environment");
    assert_eq!(ingress["drain_delay"], "3s", "from a flag");

    // The file can be named by a variable, over which its flag counts.
    let other = folder.path().join("other.toml");
    fs::write(&other, format!("[ingress]\nmax_in_flight = 7\n{ONE_APP}")).unwrap();
    let mut command = program();
    command.env("TOPIC_BRIDGE_CONFIG", &other);
    assert_eq!(effective(&mut command)["ingress"]["max_in_flight"], 7);
    let file = folder.path().join("bridge.toml");
    let mut command = program();
    command.env("TOPIC_BRIDGE_CONFIG", &other).arg("--config").arg(file);
    assert_eq!(effective(&mut command)["ingress"]["max_in_flight"], 1);

    // Compose passes a variable that nobody has set as an empty one.
    let mut command = program();
    command.env("TOPIC_BRIDGE_CONFIG", "").env("TOPIC_BRIDGE_APPS", APPS);
    assert_eq!(effective(&mut command)["ingress"]["max_in_flight"], 1024);
}

#[test]
fn a_variable_may_hold_any_text() {
    for text in ["0012", "true", "[abc]", "{a=1}", "1e3", "a=b", " \"x\"", "°", "12"] {
        let mut command = program();
        command.env("TOPIC_BRIDGE_OUTBOX__PATH", text).env("TOPIC_BRIDGE_APPS", APPS);
        assert_eq!(effective(&mut command)["outbox"]["path"], text);
    }
    let bridge = Bridge::start_without_apps(|command| {
        command.env(
            "TOPIC_BRIDGE_APPS",
            r#"[{sdk_app_id=1,tokens=["0012"]},{sdk_app_id="2",tokens=["true",'[abc]']}]"#,
        );
    });
    for (app, token, status) in
        [(1, "0012", 200), (1, "12", 401), (2, "true", 200), (2, "[abc]", 200)]
    {
        let body = body(&format!("{app} {token}"));
        let reply = http::post(bridge.ingress, &signed_by(app, token, now()), body.as_bytes());
        assert_eq!(reply.status, status, "{token}");
    }
    for text in ["", "1400000000", "[{sdk_app_id=1}", "[1]", "[]\nsink=7"] {
        let ended = run(program().arg("check").env("TOPIC_BRIDGE_APPS", text));
        check_refused(&ended, CONFIGURATION, &["apps"]);
    }
    let misspelt = run(program()
        .arg("check")
        .env("TOPIC_BRIDGE_APPS", APPS)
        .env("TOPIC_BRIDGE_INGRESS__LISTN", "x"));
    let named = ["TOPIC_BRIDGE_INGRESS__LISTN", "did you mean ingress.listen?"];
    check_refused(&misspelt, CONFIGURATION, &named);
    let shapeless = topic_bridge(&["check", "--set", "ingress.listen"]);
    check_refused(&shapeless, CONFIGURATION, &["write it as section.key=value"]);
}

/// A Kubernetes service called topic-bridge puts these into every container of its namespace.
#[test]
fn variables_of_a_service_link_are_no_configuration() {
    let mut command = program();
    command.env("TOPIC_BRIDGE_APPS", APPS);
    for (name, value) in [
        ("SERVICE_HOST", "10.0.0.11"),
        ("SERVICE_PORT", "8080"),
        ("SERVICE_PORT_HTTP", "8080"),
        ("ADMIN_SERVICE_HOST", "10.0.0.11"),
        ("ADMIN_PORT", "tcp://10.0.0.11:9090"),
        ("ADMIN_PORT_9090_TCP_ADDR", "10.0.0.11"),
        ("PORT", "tcp://10.0.0.11:8080"),
        ("PORT_8080_TCP", "tcp://10.0.0.11:8080"),
        ("PORT_8080_TCP_PROTO", "tcp"),
        ("PORT_8080_TCP_PORT", "8080"),
        ("PORT_8080_TCP_ADDR", "10.0.0.11"),
    ] {
        command.env(format!("TOPIC_BRIDGE_{name}"), value);
    }
    assert_eq!(effective(&mut command)["ingress"]["listen"], "127.0.0.1:8080");
}

#[test]
fn a_secret_comes_from_a_file_and_is_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    fs::write(&token_file, "from a file 0012\r\n").unwrap();
    let apps = format!(
        "[[apps]]\nsdk_app_id = 1\ntokens = [\"hunter2\", \"hunter3\"]\ntoken_files = [{token_file:?}]\n"
    );
    for form in [&[][..], &["--json"]] {
        let (_folder, mut command) = configured(&apps);
        let ended = run(command.arg("check").args(form));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(ended.stdout.matches("\"***\"").count(), 2, "{}", ended.stdout);
        assert!(ended.stdout.contains(token_file.to_str().unwrap()), "{}", ended.stdout);
        let all = format!("{}{}", ended.stdout, ended.stderr);
        assert!(!all.contains("hunter") && !all.contains("from a file"), "{all}");
    }
    let bridge = Bridge::start_without_apps(|command| {
        command.arg("--config").arg(folder.path().join("bridge.toml"));
        fs::write(folder.path().join("bridge.toml"), &apps).unwrap();
    });
    for token in ["hunter2", "hunter3", "from a file 0012"] {
        let target = signed_by(1, token, now());
        assert_eq!(http::post(bridge.ingress, &target, body(token).as_bytes()).status, 200);
    }
    let target = signed_by(1, "***", now());
    assert_eq!(http::post(bridge.ingress, &target, SAMPLE.as_bytes()).status, 401);
    assert!(!bridge.log().contains("hunter"), "{}", bridge.log());
}

#[test]
fn what_check_prints_is_a_configuration_but_for_the_secrets() {
    let (_folder, mut command) = configured(&format!(
        "[event]\nsource = \"//host/{{sdk_app_id}}\"\n[ingress]\nmax_in_flight = 7\n{ONE_APP}
         [[apps]]\nsdk_app_id = \"2\"\nallow_unsigned = true\n
         [nats.tls]\nca_file = \"/dev/null\""
    ));
    command.env("TOPIC_BRIDGE_RELAY__BATCH", "3").args(["--set", "log.format=json"]);
    let first = run(command.arg("check"));
    assert_eq!(first.code, Some(0), "{first:?}");
    let (_folder, mut command) = configured(&first.stdout);
    let second = run(command.arg("check"));
    assert_eq!(second.code, Some(0), "{second:?}");
    assert_eq!(second.stdout, first.stdout);
    for line in ["sink = \"embedded\"", "batch = 3", "max_in_flight = 7", "ca_file = \"/dev/null\""]
    {
        assert!(first.stdout.contains(line), "{line} should be in {}", first.stdout);
    }
}

#[test]
fn unsigned_callbacks_beside_a_public_address_are_refused_unless_the_network_is_trusted() {
    let check = |listen: &str, more: &str, code: Option<i32>| {
        let apps = "apps=[{sdk_app_id=1,allow_unsigned=true}]";
        let listen = format!("ingress.listen={listen}");
        let ended = topic_bridge(&["check", "--set", apps, "--set", &listen, "--set", more]);
        assert_eq!(ended.code, code, "{listen} {more}: {ended:?}");
        if code == CONFIGURATION {
            check_refused(&ended, code, &["allow_unsigned", "ingress.trust_network = true"]);
        }
    };
    check("0.0.0.0:8080", "log.level=info", CONFIGURATION);
    check("[::]:8080", "log.level=info", CONFIGURATION);
    check("192.0.2.1:8080", "ingress.trust_network=false", CONFIGURATION);
    check("0.0.0.0:8080", "ingress.trust_network=true", Some(0));
    check("127.0.0.1:8080", "log.level=info", Some(0));
    check("[::1]:8080", "log.level=info", Some(0));
    check("0.0.0.0:8080", r#"apps=[{sdk_app_id=1,tokens=["x"]}]"#, Some(0));
}

#[test]
fn the_shipped_configurations_are_good() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let check = |name: &str, more: &[&str]| {
        let mut command = program();
        effective(command.arg("--config").arg(shipped.join(name)).args(more))
    };
    assert_eq!(check("embedded.toml", &[])["sink"], "embedded");
    let apps = format!("apps={APPS}");
    let from_file = check("default.toml", &["--set", &apps]);
    assert_eq!(from_file, effective(program().args(["--set", &apps])), "they are the defaults");
}

#[test]
fn what_proves_who_we_are_to_a_broker_is_never_shown() {
    let text = format!(
        "{ONE_APP}
        [kafka.properties]
        \"sasl.password\" = \"hunter2\"
        ssl.key.pem = \"hunter2\"
        socket.keepalive.enable = true
        linger.ms = 3
        [rabbitmq]
        url = \"amqp://user:hunter2@host/%2f\"
        password = \"hunter2\"
        [nats]
        servers = \"tls://user:hunter2@a, b:4333\"
        token = \"hunter2\""
    );
    let (_folder, mut command) = configured(&text);
    command.env("TOPIC_BRIDGE_KAFKA__PROPERTIES__LINGER__MS", "7");
    let shown = effective(&mut command);
    assert!(!shown.to_string().contains("hunter2"), "{shown:#}");
    assert_eq!(shown["kafka"]["properties"]["sasl.password"], "***");
    assert_eq!(shown["kafka"]["properties"]["socket.keepalive.enable"], "true");
    assert_eq!(shown["kafka"]["properties"]["linger.ms"], "7", "the variable goes before the file");
    assert_eq!(shown["rabbitmq"]["url"], "amqp://user:***@host/%2f");
    assert_eq!(shown["nats"]["servers"][0], "tls://user:***@a");
    assert_eq!(shown["nats"]["servers"][1], "nats://b:4333");
}
