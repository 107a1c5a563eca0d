//! One run against one broker: faults until the time is over, then quiet, then the judgement.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::broker::{self, Kind};
use crate::callback::prefix;
use crate::faults::Breaker;
use crate::judge::Judge;
use crate::ledger::{Fate, Ledger};
use crate::load::Load;
use crate::options::Options;
use crate::plan::Plan;
use crate::stage::Stage;

/// Whether all promises were kept.
pub(crate) fn run(kind: Kind, options: &Options) -> bool {
    let Some(broker) = broker::alone(kind) else { return true };
    let (name, seed, length) = (kind.name(), options.seed, options.length());
    println!("torture: {name}, seed {seed}, {:.0} s", length.as_secs_f64());
    let has_small_disk = crate::stage::can_mount();
    let mut plan = Plan::new(kind, seed, options.only.as_deref(), has_small_disk);
    if !has_small_disk {
        println!("torture: WITHOUT a full disk, because only root can mount a small one");
    }
    let mut stage = Stage::set_up(broker, seed, plan.answer());
    let is_up = stage.drains();
    let prefix = prefix(seed, u64::from(std::process::id()));
    let ledger = Arc::new(Ledger::new());
    let mut judge = Judge::new(ledger.clone(), &prefix, seed);
    let (address, step) = (stage.bridge().ingress, stage.step.clone());
    judge.check(is_up, "the bridge does not become ready");
    let mut load = Load::start(&prefix, seed, options.rate, ledger, address, step);

    let played = catch_unwind(AssertUnwindSafe(|| {
        play(&mut stage, &mut load, &mut judge, &mut plan, length);
    }));
    if played.is_err() {
        judge.verdict.broken("the run could not go on, see above");
    }
    let holds = judge.verdict.holds();
    println!(
        "torture: {name}, seed {seed}: {}",
        if holds { "all promises kept" } else { "FAILED" }
    );
    if holds {
        stage.clean_up();
    } else {
        stage.keep(seed);
    }
    holds
}

fn play(stage: &mut Stage, load: &mut Load, judge: &mut Judge, plan: &mut Plan, length: Duration) {
    let ledger = judge.ledger.clone();
    let (began, mut spans, mut count) = (Instant::now(), Vec::new(), 0);
    let mut is_queue_settled = false;
    while began.elapsed() < length {
        let fault = plan.next();
        println!("torture: {:6.1} s  {fault}", began.elapsed().as_secs_f64());
        let from = ledger.now();
        let mut breaker = Breaker {
            stage: &mut *stage,
            load: &*load,
            judge: &mut *judge,
            plan: &mut *plan,
            is_queue_settled,
        };
        breaker.run(&fault);
        is_queue_settled = breaker.is_queue_settled;
        if fault.what.may_break_order() {
            spans.push((from, ledger.now()));
        }
        count += 1;
        thread::sleep(fault.calm);
        judge.check(!stage.has_died(), "the bridge has ended by itself");
        if !judge.verdict.holds() {
            break; // what follows would only blur it
        }
    }
    load.stop();
    judge.check(stage.drains(), "the backlog does not drain after the faults");
    judge.check(load.one() == Fate::Ok, "a fresh callback is not answered OK");
    judge.check(stage.drains(), "a fresh callback is not delivered");
    judge.read(&stage.broker.target);
    for gauge in ["topic_bridge_dead_letters", "topic_bridge_quarantined"] {
        let value = stage.bridge().metric(gauge);
        judge.check(value == 0.0, &format!("{gauge} is {value}"));
    }
    let seconds = began.elapsed().as_secs_f64();
    let counts = judge.judge(&spans);
    println!("torture: {}: {count} faults in {seconds:.0} s: {counts}", stage.kind().name());
}
