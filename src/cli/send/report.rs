//! Counts what became of the callbacks, and sums it up as a table or as JSON.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use hyper::StatusCode;
use serde::Serialize;

use super::answer::{Answer, Outcome, Settled, json, micros};
use super::connection::Failure;

/// A receiver that puts something new into each answer is not to fill the memory.
const MAX_DISTINCT_ANSWERS: usize = 100;
/// An hour, beyond any timeout that makes sense; longer is counted as that.
const MAX_MICROS: u64 = 3_600_000_000;

/// The count under way.
#[derive(Debug)]
pub(super) struct Tally {
    answers: Vec<(Answer, u64)>,
    /// Answers past the limit of distinct ones.
    other: (Option<Answer>, u64),
    /// The last answer's status and bytes, and its place in `answers`: the next one is nearly always
    /// the same, and need not be read.
    last: Option<(StatusCode, Bytes, usize)>,
    failures: Failures,
    reasons: Vec<Reason>,
    late: u64,
    latency: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        let latency =
            Histogram::new_with_bounds(1, MAX_MICROS, 3).expect("constants within limits");
        Self {
            answers: Vec::new(),
            other: (None, 0),
            last: None,
            failures: Failures::default(),
            reasons: Vec::new(),
            late: 0,
            latency,
        }
    }
}

impl Tally {
    pub(super) fn count(
        &mut self,
        outcome: &Outcome,
        latency: Duration,
        late: bool,
    ) -> Settled<'_> {
        self.late += u64::from(late);
        match outcome {
            Ok((status, body)) => {
                self.latency.saturating_record(micros(latency));
                Settled::Answered(self.answered(*status, body))
            }
            Err(failure) => Settled::Failed(self.failed(failure)),
        }
    }

    fn answered(&mut self, status: StatusCode, body: &Bytes) -> &Answer {
        let known = self.last.as_ref().filter(|last| (last.0, &last.1) == (status, body));
        let place = match known {
            Some((_, _, place)) => *place,
            None => {
                let answer = Answer::parse(status, body);
                let place = match self.answers.iter().position(|(known, _)| *known == answer) {
                    Some(place) => place,
                    None if self.answers.len() < MAX_DISTINCT_ANSWERS => {
                        self.answers.push((answer, 0));
                        self.answers.len() - 1
                    }
                    None => {
                        self.other.1 += 1;
                        return self.other.0.insert(answer);
                    }
                };
                self.last = Some((status, body.clone(), place));
                place
            }
        };
        let (answer, count) = &mut self.answers[place];
        *count += 1;
        answer
    }

    fn failed(&mut self, failure: &Failure) -> &'static str {
        let (kind, text, count) = match failure {
            Failure::Refused(text) => ("refused", text, &mut self.failures.refused),
            Failure::Closed(text) => ("closed", text, &mut self.failures.closed),
            Failure::Timeout(text) => ("timeout", text, &mut self.failures.timeout),
            Failure::Garbled(text) => ("garbled", text, &mut self.failures.garbled),
        };
        *count += 1;
        if !self.reasons.iter().any(|reason| reason.kind == kind) {
            self.reasons.push(Reason { kind, first: text.clone() });
        }
        kind
    }

    /// `begun` callbacks were taken up in all, `unsent` were due and never taken up.
    pub(super) fn summary(
        mut self,
        requested_rate: Option<f64>,
        elapsed: Duration,
        begun: u64,
        unsent: u64,
    ) -> Summary {
        let ok = self.answers.iter().filter(|(answer, _)| answer.is_ok());
        let ok = ok.map(|(_, count)| count).sum();
        let answered = self.latency.len();
        self.failures.interrupted = begun - answered - self.failures.sum();
        self.answers.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let answers = self.answers.into_iter();
        Summary {
            sent: begun - self.failures.refused,
            answered,
            ok,
            answers: answers.map(|(answer, count)| Counted { answer, count }).collect(),
            other_answers: self.other.1,
            failures: self.failures,
            reasons: self.reasons,
            late: self.late,
            unsent,
            elapsed_seconds: elapsed.as_secs_f64(),
            requested_rate,
            rate: answered as f64 / elapsed.as_secs_f64(),
            latency_ms: (answered > 0).then(|| Latency::of(&self.latency)),
        }
    }
}

/// The end of a run, with these names in its JSON.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    /// Callbacks that got onto a connection, answered or not.
    sent: u64,
    answered: u64,
    /// Answered 200, OK, 0.
    ok: u64,
    answers: Vec<Counted>,
    other_answers: u64,
    failures: Failures,
    reasons: Vec<Reason>,
    /// Sent more than a millisecond after they were due.
    late: u64,
    unsent: u64,
    elapsed_seconds: f64,
    requested_rate: Option<f64>,
    /// Answers a second.
    rate: f64,
    /// Of whatever was answered.
    latency_ms: Option<Latency>,
}

#[derive(Debug, Serialize)]
struct Counted {
    #[serde(flatten)]
    answer: Answer,
    count: u64,
}

#[derive(Debug, Default, Serialize)]
struct Failures {
    refused: u64,
    closed: u64,
    timeout: u64,
    garbled: u64,
    interrupted: u64,
}

impl Failures {
    fn sum(&self) -> u64 {
        self.refused + self.closed + self.timeout + self.garbled + self.interrupted
    }
}

/// The first failure of each kind, in words.
#[derive(Debug, Serialize)]
struct Reason {
    kind: &'static str,
    first: String,
}

#[derive(Debug, Serialize)]
struct Latency {
    min: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p999: f64,
    max: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |micros: u64| micros as f64 / 1000.0;
        Self {
            min: ms(histogram.min()),
            p50: ms(histogram.value_at_quantile(0.5)),
            p90: ms(histogram.value_at_quantile(0.9)),
            p99: ms(histogram.value_at_quantile(0.99)),
            p999: ms(histogram.value_at_quantile(0.999)),
            max: ms(histogram.max()),
        }
    }
}

impl Summary {
    pub(super) fn all_ok(&self) -> bool {
        self.ok > 0 && self.ok == self.sent && self.failures.refused == 0
    }

    pub(super) fn json(&self) -> String {
        json(self)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "sent       {} in {:.3} s", self.sent, self.elapsed_seconds)?;
        write!(out, "answered   {}, {:.1} a second", self.answered, self.rate)?;
        match self.requested_rate {
            Some(requested) => writeln!(out, " of {requested} asked for")?,
            None => writeln!(out)?,
        }
        for Counted { answer, count } in &self.answers {
            let Answer { status, error_info, .. } = answer;
            let action = answer.action_status.as_deref().unwrap_or("-");
            let code = answer.error_code.map_or("-".to_owned(), |code| code.to_string());
            let answer = format!("{status} {action} {code} {error_info}");
            writeln!(out, "  {count:>10}  {}", answer.trim_end())?;
        }
        if self.other_answers > 0 {
            writeln!(out, "  {:>10}  others", self.other_answers)?;
        }
        let Failures { refused, closed, timeout, garbled, interrupted } = self.failures;
        let kinds = [
            ("refused", refused),
            ("closed", closed),
            ("timeout", timeout),
            ("garbled", garbled),
            ("interrupted", interrupted),
        ];
        if self.failures.sum() > 0 {
            writeln!(out, "failed     {}", self.failures.sum())?;
        }
        for (kind, count) in kinds.into_iter().filter(|(_, count)| *count > 0) {
            let reason = self.reasons.iter().find(|reason| reason.kind == kind);
            let first = reason.map_or("", |reason| reason.first.as_str());
            writeln!(out, "  {count:>10}  {kind} {first}")?;
        }
        if self.requested_rate.is_some() {
            let (late, unsent) = (self.late, self.unsent);
            writeln!(out, "late       {late} by over 1 ms, and {unsent} never sent")?;
        }
        if let Some(Latency { min, p50, p90, p99, p999, max }) = &self.latency_ms {
            writeln!(out, "latency    min     p50     p90     p99   p99.9     max  (ms)")?;
            write!(out, "       {min:>7.3} {p50:>7.3} {p90:>7.3}")?;
            writeln!(out, " {p99:>7.3} {p999:>7.3} {max:>7.3}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str = r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#;

    fn answered(status: u16, body: &str) -> Outcome {
        Ok((StatusCode::from_u16(status).unwrap(), Bytes::copy_from_slice(body.as_bytes())))
    }

    #[test]
    fn answers_are_counted_by_status_code_and_text() {
        let mut tally = Tally::default();
        let fail = r#"{"ActionStatus":"FAIL","ErrorInfo":"no such app","ErrorCode":40301}"#;
        for body in [OK, OK, fail, OK, fail] {
            let status = if body == OK { 200 } else { 403 };
            tally.count(&answered(status, body), Duration::from_millis(2), false);
        }
        let refused = Err(Failure::Refused("nobody there".to_owned()));
        tally.count(&refused, Duration::ZERO, true);
        let summary = tally.summary(Some(9.0), Duration::from_secs(2), 7, 3);
        assert!(!summary.all_ok());
        let json: serde_json::Value = serde_json::from_str(&summary.json()).unwrap();
        assert_eq!(json["sent"], 6);
        assert_eq!(json["answered"], 5);
        assert_eq!(json["ok"], 3);
        assert_eq!(json["answers"][0]["count"], 3);
        assert_eq!(json["answers"][1]["error_code"], 40301);
        assert_eq!(json["answers"][1]["error_info"], "no such app");
        assert_eq!(json["failures"]["refused"], 1);
        assert_eq!(json["failures"]["interrupted"], 1);
        assert_eq!(json["rate"], 2.5);
        assert_eq!(json["latency_ms"]["p50"], 2.0);
        let table = summary.to_string();
        assert!(table.contains("refused nobody there"), "{table}");
    }

    #[test]
    fn ever_new_answers_stay_within_the_memory() {
        let mut tally = Tally::default();
        let distinct = MAX_DISTINCT_ANSWERS as u64 + 5;
        for number in 0..distinct {
            let body = format!("answer {number}");
            tally.count(&answered(200, &body), Duration::from_millis(1), false);
        }
        let summary = tally.summary(None, Duration::from_secs(1), distinct, 0);
        assert_eq!(summary.answers.len(), MAX_DISTINCT_ANSWERS);
        assert_eq!(summary.other_answers, 5);
    }
}
