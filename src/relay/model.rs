//! Random histories of an outbox and its relay, beside a plain model of what must hold whatever happens:
//! callbacks and repeats, verdicts of every kind, a locked file, a full disk, kills, stops, clocks that are set.
//!
//! `BRIDGE_MODEL_CASES=100000 cargo test --lib model` tries more than the ordinary run does. What fails is
//! made smaller, and kept in `proptest-regressions`.

mod world;

use proptest::collection::vec;
use proptest::prelude::*;

use world::World;

const WINDOW: u64 = 600_000;

#[derive(Debug, Clone)]
enum Op {
    /// Callbacks about topics of a small set, in one batch.
    Append(Vec<u8>),
    Quarantine,
    /// A round with these verdicts, over and over.
    Round(Vec<u8>),
    /// A round whose settlement has to wait for a lock.
    RoundUnderLock(Vec<u8>),
    /// A sink that leaves a verdict out.
    ShortRound,
    AppendUnderLock(u8),
    FullDisk(bool),
    Tick,
    Flush,
    Pass(u64),
    SetWall(i64),
    Kill(i64),
    Restart(i64),
}

fn op() -> impl Strategy<Value = Op> {
    let shift = || {
        prop_oneof![
            Just(0),
            Just(1000),
            Just(-1000),
            -4_000_000_i64..4_000_000,
            Just(31_536_000_000)
        ]
    };
    let verdicts = || vec(0_u8..8, 1..6);
    prop_oneof![
        8 => vec(0_u8..12, 1..5).prop_map(Op::Append),
        1 => Just(Op::Quarantine),
        8 => verdicts().prop_map(Op::Round),
        1 => verdicts().prop_map(Op::RoundUnderLock),
        1 => Just(Op::ShortRound),
        1 => (0_u8..12).prop_map(Op::AppendUnderLock),
        1 => any::<bool>().prop_map(Op::FullDisk),
        2 => Just(Op::Tick),
        2 => Just(Op::Flush),
        3 => prop_oneof![0..2000_u64, Just(WINDOW), 0..WINDOW].prop_map(Op::Pass),
        1 => shift().prop_map(Op::SetWall),
        1 => shift().prop_map(Op::Kill),
        1 => shift().prop_map(Op::Restart),
    ]
}

fn cases() -> u32 {
    std::env::var("BRIDGE_MODEL_CASES").map_or(2000, |text| text.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nothing_is_lost_invented_or_told_twice(history in vec(op(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            for op in &history {
                world = world.step(op).await;
            }
            world.heal().await;
        });
    }
}
