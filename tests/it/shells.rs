//! What the program writes for other programs to read: completions for shells, manual pages for their readers, and
//! command lines for curl.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::CommandFactory as _;
use serde_json::json;
use topic_bridge::cli::Arguments;

use crate::bridge::{Bridge, SAMPLE, TOKEN, program, run};
use crate::command::topic_bridge;

/// Whether there is such a program. Says so where there is not.
fn is_here(name: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", "command -v \"$0\"", name])
        .stdout(Stdio::null())
        .status()
        .unwrap()
        .success();
    if !found {
        eprintln!("SKIPPED: there is no {name} here");
    }
    found
}

fn completions(folder: &Path, shell: &str) -> PathBuf {
    let ended = topic_bridge(&["completions", shell]);
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{shell}");
    let script = folder.join(shell);
    fs::write(&script, ended.stdout).unwrap();
    script
}

#[test]
fn each_shell_accepts_its_completions() {
    let folder = tempfile::tempdir().unwrap();
    for (shell, check) in [
        ("bash", &["bash", "-n"][..]),
        ("zsh", &["zsh", "-n"]),
        ("fish", &["fish", "--no-execute"]),
        ("elvish", &["elvish", "-compileonly"]),
        ("powershell", &["pwsh", "-File"]),
    ] {
        let script = completions(folder.path(), shell);
        assert!(fs::metadata(&script).unwrap().len() > 1000, "{shell}");
        if is_here(check[0]) {
            let ended = run(Command::new(check[0]).args(&check[1..]).arg(&script));
            assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{shell}");
        }
    }
}

#[test]
fn bash_completes_commands_options_and_values() {
    if !is_here("bash") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = completions(folder.path(), "bash");
    let complete = |line: &[&str]| -> BTreeSet<String> {
        // As bash calls it: the command, the word to complete, and the one before it.
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c"]).arg(
            r#"source "$0"; name=$(complete -p topic-bridge | sed 's/.*-F \([^ ]*\).*/\1/')
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            "$name" topic-bridge "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf '%s\n' "${COMPREPLY[@]}""#,
        );
        let ended = run(bash.arg(&script).args(line));
        assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{line:?}");
        ended.stdout.lines().map(str::to_owned).collect()
    };
    let found = complete(&["topic-bridge", "outbox", ""]);
    let arguments = Arguments::command();
    for command in arguments.find_subcommand("outbox").unwrap().get_subcommands() {
        assert!(found.contains(command.get_name()), "{} in {found:?}", command.get_name());
    }
    let all = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    assert_eq!(complete(&["topic-bridge", "outbox", "ex"]), all(&["export"]));
    assert_eq!(complete(&["topic-bridge", "send", "--print"]), all(&["--print-curl"]));
    assert_eq!(
        complete(&["topic-bridge", "schema", ""]).iter().filter(|w| !w.starts_with('-')).count(),
        4
    );
}

/// The names of a command's page and those of its subcommands.
fn pages(command: &clap::Command, name: &str) -> Vec<String> {
    let below = command.get_subcommands();
    let below = below.flat_map(|below| pages(below, &format!("{name}-{}", below.get_name())));
    std::iter::once(format!("{name}.1")).chain(below).collect()
}

#[test]
fn there_is_a_manual_page_for_each_command_that_the_readers_of_such_accept() {
    let folder = tempfile::tempdir().unwrap();
    let pages_folder = folder.path().join("man/man1");
    let ended = run(program().args(["man", "--dir"]).arg(&pages_folder));
    assert_eq!((ended.code, &*ended.stdout, &*ended.stderr), (Some(0), "", ""));
    let found: BTreeSet<_> = fs::read_dir(&pages_folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let expected = pages(&Arguments::command(), "topic-bridge");
    assert!(expected.contains(&"topic-bridge-outbox-retry.1".to_owned()), "{expected:?}");
    assert_eq!(found, expected.into_iter().collect());

    let checks =
        [("groff", &["-man", "-ww", "-z"][..]), ("mandoc", &["-T", "lint", "-W", "error"])];
    for (reader, options) in checks.into_iter().filter(|(reader, _)| is_here(reader)) {
        for page in &found {
            let ended = run(Command::new(reader).args(options).arg(pages_folder.join(page)));
            let said = (ended.code, &*ended.stdout, &*ended.stderr);
            assert_eq!(said, (Some(0), "", ""), "{reader} {page}");
        }
    }
    let page = topic_bridge(&["man"]).stdout;
    assert_eq!(page, fs::read_to_string(pages_folder.join("topic-bridge.1")).unwrap());
    check_text(&pages_folder);
}

/// What a reader sees.
fn check_text(folder: &Path) {
    if !is_here("groff") {
        return;
    }
    let read = |page: &str| {
        let mut groff = Command::new("groff");
        groff.args(["-man", "-T", "ascii", "-P", "-c", "-P", "-b", "-P", "-o", "-P", "-u"]);
        run(groff.arg(folder.join(page))).stdout
    };
    let page = read("topic-bridge.1");
    for text in [
        "\nCONFIGURATION\n",
        "\nENVIRONMENT\n",
        "\nFILES\n",
        "\nEXIT STATUS\n",
        "\nEXAMPLES\n",
        "\nSEE ALSO\n",
        "TOPIC_BRIDGE_CONFIG",
        "TOPIC_BRIDGE_SECTION__KEY",
        "NO_COLOR",
        "topic-bridge-outbox(1)",
        "topic-bridge --config bridge.toml\n",
    ] {
        assert!(page.contains(text), "{text:?} in {page}");
    }
    let (head, foot) = (page.lines().next().unwrap(), page.lines().last().unwrap());
    assert!(head.starts_with("topic-bridge(1) "), "{head}");
    assert!(foot.starts_with(&format!("topic-bridge {} ", env!("CARGO_PKG_VERSION"))), "{foot}");
    let page = read("topic-bridge-send.1");
    assert!(page.contains("\nEXAMPLES\n") && page.contains("--print-curl"), "{page}");
    assert!(page.contains("--name 'Tea & cake'"), "with plain quotes, to be copied: {page}");
}

const NASTY: &str =
    "it's \"a\" $HOME `id` $(id) \\ \\' !x ^y *~# ;&|<>\n%s\r\t\u{1}\u{7f}\u{85} {a,b}[c] 🍵 é";

#[test]
fn a_shell_sends_the_printed_command_whatever_is_in_the_topics_name() {
    let bridge = Bridge::start(&[]);
    let url = format!("http://{}/?from=[o]{{p}}'x", bridge.ingress);
    let print = |more: &[&str]| {
        let mut send = program();
        let ended = run(send.args(["send", &url, "--token", TOKEN, "--print-curl"]).args(more));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(!ended.stdout.contains(TOKEN), "the token is a secret: {}", ended.stdout);
        assert!(ended.stderr.contains("ingress.max_skew"), "{}", ended.stderr);
        let lines: Vec<_> = ended.stdout.lines().map(str::to_owned).collect();
        assert!(!lines.concat().contains(char::is_control), "a terminal would take it for a key");
        lines
    };
    let lines = print(&["--count", "3", "--name", NASTY, "--custom", &format!("a={NASTY}")]);
    assert_eq!(lines.len(), 3);
    for (shell, line) in ["sh", "bash", "zsh"].into_iter().zip(&lines) {
        let shell = if is_here(shell) { shell } else { "sh" };
        let ended = run(Command::new(shell).args(["-c", line]));
        assert!(ended.stdout.contains("\"ActionStatus\":\"OK\""), "{shell} {line}: {ended:?}");
    }
    let events = bridge.events();
    assert_eq!(events.len(), 3, "each is about a topic of its own");
    for event in events {
        assert_eq!(event["data"]["topic_name"], NASTY);
        assert_eq!(event["data"]["custom_fields"], json!([{ "key": "a", "value": NASTY }]));
    }

    let file = bridge.home().join("it's a body.json");
    fs::write(&file, SAMPLE).unwrap();
    let lines = print(&["--body-file", file.to_str().unwrap()]);
    let ended = run(Command::new("sh").args(["-c", &lines[0]]));
    assert!(ended.stdout.contains("\"ActionStatus\":\"OK\""), "{lines:?}: {ended:?}");
    assert_eq!(bridge.events().len(), 4);
}

#[test]
fn what_does_not_expire_is_not_said_to_expire_and_stdin_cannot_be_printed() {
    let unsigned = topic_bridge(&["send", "--print-curl"]);
    assert_eq!((unsigned.code, &*unsigned.stderr), (Some(0), ""));
    let fixed = ["send", "--print-curl", "--token", TOKEN, "--request-time", "1669872112"];
    let fixed = topic_bridge(&fixed);
    assert_eq!((fixed.code, &*fixed.stderr), (Some(0), ""));
    assert!(fixed.stdout.contains("RequestTime=1669872112"), "{fixed:?}");
    let stdin = topic_bridge(&["send", "--print-curl", "--body-file", "-"]);
    assert_eq!((stdin.code, &*stdin.stdout), (Some(1), ""));
    assert!(stdin.stderr.contains("name a file"), "{stdin:?}");
    for other in ["--json", "--answers", "--rate=1", "--duration=1s", "--timeout=1s"] {
        assert_eq!(topic_bridge(&["send", "--print-curl", other]).code, Some(2), "{other}");
    }
}
