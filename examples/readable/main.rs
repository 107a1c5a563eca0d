//! How soon an event can be read: posts callbacks at a steady rate, reads the bridge's event stream or
//! a broker beside it, and measures for each topic the time from its callback's answer, and from its
//! sending, to its event. Both ends are in one process, so that one clock measures both.
//!
//! `readable CALLBACK_URL SOURCE SDK_APP_ID TOKEN PER_SECOND SECONDS`; SOURCE is the URL of the private
//! listener, or a broker's with the place, as in `kafka://host:port#topic` (`source.rs`).

mod source;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HOST;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use source::Source;
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

const CONNECTIONS: usize = 16;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the last events may take after the last answer.
const LAST_EVENTS: Duration = Duration::from_secs(10);
const MAX_CALLBACKS: f64 = 10_000_000.0;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [callbacks, source, app, token, rate, seconds] = arguments.as_slice() else {
        bail!("usage: readable CALLBACK_URL SOURCE SDK_APP_ID TOKEN PER_SECOND SECONDS");
    };
    let rate: f64 = rate.parse().context("PER_SECOND is not a number")?;
    let seconds: f64 = seconds.parse().context("SECONDS is not a number")?;
    let count = (rate * seconds).round();
    ensure!(rate > 0.0 && count >= 1.0, "nothing to send in {seconds} s at {rate}/s");
    ensure!(count <= MAX_CALLBACKS, "{count} callbacks, limit is {MAX_CALLBACKS}");

    let trial = Arc::new(Trial {
        stem: format!("@TGS#_@TGS#c{:012x}@TOPIC#_@TOPIC#c", fastrand::u64(..1 << 48)),
        times: Mutex::new(vec![Times::default(); count as usize]),
        read: Notify::new(),
        due: Semaphore::new(0),
        next: Mutex::new(0),
        base: callbacks.parse().context("CALLBACK_URL is not a URL")?,
        app: app.clone(),
        token: token.clone(),
    });
    let source = Source::open(source).await.context("cannot read the events")?;
    let reader = tokio::spawn(read(Arc::clone(&trial), source));

    let pacing = Arc::clone(&trial);
    let pacer = std::thread::spawn(move || pace(&pacing, count as u64, rate));
    let mut senders = JoinSet::new();
    for _ in 0..CONNECTIONS {
        senders.spawn(send(Arc::clone(&trial)));
    }
    while let Some(sender) = senders.join_next().await {
        sender??;
    }
    pacer.join().expect("the pacer only sleeps and counts");
    let all_read = async {
        while !trial.is_complete() {
            trial.read.notified().await;
        }
    };
    // What is still missing then is in the result.
    let _ = tokio::time::timeout(LAST_EVENTS, all_read).await;
    if reader.is_finished() {
        reader.await?.context("the events ended")?;
    }
    let (result, complete) = trial.result();
    writeln!(std::io::stdout(), "{result}")?;
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One run: what is sent, and when what happened to it.
struct Trial {
    /// Each topic's id is this and its number.
    stem: String,
    times: Mutex<Vec<Times>>,
    /// Told whenever events were read.
    read: Notify,
    /// A permit for each callback that is due.
    due: Semaphore,
    next: Mutex<usize>,
    base: Uri,
    app: String,
    token: String,
}

#[derive(Debug, Clone, Copy, Default)]
struct Times {
    sent: Option<Instant>,
    answered: Option<Instant>,
    read: Option<Instant>,
    reads: u32,
}

impl Trial {
    fn set(&self, number: usize, change: impl FnOnce(&mut Times)) {
        change(&mut self.times.lock().expect("nothing panics under this lock")[number]);
    }

    fn take_number(&self) -> Option<usize> {
        let total = self.times.lock().expect("nothing panics under this lock").len();
        let mut next = self.next.lock().expect("nothing panics under this lock");
        let number = *next;
        *next += 1;
        (number < total).then_some(number)
    }

    fn is_complete(&self) -> bool {
        let times = self.times.lock().expect("nothing panics under this lock");
        times.iter().all(|times| times.answered.is_none() || times.read.is_some())
    }

    fn request(&self, number: usize) -> anyhow::Result<Request<Full<Bytes>>> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().to_string();
        let sign = hex::encode(Sha256::digest(format!("{}{time}", self.token)));
        let body = json!({
            "CallbackCommand": "Group.CallbackAfterCreateTopic",
            "GroupId": "@TGS#2J4SZEAEL",
            "TopicId": format!("{}{number}", self.stem),
            "Operator_Account": "group_root",
            "Owner_Account": "leckie",
            "Type": "Community",
            "Name": "MyFirstTopic",
        });
        let uri = format!(
            "{}?SdkAppid={}&CallbackCommand=Group.CallbackAfterCreateTopic&contenttype=json\
             &ClientIP=127.0.0.1&OptPlatform=RESTAPI&Sign={sign}&RequestTime={time}",
            self.base.path(),
            self.app,
        );
        let request = Request::post(uri).header(HOST, authority(&self.base)?);
        Ok(request.body(Full::new(body.to_string().into()))?)
    }

    fn result(&self) -> (Value, bool) {
        let times = self.times.lock().expect("nothing panics under this lock");
        let answered = times.iter().filter(|times| times.answered.is_some()).count();
        let missing = times.iter().filter(|times| times.answered.is_some() && times.read.is_none());
        let missing = missing.count();
        let repeated = times.iter().filter(|times| times.reads > 1).count();
        let result = json!({
            "posted": times.len(),
            "answered_ok": answered,
            "missing": missing,
            "repeated": repeated,
            "answer_ms": percentiles(times.iter().map(|times| (times.sent, times.answered))),
            "answer_to_read_ms": percentiles(times.iter().map(|times| (times.answered, times.read))),
            "sent_to_read_ms": percentiles(times.iter().map(|times| (times.sent, times.read))),
        });
        (result, answered == times.len() && missing == 0)
    }
}

/// Where the second moment comes before the first, as an event can be read before its callback's
/// answer is, the time counts as 0.
fn percentiles(pairs: impl Iterator<Item = (Option<Instant>, Option<Instant>)>) -> Value {
    let mut histogram: Histogram<u64> =
        Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("constants within the limits");
    for (from, to) in pairs.filter_map(|(from, to)| from.zip(to)) {
        let micros = to.saturating_duration_since(from).as_micros();
        histogram.saturating_record(u64::try_from(micros).unwrap_or(u64::MAX));
    }
    if histogram.is_empty() {
        return Value::Null;
    }
    let ms = |micros: u64| micros as f64 / 1000.0;
    json!({
        "min": ms(histogram.min()),
        "p50": ms(histogram.value_at_quantile(0.5)),
        "p90": ms(histogram.value_at_quantile(0.9)),
        "p99": ms(histogram.value_at_quantile(0.99)),
        "p99.9": ms(histogram.value_at_quantile(0.999)),
        "max": ms(histogram.max()),
    })
}

/// A thread, because tokio's timer goes by milliseconds.
fn pace(trial: &Trial, count: u64, rate: f64) {
    let start = Instant::now();
    for number in 0..count {
        let due = start + Duration::from_secs_f64(number as f64 / rate);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        trial.due.add_permits(1);
    }
    // Each sender is to wake once more and find nothing left to send.
    trial.due.add_permits(CONNECTIONS);
}

async fn send(trial: Arc<Trial>) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        action_status: String,
        error_code: i64,
    }
    let mut sender = connect(&trial.base).await?;
    loop {
        trial.due.acquire().await?.forget();
        let Some(number) = trial.take_number() else {
            return Ok(());
        };
        let request = trial.request(number)?;
        sender.ready().await.context("the receiver closed a connection")?;
        let sent = Instant::now();
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        let (status, body) = tokio::time::timeout(ANSWER_TIMEOUT, exchange).await??;
        let answered = Instant::now();
        let answer: Answer = serde_json::from_slice(&body).context("the answer is not JSON")?;
        let ok = status == 200 && answer.action_status == "OK" && answer.error_code == 0;
        ensure!(ok, "answered {status} {}", String::from_utf8_lossy(&body));
        trial.set(number, |times| (times.sent, times.answered) = (Some(sent), Some(answered)));
    }
}

/// Reads events until the program ends; a source that ends before is an error.
async fn read(trial: Arc<Trial>, mut source: Source) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Event {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        topic_id: String,
    }
    loop {
        let (now, events) = source.next().await?;
        for event in events {
            let event: Event = serde_json::from_slice(&event).context("not an event")?;
            let number = event.data.topic_id.strip_prefix(&trial.stem);
            if let Some(number) = number.and_then(|number| number.parse().ok()) {
                trial.set(number, |times| {
                    times.read.get_or_insert(now);
                    times.reads += 1;
                });
            }
        }
        trial.read.notify_one();
    }
}

async fn connect(to: &Uri) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let address = authority(to)?;
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Its errors come out at the sender or in the body.
    tokio::spawn(connection);
    Ok(sender)
}

/// Host and port, as in `127.0.0.1:8080`.
fn authority(uri: &Uri) -> anyhow::Result<&str> {
    let authority = uri.authority().with_context(|| format!("{uri} names no host"))?;
    ensure!(authority.port().is_some(), "{uri} names no port");
    Ok(authority.as_str())
}
