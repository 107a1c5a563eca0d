//! `topic-bridge outbox retry | drop | replay`: counts first, then acts.

use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;

use super::agent::{Agent, AgentArgs};
use super::selection::Selection;
use crate::cli::{print, say};
use crate::outbox::{Act, Of, Order, Tally};
use crate::settings::ForOutbox;

/// As clap ends it where arguments are missing.
const USAGE: u8 = 2;

#[derive(Debug, clap::Args)]
pub struct RetryArgs {
    #[command(flatten)]
    agent: AgentArgs,
    #[command(flatten)]
    selection: Selection,
    /// Have this release's parser try quarantined bodies, in place of dead letters.
    #[arg(long)]
    quarantined: bool,
}

#[derive(Debug, clap::Args)]
pub struct DropArgs {
    #[command(flatten)]
    agent: AgentArgs,
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    of: WhatToDrop,
    /// Really delete them; without this they are only counted, and the exit code is 2.
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct WhatToDrop {
    /// Dead letters.
    #[arg(long)]
    dead: bool,
    /// Quarantined bodies.
    #[arg(long)]
    quarantined: bool,
}

#[derive(Debug, clap::Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    agent: AgentArgs,
    #[command(flatten)]
    selection: Selection,
}

pub(super) fn retry(args: &RetryArgs, settings: ForOutbox) -> anyhow::Result<ExitCode> {
    let of = if args.quarantined { Of::Quarantined } else { Of::Dead };
    run(Act::Retry, Some(of), &args.agent, &args.selection, true, settings)
}

pub(super) fn drop(args: &DropArgs, settings: ForOutbox) -> anyhow::Result<ExitCode> {
    let of = if args.of.quarantined { Of::Quarantined } else { Of::Dead };
    run(Act::Drop, Some(of), &args.agent, &args.selection, args.yes, settings)
}

pub(super) fn replay(args: &ReplayArgs, settings: ForOutbox) -> anyhow::Result<ExitCode> {
    run(Act::Replay, None, &args.agent, &args.selection, true, settings)
}

fn run(
    act: Act,
    of: Option<Of>,
    args: &AgentArgs,
    selection: &Selection,
    is_sure: bool,
    settings: ForOutbox,
) -> anyhow::Result<ExitCode> {
    let order = Order { of, filter: selection.filter()?, dry_run: true, outbox: None };
    super::on_runtime(async {
        let agent = Agent::find(args, settings)?;
        let ended = carry_out(&agent, act, order, args, is_sure).await;
        agent.close().await?;
        ended
    })
}

async fn carry_out(
    agent: &Agent,
    act: Act,
    mut order: Order,
    args: &AgentArgs,
    is_sure: bool,
) -> anyhow::Result<ExitCode> {
    if let Some(fault) = agent.fault(act, &order) {
        say(format_args!("topic-bridge: {}: {fault}", act.name()));
        return Ok(ExitCode::from(USAGE));
    }
    let counted = agent.perform(act, &order).await?;
    let what = |count: u64| match (order.of, count) {
        (None, 1) => "1 delivered event".to_owned(),
        (None, count) => format!("{count} delivered events"),
        (Some(Of::Dead), 1) => "1 dead letter".to_owned(),
        (Some(Of::Dead), count) => format!("{count} dead letters"),
        (Some(Of::Quarantined), 1) => "1 quarantined body".to_owned(),
        (Some(Of::Quarantined), count) => format!("{count} quarantined bodies"),
    };
    let matches = if counted.matched == 1 { "matches" } else { "match" };
    say(format_args!("{} {matches}", what(counted.matched)));
    if args.dry_run || counted.stopped.is_some() || counted.matched == 0 {
        let would = if args.dry_run { "would be " } else { "" };
        let text = format!("{} {would}{}\n", what(counted.matched), done(act));
        return tell(act.name(), &counted, args, &text);
    }
    if !is_sure {
        say(format_args!("nothing was changed: to {} them, say --yes", act.name()));
        return Ok(ExitCode::from(USAGE));
    }
    order.dry_run = false;
    let tally = agent.perform(act, &order).await?;
    let mut text = format!("{} {}\n", what(tally.done), done(act));
    for (count, rest) in [
        (tally.duplicates, "of events that are there already: done with"),
        (tally.kept, "still not understood: in quarantine as before"),
    ] {
        if count > 0 {
            text += &format!("{} {rest}\n", what(count));
        }
    }
    tell(act.name(), &tally, args, &text)
}

fn done(act: Act) -> &'static str {
    match act {
        Act::Retry => "queued again",
        Act::Drop => "dropped",
        Act::Replay => "queued once more",
    }
}

/// Prints what came of it.
pub(super) fn tell(
    act: &str,
    tally: &Tally,
    args: &AgentArgs,
    text: &str,
) -> anyhow::Result<ExitCode> {
    if args.json {
        let mut line = json!({ "act": act, "dry_run": args.dry_run });
        let tally = serde_json::to_value(tally).context("the counts")?;
        if let (Some(line), serde_json::Value::Object(tally)) = (line.as_object_mut(), tally) {
            line.extend(tally);
        }
        print(&format!("{line}\n"))?;
    } else {
        print(text)?;
    }
    Ok(match &tally.stopped {
        None => ExitCode::SUCCESS,
        Some(stopped) => {
            say(format_args!("topic-bridge: {act} ended early: {stopped}"));
            ExitCode::FAILURE
        }
    })
}
