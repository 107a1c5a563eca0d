//! The command line. `cargo test` passes its own arguments to every test target, so without `--minutes` nothing is
//! read, and nothing runs.

use std::time::Duration;

use clap::Parser as _;

use crate::broker::Kind;

/// Break everything around the bridge for as long as asked, and judge it by what the broker has at the end
#[derive(Debug, clap::Parser)]
#[command(bin_name = "cargo test --test torture --")]
pub(crate) struct Options {
    /// For all brokers together
    #[arg(long, value_parser = positive)]
    minutes: f64,

    /// Only this one
    #[arg(long, value_parser = ["kafka", "rabbitmq", "nats"])]
    broker: Option<String>,

    /// Draws the faults; another one each time unless it is given
    #[arg(long, default_value_t = fastrand::u64(1..1_000_000))]
    pub(crate) seed: u64,

    /// Callbacks a second
    #[arg(long, default_value_t = 200.0, value_parser = positive)]
    pub(crate) rate: f64,

    /// Only faults with this word in their name
    #[arg(long)]
    pub(crate) only: Option<String>,

    /// Of libtest, for which cargo test may ask all its targets
    #[arg(long, hide = true, num_args = 0)]
    include_ignored: bool,
    #[arg(long, hide = true, num_args = 0)]
    nocapture: bool,
}

/// Nothing where no run was asked for.
pub(crate) fn read() -> Option<Options> {
    let is_asked_for = |word: String| word == "--minutes" || word.starts_with("--minutes=");
    let is_help = |word: String| word == "--help";
    let asks = std::env::args().any(is_asked_for) || std::env::args().any(is_help);
    asks.then(Options::parse)
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 10_000.0 => Ok(number),
        _ => Err("must be a number above 0 and at most 10000".to_owned()),
    }
}

impl Options {
    pub(crate) fn brokers(&self) -> Vec<Kind> {
        let all = [Kind::Kafka, Kind::Rabbitmq, Kind::Nats];
        let is_wanted = |kind: &Kind| self.broker.as_deref().is_none_or(|name| name == kind.name());
        all.into_iter().filter(is_wanted).collect()
    }

    /// For each broker.
    pub(crate) fn length(&self) -> Duration {
        Duration::from_secs_f64(self.minutes * 60.0 / self.brokers().len() as f64)
    }

    /// The command that draws the same faults for this broker.
    pub(crate) fn again(&self, kind: Kind) -> String {
        let minutes = self.length().as_secs_f64() / 60.0;
        let (name, seed, rate) = (kind.name(), self.seed, self.rate);
        let only = self.only.iter().map(|only| format!(" --only '{only}'")).collect::<String>();
        format!(
            "cargo test --test torture -- --minutes {minutes:.2} --broker {name} --seed {seed} --rate {rate}{only}"
        )
    }
}
