//! `docs/commands.md` has every command and every option, and none that does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::{Command, CommandFactory as _, Parser as _};
use topic_bridge::cli::Arguments;

fn page() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/commands.md");
    std::fs::read_to_string(page).unwrap()
}

/// The long options of each command, by its name with those of the commands above it.
fn commands() -> BTreeMap<String, BTreeSet<String>> {
    fn collect(command: &Command, name: &str, all: &mut BTreeMap<String, BTreeSet<String>>) {
        let options = command.get_arguments().filter(|option| !option.is_global_set());
        let options = options.filter_map(|option| Some(format!("--{}", option.get_long()?)));
        all.insert(name.to_owned(), options.collect());
        for below in command.get_subcommands() {
            collect(below, &format!("{name} {}", below.get_name()), all);
        }
    }
    let mut all = BTreeMap::new();
    collect(&Arguments::command(), "topic-bridge", &mut all);
    all
}

/// What is below each heading with a command in it.
fn sections() -> BTreeMap<String, String> {
    let page = page();
    let sections = page.split("\n#").skip(1).map(|section| {
        let (heading, text) = section.split_once('\n').unwrap();
        (heading.trim_start_matches('#').trim().to_owned(), text.to_owned())
    });
    sections.collect()
}

fn options(text: &str) -> BTreeSet<String> {
    let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '-');
    let is_option = |word: &&str| word.starts_with("--") && !word.trim_matches('-').is_empty();
    words.filter(is_option).map(str::to_owned).collect()
}

const OF_ALL: [&str; 4] = ["--config", "--set", "--help", "--version"];

#[test]
fn each_command_and_option_is_there_and_none_that_does_not_exist() {
    let (mut commands, sections) = (commands(), sections());
    let program = commands.remove("topic-bridge").unwrap();
    assert_eq!(program, BTreeSet::new(), "the page says so of all commands together");
    assert_eq!(sections.keys().collect::<Vec<_>>(), commands.keys().collect::<Vec<_>>());
    // Above the single commands, what several of them have in common may be said.
    let of_outbox = commands.iter().filter(|(name, _)| name.starts_with("topic-bridge outbox"));
    let of_outbox: BTreeSet<_> = of_outbox.flat_map(|(_, options)| options.clone()).collect();
    for (name, expected) in commands {
        let mut found = options(&sections[&name]);
        found.retain(|option| !OF_ALL.contains(&option.as_str()));
        match name.as_str() {
            "topic-bridge outbox" => assert!(found.is_subset(&of_outbox), "{found:?}"),
            _ => assert_eq!(found, expected, "{name}"),
        }
    }
    let page = page();
    let (head, _) = page.split_once("\n## ").unwrap();
    let known: BTreeSet<_> = OF_ALL.into_iter().chain(["--yes"]).map(str::to_owned).collect();
    assert_eq!(options(head), known);
}

/// The words of a command line, up to what is for the shell.
fn words(line: &str) -> Vec<String> {
    let words = shlex::split(line).unwrap();
    words.into_iter().take_while(|word| !["|", ">"].contains(&&**word)).collect()
}

#[test]
fn each_example_is_a_command_that_the_program_takes() {
    for (name, section) in sections() {
        let examples = section.lines().filter_map(|line| line.strip_prefix("    "));
        let examples: Vec<_> = examples.collect();
        assert!(!examples.is_empty(), "{name} has no example");
        for line in examples {
            assert!(line.starts_with(&name), "{line:?} is in the section of {name}");
            let parsed = Arguments::try_parse_from(words(line));
            let is_help = |error: &clap::Error| error.kind() == clap::error::ErrorKind::DisplayHelp;
            assert!(parsed.as_ref().err().is_none_or(is_help), "{line}: {:?}", parsed.err());
        }
    }
}

/// The examples in `--help` are as good as those of the page.
#[test]
fn each_example_in_the_help_is_a_command_that_the_program_takes() {
    let mut arguments = Arguments::command();
    arguments.build();
    let mut left = vec![arguments];
    let mut count = 0;
    while let Some(mut command) = left.pop() {
        left.extend(command.get_subcommands().cloned());
        let help = command.render_long_help().to_string().replace("\\\n", " ");
        let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_default();
        for line in examples.lines().map(str::trim) {
            if line.starts_with("topic-bridge ") {
                let parsed = Arguments::try_parse_from(words(line));
                assert!(parsed.is_ok(), "{line}: {:?}", parsed.err());
                count += 1;
            }
        }
    }
    assert!(count > 15, "only {count} examples were found");
}
