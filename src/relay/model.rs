//! Random histories of an outbox and its relay, beside a plain model of what must hold whatever happens:
//! callbacks and repeats, verdicts of every kind, a locked file, a full disk, kills, stops, an operator's
//! acts, clocks that are set. The relay is driven round by round and the writer step by step, by clocks that
//! the test holds, so that the same history has the same trace. (After the model tests of Vector's disk
//! buffer.)
//!
//! `BRIDGE_MODEL_CASES=100000 cargo test --lib model` tries more than the ordinary run does, and
//! `BRIDGE_MODEL_SEED=7` others: the ordinary run is the same each time. What fails is made smaller, and kept
//! in `proptest-regressions`.

mod checks;
mod oracle;
mod stage;
mod world;

use std::cell::{Cell, OnceCell};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};

use crate::outbox::Act;
use crate::verdict::Kind;
use world::World;

/// How outbox and relay are set up.
#[derive(Debug, Clone)]
struct Settings {
    batch: usize,
    history: Duration,
    history_events: u64,
    history_gives_way: bool,
    remember_ids: Duration,
    remember_ids_max: u64,
    max_bytes: u64,
    quarantine_events: u64,
}

#[derive(Debug, Clone)]
enum Op {
    /// Callbacks in one batch.
    Submit(Vec<Callback>),
    Round(Script),
    Flush,
    Tick,
    /// Another program holds the outbox locked.
    Lock,
    Unlock,
    /// Another program reads in a transaction that it does not end.
    Read,
    EndReading,
    /// The file can grow by so many pages.
    FillDisk(u64),
    EmptyDisk,
    /// The disk alters an event that is not delivered yet: one of them, counted round.
    Damage(usize),
    /// An operator retries the dead letters, or replays what is delivered.
    Act(Act),
    Pass(u64),
    SetWall(i64),
    /// What is in the page cache is there at the next start, and the clocks are off by so much.
    Kill(i64),
    Stop(i64),
}

#[derive(Debug, Clone)]
struct Callback {
    /// None: it is malformed.
    topic: Option<u8>,
    size: usize,
}

/// What the sink says in a round.
#[derive(Debug, Clone)]
struct Script {
    /// To one event after another, over and over.
    answers: Vec<Answer>,
    /// Verdicts that are left out at the end of each batch.
    missing: usize,
    is_ready: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    Delivered,
    Later(Kind),
    Refused,
    /// In company; alone it is refused for good.
    Alone,
    Away,
}

fn settings() -> impl Strategy<Value = Settings> {
    (
        1..7_usize,
        select(vec![1, 5_000, 60_000, 1 << 50]),
        select(vec![0, 1, 3, 10, 1000]),
        prop::bool::weighted(0.25),
        select(vec![0, 30_000, 200_000, 1 << 50]),
        select(vec![1, 2, 4, 1000]),
        select(vec![120_000, 200_000, 1 << 30]),
        0..4_u64,
    )
        .prop_map(
            |(batch, history, events, gives_way, remember, max_ids, max_bytes, quarantine)| {
                Settings {
                    batch,
                    history: Duration::from_millis(history),
                    history_events: events,
                    history_gives_way: gives_way,
                    remember_ids: Duration::from_millis(remember),
                    remember_ids_max: max_ids,
                    max_bytes,
                    quarantine_events: quarantine,
                }
            },
        )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => vec(callback(), 1..6).prop_map(Op::Submit),
        12 => script().prop_map(Op::Round),
        2 => Just(Op::Flush),
        3 => Just(Op::Tick),
        2 => Just(Op::Lock),
        2 => Just(Op::Unlock),
        1 => Just(Op::Read),
        1 => Just(Op::EndReading),
        1 => (0..12_u64).prop_map(Op::FillDisk),
        1 => Just(Op::EmptyDisk),
        4 => select(vec![1, 60, 900, 5_000, 9_999, 10_000, 40_000, 100_000, 1 << 30]).prop_map(Op::Pass),
        1 => (0..20_usize).prop_map(Op::Damage),
        2 => prop_oneof![2 => Just(Act::Retry), 1 => Just(Act::Replay)].prop_map(Op::Act),
        1 => shift().prop_map(Op::SetWall),
        1 => shift().prop_map(Op::Kill),
        1 => shift().prop_map(Op::Stop),
    ]
}

fn callback() -> impl Strategy<Value = Callback> {
    let topic = prop_oneof![9 => (0..8_u8).prop_map(Some), 1 => Just(None)];
    let size = prop_oneof![5 => Just(0), 2 => Just(3_000), 1 => Just(20_000)];
    (topic, size).prop_map(|(topic, size)| Callback { topic, size })
}

fn script() -> impl Strategy<Value = Script> {
    let alike = answer().prop_map(|answer| vec![answer]);
    let answers =
        prop_oneof![3 => Just(vec![Answer::Delivered]), 1 => alike, 4 => vec(answer(), 2..7)];
    let missing = prop_oneof![15 => Just(0), 1 => 1..3_usize];
    (answers, missing, prop::bool::weighted(0.9)).prop_map(|(answers, missing, is_ready)| Script {
        answers,
        missing,
        is_ready,
    })
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        5 => Just(Answer::Delivered),
        3 => select(vec![Kind::Unroutable, Kind::Rejected]).prop_map(Answer::Later),
        1 => Just(Answer::Refused),
        1 => Just(Answer::Alone),
        1 => Just(Answer::Away),
    ]
}

fn shift() -> impl Strategy<Value = i64> {
    select(vec![0, 5_000, -5_000, 9_999, -10_000, 1_000_000, -1_000_000, 1 << 34, -(1 << 34)])
}

fn history() -> impl Strategy<Value = (Settings, Vec<Op>)> {
    (settings(), vec(op(), 1..40))
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// What happened, step by step.
fn trace(settings: &Settings, ops: &[Op]) -> Result<Vec<String>, TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Else tokio would have the test give way now and then, which looks as if the relay waited.
    runtime.block_on(tokio::task::unconstrained(async {
        let mut world = World::new(settings.clone()).await?;
        for op in ops {
            world = world.step(op).await?;
        }
        world.heal().await
    }))
}

/// A history that fails, an operation a line.
fn tell(result: Result<(), TestError<(Settings, Vec<Op>)>>, when: &str) {
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, (settings, ops))) => {
            let ops: Vec<_> = ops.iter().map(|op| format!("\n  {op:?}")).collect();
            panic!("{when}: {reason}\n{settings:?}{}", ops.concat());
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn whatever_happens_nothing_is_lost_invented_or_told_twice() {
    let config = Config {
        cases: u32::try_from(variable("BRIDGE_MODEL_CASES").unwrap_or(1500)).unwrap(),
        rng_seed: RngSeed::Fixed(variable("BRIDGE_MODEL_SEED").unwrap_or(1)),
        source_file: Some(file!()),
        max_shrink_iters: 3000,
        ..Config::default()
    };
    let (tried, first) = (Cell::new(0_u64), OnceCell::new());
    let result = TestRunner::new(config).run(&history(), |(settings, ops)| {
        let result = trace(&settings, &ops).map(drop);
        if let Err(failure) = &result {
            let _ = first.set(failure.to_string());
        }
        tried.set(tried.get() + u64::from(first.get().is_none())); // what is made smaller does not count
        result
    });
    tell(result, &format!("after {} histories ({first:?})", tried.get()));
}

/// Found once: making room gives the reserve up, and the lock that was met then ended the full disk.
#[test]
fn a_lock_that_is_met_while_room_is_made_costs_no_reserve() {
    let settings = Settings {
        batch: 1,
        history: Duration::from_millis(1),
        history_events: 0,
        history_gives_way: false,
        remember_ids: Duration::ZERO,
        remember_ids_max: 1,
        max_bytes: 1 << 30,
        quarantine_events: 0,
    };
    let submit = |topic, size| Op::Submit(vec![Callback { topic: Some(topic), size }]);
    let round = Op::Round(Script { answers: vec![Answer::Delivered], missing: 0, is_ready: true });
    let ops = [Op::FillDisk(0), submit(1, 0), submit(0, 20_000), round, Op::Lock, Op::Tick];
    trace(&settings, &ops).unwrap();
}

#[test]
fn the_same_history_has_the_same_trace() {
    let rng_seed = RngSeed::Fixed(1);
    let config = Config { failure_persistence: None, cases: 20, rng_seed, ..Config::default() };
    let result = TestRunner::new(config).run(&history(), |(settings, ops)| {
        prop_assert_eq!(trace(&settings, &ops)?, trace(&settings, &ops)?);
        Ok(())
    });
    tell(result, "twice the same");
}
