//! What became of the callbacks: each answer read and counted by what it says, each failure by its
//! kind, all of it summed up as a table or as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use hyper::StatusCode;
use serde::{Deserialize, Serialize, Serializer};

/// How much of an answer that cannot be read is shown.
const EXCERPT_CHARS: usize = 80;
/// A receiver that puts something new into each answer is not to fill the memory.
const MAX_DISTINCT_ANSWERS: usize = 100;
/// An hour, beyond any timeout that makes sense; longer is counted as that.
const MAX_MICROS: u64 = 3_600_000_000;

pub(super) type Outcome = Result<(StatusCode, Bytes), Failure>;

/// Why a callback has no answer, with a text for the operator.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    pub(super) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FailureKind {
    /// It never got onto a connection: the receiver cannot have seen it.
    Refused,
    /// The connection ended after it was sent: the receiver may have taken it.
    Closed,
    /// Sent, and not answered in time: the receiver may have taken it.
    Timeout,
    /// Answered with something that is not HTTP, or far too long.
    Garbled,
    /// The operator did not wait for the answer.
    Interrupted,
}

impl FailureKind {
    const ALL: [Self; 5] =
        [Self::Refused, Self::Closed, Self::Timeout, Self::Garbled, Self::Interrupted];

    pub(super) fn because(self, text: impl Into<String>) -> Failure {
        Failure { kind: self, text: text.into() }
    }
}

/// An answer as the receiver meant it; one that cannot be read has an excerpt for its text.
#[derive(Debug, PartialEq, Serialize)]
struct Answer {
    status: u16,
    action_status: Option<String>,
    error_code: Option<i64>,
    error_info: String,
}

impl Answer {
    /// The platform wants all three fields in every answer.
    fn parse(status: StatusCode, body: &[u8]) -> Self {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Raw {
            action_status: String,
            error_code: i64,
            error_info: String,
        }
        let (action_status, error_code, error_info) = match serde_json::from_slice::<Raw>(body) {
            Ok(raw) => (Some(raw.action_status), Some(raw.error_code), raw.error_info),
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                let excerpt: String = text.chars().take(EXCERPT_CHARS).collect();
                (None, None, format!("not an answer to a callback: {excerpt:?}"))
            }
        };
        Self { status: status.as_u16(), action_status, error_code, error_info }
    }

    fn is_ok(&self) -> bool {
        self.status == 200
            && self.action_status.as_deref() == Some("OK")
            && self.error_code == Some(0)
    }
}

/// What became of one callback, as a line of JSON with its line break.
pub(super) fn line(outcome: &Outcome, topic_id: Option<&str>, latency: Duration) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        topic_id: Option<&'a str>,
        #[serde(flatten)]
        answer: Option<Answer>,
        #[serde(skip_serializing_if = "Option::is_none")]
        failure: Option<FailureKind>,
        micros: u64,
    }
    let answer = outcome.as_ref().ok().map(|(status, body)| Answer::parse(*status, body));
    let failure = outcome.as_ref().err().map(|failure| failure.kind);
    json(&Line { topic_id, answer, failure, micros: micros(latency) }) + "\n"
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("text and numbers are always JSON")
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The count under way.
#[derive(Debug)]
pub(super) struct Tally {
    summary: Summary,
    /// The last answer's status and bytes, and its place in the summary: the next one is nearly
    /// always the same, and need not be read.
    last: Option<(StatusCode, Bytes, usize)>,
    latency: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        let latency =
            Histogram::new_with_bounds(1, MAX_MICROS, 3).expect("constants within limits");
        let failures = FailureKind::ALL.map(|kind| (kind, 0)).into();
        Self { summary: Summary { failures, ..Summary::default() }, last: None, latency }
    }
}

impl Tally {
    pub(super) fn count(&mut self, outcome: &Outcome, latency: Duration, late: bool) {
        self.summary.late += u64::from(late);
        match outcome {
            Ok((status, body)) => {
                self.latency.saturating_record(micros(latency));
                let place = self.place(*status, body);
                match self.summary.answers.get_mut(place) {
                    Some(counted) => counted.count += 1,
                    None => self.summary.other_answers += 1,
                }
            }
            Err(Failure { kind, text }) => {
                let count = self.summary.failures.entry(*kind).or_default();
                if *count == 0 {
                    self.summary.reasons.push(Reason { kind: *kind, first: text.clone() });
                }
                *count += 1;
            }
        }
    }

    /// Where an answer is counted; past the limit of distinct ones there is no such place.
    fn place(&mut self, status: StatusCode, body: &Bytes) -> usize {
        if let Some((last_status, last_body, place)) = &self.last
            && (*last_status, last_body) == (status, body)
        {
            return *place;
        }
        let (answer, answers) = (Answer::parse(status, body), &mut self.summary.answers);
        let known = answers.iter().position(|known| known.answer == answer);
        let place = known.unwrap_or(answers.len());
        if known.is_none() && place < MAX_DISTINCT_ANSWERS {
            answers.push(Counted { answer, count: 0 });
        }
        self.last = Some((status, body.clone(), place));
        place
    }

    /// `begun` callbacks were taken up in all, `unsent` were due and never taken up.
    pub(super) fn summary(
        self,
        requested_rate: Option<f64>,
        elapsed: Duration,
        begun: u64,
        unsent: u64,
    ) -> Summary {
        let Self { mut summary, latency, .. } = self;
        let answered = latency.len();
        let interrupted = begun - answered - summary.failed();
        summary.failures.insert(FailureKind::Interrupted, interrupted);
        let ok = summary.answers.iter().filter(|counted| counted.answer.is_ok());
        summary.ok = ok.map(|counted| counted.count).sum();
        summary.answers.sort_by_key(|counted| std::cmp::Reverse(counted.count));
        let elapsed_seconds = elapsed.as_secs_f64();
        Summary {
            sent: begun - summary.failures[&FailureKind::Refused],
            answered,
            unsent,
            elapsed_seconds,
            requested_rate,
            rate: answered as f64 / elapsed_seconds,
            latency_ms: (answered > 0).then(|| Latency::of(&latency)),
            ..summary
        }
    }
}

/// The end of a run, with these names in its JSON.
#[derive(Debug, Default, Serialize)]
pub(super) struct Summary {
    /// Callbacks that got onto a connection, answered or not.
    sent: u64,
    answered: u64,
    /// Answered 200, OK, 0.
    ok: u64,
    answers: Vec<Counted>,
    /// Past the limit of distinct ones.
    other_answers: u64,
    failures: BTreeMap<FailureKind, u64>,
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

/// The first failure of each kind, in words.
#[derive(Debug, Serialize)]
struct Reason {
    kind: FailureKind,
    first: String,
}

/// Milliseconds by the quantile's name, in this order.
#[derive(Debug)]
struct Latency([(&'static str, f64); 6]);

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |name, share| (name, histogram.value_at_quantile(share) as f64 / 1000.0);
        let (min, max) = (ms("min", 0.0), ms("max", 1.0));
        Self([min, ms("p50", 0.5), ms("p90", 0.9), ms("p99", 0.99), ms("p99.9", 0.999), max])
    }
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0)
    }
}

impl Summary {
    pub(super) fn all_ok(&self) -> bool {
        self.ok > 0 && self.ok == self.sent && self.failures[&FailureKind::Refused] == 0
    }

    pub(super) fn json(&self) -> String {
        json(self)
    }

    fn failed(&self) -> u64 {
        self.failures.values().sum()
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
        if self.failed() > 0 {
            writeln!(out, "failed     {}", self.failed())?;
        }
        for (kind, count) in self.failures.iter().filter(|(_, count)| **count > 0) {
            let reason = self.reasons.iter().find(|reason| reason.kind == *kind);
            let first = reason.map_or("", |reason| reason.first.as_str());
            let kind = format!("{kind:?}").to_lowercase();
            writeln!(out, "  {count:>10}  {kind} {first}")?;
        }
        if self.requested_rate.is_some() {
            let (late, unsent) = (self.late, self.unsent);
            writeln!(out, "late       {late} by over 1 ms, and {unsent} never sent")?;
        }
        if let Some(Latency(all)) = &self.latency_ms {
            writeln!(out, "latency    min     p50     p90     p99   p99.9     max  (ms)")?;
            let all = all.map(|(_, ms)| format!("{ms:>7.3}"));
            writeln!(out, "       {}", all.join(" "))?;
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

    fn check(body: &str, status: u16, ok: bool, error_info: &str) {
        let answer = Answer::parse(StatusCode::from_u16(status).unwrap(), body.as_bytes());
        assert_eq!((answer.is_ok(), answer.error_info.as_str()), (ok, error_info), "{body}");
    }

    #[test]
    fn only_200_with_ok_and_0_is_ok() {
        check(OK, 200, true, "");
        check(OK, 503, false, "");
        check(r#"{"ErrorCode":0,"ErrorInfo":"hi","ActionStatus":"OK","More":1}"#, 200, true, "hi");
        check(r#"{"ActionStatus":"FAIL","ErrorInfo":"","ErrorCode":0}"#, 200, false, "");
        check(r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":1}"#, 200, false, "");
    }

    #[test]
    fn an_answer_without_all_three_fields_is_shown_as_it_came() {
        for body in [
            "",
            "<html>",
            r#"{"ActionStatus":"OK","ErrorCode":0}"#,
            r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":"0"}"#,
        ] {
            check(body, 200, false, &format!("not an answer to a callback: {body:?}"));
        }
        let shown = "x".repeat(EXCERPT_CHARS);
        let expected = format!("not an answer to a callback: {shown:?}");
        check(&"x".repeat(1000), 200, false, &expected);
    }

    #[test]
    fn a_line_says_what_became_of_its_topic() {
        assert_eq!(
            line(&answered(200, OK), Some("t1"), Duration::from_micros(1500)),
            "{\"topic_id\":\"t1\",\"status\":200,\"action_status\":\"OK\",\"error_code\":0,\
             \"error_info\":\"\",\"micros\":1500}\n"
        );
        assert_eq!(
            line(&Err(FailureKind::Timeout.because("no answer")), None, Duration::from_secs(2)),
            "{\"topic_id\":null,\"failure\":\"timeout\",\"micros\":2000000}\n"
        );
    }

    #[test]
    fn answers_are_counted_by_status_code_and_text() {
        let mut tally = Tally::default();
        let fail = r#"{"ActionStatus":"FAIL","ErrorInfo":"no such app","ErrorCode":40301}"#;
        for body in [OK, OK, fail, OK, fail] {
            let status = if body == OK { 200 } else { 403 };
            tally.count(&answered(status, body), Duration::from_millis(2), false);
        }
        tally.count(&Err(FailureKind::Refused.because("nobody there")), Duration::ZERO, true);
        let summary = tally.summary(Some(9.0), Duration::from_secs(2), 7, 3);
        assert!(!summary.all_ok());
        assert_eq!(
            summary.json(),
            "{\"sent\":6,\"answered\":5,\"ok\":3,\"answers\":[\
             {\"status\":200,\"action_status\":\"OK\",\"error_code\":0,\"error_info\":\"\",\
             \"count\":3},\
             {\"status\":403,\"action_status\":\"FAIL\",\"error_code\":40301,\
             \"error_info\":\"no such app\",\"count\":2}],\"other_answers\":0,\
             \"failures\":{\"refused\":1,\"closed\":0,\"timeout\":0,\"garbled\":0,\
             \"interrupted\":1},\"reasons\":[{\"kind\":\"refused\",\"first\":\"nobody there\"}],\
             \"late\":1,\"unsent\":3,\"elapsed_seconds\":2.0,\"requested_rate\":9.0,\"rate\":2.5,\
             \"latency_ms\":{\"min\":2.0,\"p50\":2.0,\"p90\":2.0,\"p99\":2.0,\"p99.9\":2.0,\
             \"max\":2.0}}"
        );
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
