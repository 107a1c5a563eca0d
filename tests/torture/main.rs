//! The torture run: callbacks as the platform sends them, while broker, network, disk, clock and bridge fail in turns,
//! and a judge outside of the bridge who compares what was answered with what the broker has at the end.
//!
//! ```text
//! cargo test --test torture -- --minutes 20                   # the three brokers, one after the other
//! cargo test --test torture -- --minutes 20 --broker kafka --seed 7
//! ```
//!
//! One seed draws one sequence of faults; the times between them are real, so a run is repeated in kind, not to the
//! millisecond. Without `--minutes` nothing runs. It ends with code 1 where a promise was broken, and keeps the logs
//! and the outbox.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a test may unwrap and print, also outside of its own function; nothing depends on this crate"
)]

#[path = "../it/bridge.rs"]
#[allow(dead_code, reason = "the other tests do more with it")]
mod bridge;
#[path = "../it/broker.rs"]
#[allow(dead_code, reason = "the other tests do more with it")]
mod broker;
#[path = "../it/http.rs"]
#[allow(dead_code, reason = "the other tests do more with it")]
mod http;
#[path = "../it/preload.rs"]
#[allow(dead_code, reason = "the other tests do more with it")]
mod preload;
#[path = "../it/proxy.rs"]
#[allow(dead_code, reason = "the other tests do more with it")]
mod proxy;
#[path = "../servers/mod.rs"]
#[allow(dead_code, reason = "the other tests do more with them")]
mod servers;
#[path = "../it/small_disk.rs"]
mod small_disk;

mod callback;
mod faults;
mod judge;
mod ledger;
mod load;
mod options;
mod plan;
mod run;
mod stage;
mod verdict;

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(options) = options::read() else {
        println!(
            "torture: NOT RUN, as it was not asked for: cargo test --test torture -- --minutes 20"
        );
        return ExitCode::SUCCESS;
    };
    let mut code = ExitCode::SUCCESS;
    for kind in options.brokers() {
        if !run::run(kind, &options) {
            println!("torture: to repeat it: {}", options.again(kind));
            code = ExitCode::FAILURE;
        }
    }
    code
}
