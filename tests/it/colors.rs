//! Colors are for terminals whose user wants them: https://no-color.org.

use std::net::TcpListener;
use std::process::Command;

use crate::bridge::{APPS, Bridge, PROGRAM, TOKEN, run};

/// What the program writes on a terminal.
fn on_terminal(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let line = std::iter::once(PROGRAM).chain(arguments.iter().copied());
    let line = shlex::try_join(line).unwrap();
    let mut command = Command::new("script");
    command.args(["--quiet", "--command", &line, "/dev/null"]);
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
        command.env_remove(name);
    }
    command.env("TERM", "xterm-256color").envs(variables.iter().copied());
    run(&mut command).stdout
}

/// Whether a sequence of "select graphic rendition" is in it.
fn is_colored(text: &str) -> bool {
    text.split("\u{1b}[").skip(1).any(|rest| {
        rest.trim_start_matches(|char: char| char.is_ascii_digit() || char == ';').starts_with('m')
    })
}

const MODES: [(&[(&str, &str)], bool); 5] = [
    (&[], true),
    (&[("NO_COLOR", "1")], false),
    (&[("NO_COLOR", "")], true), // as if it was not set
    (&[("TERM", "dumb")], false),
    (&[("NO_COLOR", "1"), ("TERM", "dumb")], false),
];

#[test]
fn help_and_errors_have_colors_only_where_they_are_wanted() {
    for (variables, expected) in MODES {
        for arguments in [&["--help"][..], &["outbox", "-h"], &["--nonsense"], &["send", "--count"]]
        {
            let text = on_terminal(arguments, variables);
            assert!(text.contains("--help"), "{text}");
            assert_eq!(is_colored(&text), expected, "{variables:?} {arguments:?}: {text}");
        }
    }
}

#[test]
fn the_log_has_colors_only_where_they_are_wanted() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("admin.listen={}", taken.local_addr().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let (apps, outbox) = (format!("apps={APPS}"), folder.path().join("outbox.db"));
    let outbox = format!("outbox.path={}", outbox.display());
    let settings = [&apps, &outbox, &listen, "ingress.listen=127.0.0.1:0"];
    for format in ["text", "json"] {
        let format = format!("log.format={format}");
        let arguments: Vec<_> =
            settings.into_iter().chain([&*format]).flat_map(|setting| ["--set", setting]).collect();
        for (variables, expected) in MODES {
            let text = on_terminal(&arguments, variables);
            assert!(text.contains("topic-bridge ends"), "{text}");
            let expected = expected && format.ends_with("text");
            assert_eq!(is_colored(&text), expected, "{variables:?} {format}: {text}");
        }
    }
}

#[test]
fn the_progress_of_a_load_has_no_colors_and_is_not_drawn_where_a_cursor_cannot_move() {
    let bridge = Bridge::start(&[]);
    let url = format!("http://{}/", bridge.ingress);
    let send = ["send", &url, "--token", TOKEN, "--count", "60", "--rate", "100"];
    for (variables, _) in MODES {
        let text = on_terminal(&send, variables);
        assert!(text.contains("60  200 OK 0"), "{text}");
        assert!(!is_colored(&text), "{variables:?}: {text}");
        let is_dumb = variables.contains(&("TERM", "dumb"));
        assert_eq!(text.contains('\u{1b}'), !is_dumb, "{variables:?}: {text}");
    }
}
