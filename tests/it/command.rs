//! The program as its operator meets it: what it says about a configuration, where it looks for one,
//! how it ends, and what its commands print. A secret is never among it.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::bridge::{
    APP, APPS, Bridge, Ended, SAMPLE, TOKEN, body, eventually, now, program, run, signed_by,
};
use crate::http;
use crate::outbox_file::serve_on;

const CONFIGURATION: Option<i32> = Some(78);

fn topic_bridge(arguments: &[&str]) -> Ended {
    run(program().args(arguments))
}

/// The program with a configuration file of this text.
fn configured(text: &str) -> (tempfile::TempDir, Command) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bridge.toml");
    fs::write(&path, text).unwrap();
    let mut command = program();
    command.current_dir(&folder).arg("--config").arg(path);
    (folder, command)
}

fn check_refused(ended: &Ended, code: Option<i32>, texts: &[&str]) {
    assert_eq!(ended.code, code, "{ended:?}");
    assert_eq!(ended.stdout, "", "data only");
    for text in texts {
        assert!(ended.stderr.contains(text), "{text:?} should be in {}", ended.stderr);
    }
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

#[test]
fn every_fault_is_named_with_its_place() {
    let check = |text: &str, expected: &[&str]| {
        let (_folder, mut command) = configured(text);
        let ended = run(command.arg("check"));
        check_refused(&ended, CONFIGURATION, expected);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    };
    let with_app = |text: &str| format!("{text}\n{ONE_APP}");
    check(
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
    check(
        &with_app("[ingres]\nlisten = \"127.0.0.1:1\""),
        &["ingres.listen", "did you mean ingress.listen?"],
    );
    check(&with_app("listen = \"127.0.0.1:1\""), &["listen (", "did you mean ingress.listen?"]);
    check(&with_app("[outbox]\nflush = \"x\""), &["outbox.flush (", "unknown key"]);
    check(&with_app("ingress = 7"), &["ingress (", "is a section, not a value"]);
    check(
        &with_app("[log]\nlevel = \"loud\""),
        &[r#""loud" is not one of "error", "warn", "info""#],
    );
    check(
        &with_app("sink = \"pulsar\""),
        &[r#"sink ("#, r#""pulsar" is not one of "embedded", "kafka""#],
    );
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
        check(&with_app(broker), &[expected]);
    }
    check(
        &with_app("[relay]\nretry_min = \"1m\""),
        &["relay.retry_min: is longer than relay.retry_max"],
    );
    check(&with_app("[ingress]\nmax_skew = \"1500ms\""), &["must be whole seconds"]);
    check(&with_app("[ingress]\nmax_in_flight = 0"), &["0 is not from 1 to"]);
    check(
        &with_app("[ingress]\nmax_body_bytes = \"64 apples\""),
        &["\"64 apples\" is not a valid size"],
    );
    check(&with_app("[ingress]\npath = \"callback?x\""), &["is not a plain URL path"]);
    check(&with_app("[ingress.tls]\ncert_file = \"x\""), &["needs both cert_file and key_file"]);
    check(&with_app("sink = "), &["bridge.toml"]);

    check("[[apps]]\nsdk_app_id = 1\ntokens = [\"hunter2]", &["bridge.toml"]);

    check("[[apps]]\nsdk_app_id = 1", &["apps[0]", "has no tokens"]);
    check("[[apps]]\ntokens = [\"hunter2\"]", &["apps[0].sdk_app_id", "is missing"]);
    check("[[apps]]\nsdk_app_id = -1\ntokens = [\"hunter2\"]", &["is not a whole number"]);
    check(&format!("{ONE_APP}{ONE_APP}"), &["apps[1]", "sdk_app_id 1400000000 is set twice"]);
    check(&format!("{ONE_APP}token = \"hunter2\""), &["apps[0].token", "did you mean tokens?"]);
    check("[[apps]]\nsdk_app_id = 1\ntokens = [12]", &["apps[0].tokens", "found a number"]);
    check("[[apps]]\nsdk_app_id = 1\ntokens = \"hunter2\"", &["apps[0].tokens", "is not a list"]);
    check("[[apps]]\nsdk_app_id = 1\ntokens = [\"\"]", &["a token has 1 to 128 characters"]);
    let long = format!("[[apps]]\nsdk_app_id = 1\ntokens = [\"{}\"]", "hunter2".repeat(19));
    check(&long, &["a token has 1 to 128 characters, this one has 133"]);
    check(
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
         [ingress.tls]\ncert_file = \"a\"\nkey_file = \"b\""
    ));
    command.env("TOPIC_BRIDGE_RELAY__BATCH", "3").args(["--set", "log.format=json"]);
    let first = run(command.arg("check"));
    assert_eq!(first.code, Some(0), "{first:?}");
    let (_folder, mut command) = configured(&first.stdout);
    let second = run(command.arg("check"));
    assert_eq!(second.code, Some(0), "{second:?}");
    assert_eq!(second.stdout, first.stdout);
    for line in ["sink = \"embedded\"", "batch = 3", "max_in_flight = 7", "cert_file = \"a\""] {
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
fn usage_errors_end_with_2() {
    for arguments in [
        &["--nonsense"][..],
        &["nonsense"],
        &["outbox"],
        &["outbox", "show"],
        &["outbox", "list", "--dead", "--quarantined"],
        &["send", "--rate", "0"],
        &["send", "http://a/", "http://b/"],
        &["--config"],
    ] {
        let ended = topic_bridge(arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ended.stderr.contains("--help"), "{}", ended.stderr);
    }
    assert_eq!(topic_bridge(&["--version"]).code, Some(0));
    let help = topic_bridge(&["--help"]);
    assert!(help.stdout.contains("78 configuration"), "{}", help.stdout);
}

#[test]
fn a_second_bridge_on_one_outbox_says_who_the_first_one_is() {
    let bridge = Bridge::start(&[]);
    let ended = run(&mut serve_on(&bridge.outbox()));
    let first = format!("(process {})", bridge.pid());
    let outbox = bridge.outbox();
    check_refused(&ended, Some(1), &["another topic-bridge", &first, outbox.to_str().unwrap()]);
    assert_eq!(bridge.call(SAMPLE).status, 200, "the first one goes on");
    let bridge = bridge.restart(&[]);
    assert_eq!(bridge.events().len(), 1, "a lock does not outlive its holder");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for key in ["ingress.listen", "admin.listen"] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = serve_on(&folder.path().join("outbox.db"));
        let ended = run(command.args(["--set", &format!("{key}={address}")]));
        check_refused(&ended, Some(1), &[key, &address, "another program using the port"]);
    }
}

/// Tries to serve on a file and to look into it; it must be the same to the byte afterwards.
fn check_untouched(path: &Path, texts: &[&str]) {
    let before = fs::read(path).unwrap();
    check_refused(&run(&mut serve_on(path)), Some(1), texts);
    let looked = run(program().args(["outbox", "status", "--path"]).arg(path));
    check_refused(&looked, Some(1), &[path.to_str().unwrap()]);
    assert_eq!(fs::read(path).unwrap(), before);
    let beside: Vec<_> = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with("-wal") || name.ends_with("-journal"))
        .collect();
    assert_eq!(beside, Vec::<String>::new());
}

#[test]
fn a_file_that_is_no_outbox_is_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.db");
    for content in [b"hello".to_vec(), b"not a database\n".repeat(1000), vec![0xff; 4096]] {
        fs::write(&path, content).unwrap();
        check_untouched(&path, &["it is not an SQLite file", "outbox.path"]);
    }
    fs::remove_file(&path).unwrap();
    let foreign = rusqlite::Connection::open(&path).unwrap();
    foreign.execute_batch("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (7)").unwrap();
    foreign.close().unwrap();
    check_untouched(&path, &["a database of another program"]);

    let nowhere = folder.path().join("no/such/folder/outbox.db");
    check_refused(&run(&mut serve_on(&nowhere)), Some(1), &["there is no directory"]);
}

#[test]
fn an_outbox_of_a_newer_release_is_refused_untouched() {
    let mut bridge = Bridge::start(&[]);
    assert_eq!(bridge.call(SAMPLE).status, 200);
    bridge.signal("TERM");
    assert_eq!(bridge.ended().code(), Some(0));
    let set_version = |version: i64| {
        let outbox = rusqlite::Connection::open(bridge.outbox()).unwrap();
        outbox.pragma_update(None, "user_version", version).unwrap();
        outbox.close().unwrap();
    };
    set_version(99);
    check_untouched(&bridge.outbox(), &["schema version 99", "newer topic-bridge"]);
    set_version(3);
    assert_eq!(bridge.restart(&[]).events().len(), 1);
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

#[test]
fn an_outbox_of_an_older_release_is_not_read_before_a_bridge_has_run_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = folder.path().join("outbox.db");
    let older = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/data/outbox-v2.db");
    std::fs::copy(older, &outbox).unwrap();
    let ended = run(program().args(["outbox", "status", "--path"]).arg(&outbox));
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("an older release"), "{ended:?}");
}

#[test]
fn the_outbox_can_be_looked_into_beside_a_bridge_and_after_it() {
    let mut bridge = Bridge::start(&[]);
    for number in 1..=3 {
        let name = format!("\u{1b}[2J tea {number}");
        let body = body(&format!("topic {number}"));
        let name = Value::from(name).to_string();
        assert_eq!(bridge.call(&body.replace("\"MyFirstTopic\"", &name)).status, 200);
    }
    assert_eq!(bridge.call("not json").status, 400);
    eventually("all is delivered", || {
        (bridge.metric("topic_bridge_outbox_pending") == 0.0).then_some(())
    });
    let events = bridge.events();
    check_outbox(&bridge, &events);
    bridge.signal("TERM");
    assert_eq!(bridge.ended().code(), Some(0));
    check_outbox(&bridge, &events);

    let missing = topic_bridge(&["outbox", "status", "--path", "/nowhere/outbox.db"]);
    check_refused(&missing, Some(1), &["/nowhere/outbox.db", "there is no such file"]);
}

fn check_outbox(bridge: &Bridge, events: &[Value]) {
    // The outbox is found by the configuration, whatever else may be missing in it.
    let outbox = |arguments: &[&str]| {
        run(program()
            .arg("outbox")
            .args(arguments)
            .env("TOPIC_BRIDGE_OUTBOX__PATH", bridge.outbox()))
    };
    let lines = |arguments: &[&str]| {
        let ended = outbox(arguments);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{arguments:?}");
        ended.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let json = |arguments: &[&str]| -> Vec<Value> {
        let lines = lines(&[arguments, &["--json"]].concat());
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let status = json(&["status"]).pop().unwrap();
    for (name, expected) in [
        ("events", json!(3)),
        ("oldest_position", json!(1)),
        ("newest_position", json!(3)),
        ("pending", json!(0)),
        ("oldest_pending_at", json!(null)),
        ("dead_letters", json!(0)),
        ("quarantined", json!(1)),
    ] {
        assert_eq!(status[name], expected, "{name} in {status}");
    }
    assert!(lines(&["status"])[0].contains("3 (positions 1 to 3)"));

    let row = |at: usize| {
        json!({
            "position": at + 1, "state": "delivered", "event": events[at],
            "accepted_at": events[at]["data"]["accepted_at"],
        })
    };
    assert_eq!(json(&["list"]), [row(0), row(1), row(2)]);
    assert_eq!(json(&["list", "--after", "1", "--limit", "1"]), [row(1)]);
    assert_eq!(json(&["list", "--pending"]), Vec::<Value>::new());
    assert_eq!(json(&["list", "--dead"]), Vec::<Value>::new());
    assert_eq!(json(&["show", "2"]), [row(1)]);
    assert_eq!(json(&["show", events[2]["id"].as_str().unwrap()]), [row(2)]);
    let text = lines(&["list"]);
    assert_eq!(text.len(), 4, "a head and a line each: {text:?}");
    assert!(text[1].contains("topic 1") && text[1].contains("delivered"), "{text:?}");
    assert!(lines(&["show", "1"]).iter().any(|line| line.contains("\"subject\": \"topic 1\"")));
    let everything = [text, lines(&["show", "1"])].concat().concat();
    assert!(!everything.contains('\u{1b}'), "a name may not move a terminal's cursor");

    let misfit = json(&["list", "--quarantined"]).pop().unwrap();
    assert_eq!((&misfit["number"], &misfit["body"]), (&json!(1), &json!("not json")));
    assert_eq!(json(&["show", "--quarantined", "1"]), [misfit]);
    for (arguments, text) in [
        (&["show", "4"][..], "there is no event at position 4"),
        (&["show", "92f58f4e-5a60-5ecf-9e83-6cbb3350b7e3"], "there is no event with the id"),
        (&["show", "x"], "neither a position nor an id"),
        (&["show", "--quarantined", "2"], "there is no quarantined callback 2"),
    ] {
        check_refused(&outbox(arguments), Some(1), &[text]);
    }
}

#[test]
fn send_plays_the_platform_and_says_how_it_was_answered() {
    let bridge = Bridge::start(&[]);
    let url = format!("http://{}/?from=operator", bridge.ingress);
    let send = |arguments: &[&str]| run(program().args(["send", &url]).args(arguments));

    let one = send(&["--token", TOKEN]);
    assert_eq!((one.code, one.stderr.as_str()), (Some(0), ""), "{one:?}");
    assert!(one.stdout.contains("1  200 OK 0"), "{}", one.stdout);

    let whole = send(&[
        "--token",
        TOKEN,
        "--json",
        "--topic-id",
        "mine",
        "--group-id",
        "ours",
        "--name",
        "Tea & 🍵",
        "--operator",
        "me",
        "--owner",
        "you",
        "--custom",
        "a=1",
        "--custom",
        "a=2",
        "--event-time",
        "1670574414123",
        "--client-ip",
        "192.0.2.1",
        "--platform",
        "Web",
    ]);
    assert_eq!(whole.code, Some(0), "{whole:?}");
    let summary: Value = serde_json::from_str(&whole.stdout).unwrap();
    assert_eq!((&summary["sent"], &summary["ok"]), (&json!(1), &json!(1)));
    let event = bridge.events().pop().unwrap();
    assert_eq!(event["time"], "2022-12-09T08:26:54.123Z");
    let mut data = event["data"].clone();
    data["accepted_at"].take();
    let expected = json!({
        "sdk_app_id": APP, "topic_id": "mine", "topic_name": "Tea & 🍵", "group_id": "ours",
        "group_type": "Community", "operator": "me", "owner": "you",
        "custom_fields": [{ "key": "a", "value": "1" }, { "key": "a", "value": "2" }],
        "client": { "ip": "192.0.2.1", "platform": "Web" }, "accepted_at": null, "extra": {},
    });
    assert_eq!(data, expected);

    let many = send(&["--token", TOKEN, "--count", "20", "--concurrency", "4", "--answers"]);
    assert_eq!(many.code, Some(0), "{many:?}");
    let answers = many.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut topics: Vec<_> = answers
        .inspect(|answer| assert_eq!(answer["status"], 200))
        .map(|answer| answer["topic_id"].as_str().unwrap().to_owned())
        .collect();
    let mut found = bridge.topic_ids().split_off(2);
    topics.sort();
    found.sort();
    assert_eq!(topics, found);

    for (arguments, error_code) in [
        (&["--token", "wrong"][..], 40101),
        (&[], 40101),
        (&["--token", TOKEN, "--request-time", "1669872112"], 40102),
        (&["--token", TOKEN, "--sdk-app-id", "7"], 40301),
    ] {
        let refused = send(&[arguments, &["--json"]].concat());
        assert_eq!(refused.code, Some(1), "{refused:?}");
        let summary: Value = serde_json::from_str(&refused.stdout).unwrap();
        assert_eq!(summary["answers"][0]["error_code"], error_code, "{summary}");
        assert_eq!(summary["ok"], 0);
    }
    bridge.kill();
    let nobody = send(&["--token", TOKEN, "--json"]);
    assert_eq!(nobody.code, Some(1));
    let summary: Value = serde_json::from_str(&nobody.stdout).unwrap();
    assert_eq!((&summary["answered"], &summary["failures"]["refused"]), (&json!(0), &json!(1)));
}
