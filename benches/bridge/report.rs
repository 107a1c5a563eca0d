//! The numbers of all runs as tables: each is the median (least–most), and what a bridge takes
//! stands beside its ratio to the floor's or to the client library's.

use clap::ValueEnum as _;
use serde::Serialize;

use super::parts::Part;

/// What the bridge is measured against, and the columns where that says something.
const BASES: [&str; 2] = ["floor", "client library"];
const RATIOS: [&str; 2] = ["rate", "CPU"];

pub(crate) type Values = Vec<(&'static str, f64)>;

/// What was measured of one subject in one case.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    case: String,
    subject: String,
    values: Values,
}

impl Row {
    pub(crate) fn new(
        case: impl Into<String>,
        subject: &str,
        values: &[(&'static str, f64)],
    ) -> Self {
        Self { case: case.into(), subject: subject.to_owned(), values: values.to_vec() }
    }
}

/// One part's table over its rows in each run.
pub(crate) fn table(part: Part, runs: &[&Vec<Row>]) -> String {
    let mut columns: Vec<&str> = Vec::new();
    for (name, _) in runs[0].iter().flat_map(|row| &row.values) {
        if !columns.contains(name) {
            columns.push(name);
        }
    }
    let base = BASES.into_iter().find(|base| runs[0].iter().any(|row| row.subject == *base));
    let ratios = columns.iter().filter(|name| base.is_some() && RATIOS.contains(name));
    let ratios: Vec<&str> = ratios.copied().collect();
    let mut head = vec![String::new(); 2];
    head.extend(columns.iter().map(|name| (*name).to_owned()));
    head.extend(ratios.iter().map(|name| format!("{name} / {}", base.unwrap_or_default())));
    let mut lines = vec![head.join(" | "), vec!["---"; head.len()].join(" | ")];
    for row in runs[0] {
        // A subject's values in this case, of each run that has one.
        let of = |subject: &str, column: &str| -> Vec<f64> {
            let rows = runs.iter().flat_map(|rows| rows.iter());
            let rows = rows.filter(|other| other.case == row.case && other.subject == subject);
            let values = rows.flat_map(|row| &row.values).filter(|(name, _)| *name == column);
            values.map(|(_, value)| *value).collect()
        };
        let mut cells = vec![row.case.clone(), row.subject.clone()];
        cells.extend(columns.iter().map(|column| show(of(&row.subject, column))));
        for column in &ratios {
            let bases = base.filter(|base| *base != row.subject).map(|base| of(base, column));
            let pairs = of(&row.subject, column).into_iter().zip(bases.unwrap_or_default());
            cells.push(show(pairs.map(|(value, base)| value / base).collect()));
        }
        lines.push(cells.join(" | "));
    }
    let title = part.to_possible_value().and_then(|value| value.get_help().cloned());
    let lines: Vec<String> = lines.iter().map(|line| format!("| {line} |")).collect();
    format!("**{}**\n\n{}\n", title.unwrap_or_default(), lines.join("\n"))
}

fn show(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values[..] {
        [] => "–".to_owned(),
        [only] => rounded(only),
        [least, .., most] => {
            let is_odd = values.len() % 2 == 1;
            let median =
                if is_odd { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
            format!("{} ({}–{})", rounded(median), rounded(least), rounded(most))
        }
    }
}

fn rounded(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        3
    };
    format!("{value:.digits$}")
}
