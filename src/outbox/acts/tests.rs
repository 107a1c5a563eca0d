//! An operator's acts on a real outbox, without a relay.

use tempfile::TempDir;
use uuid::Uuid;

use super::super::fixtures::{self, START, close, kept, record};
use super::super::{Again, Config, Kept, Receipt, Refused, Settlement, Workers};
use super::*;
use crate::config::Keys;
use crate::time::{Clock, Timestamp};

struct Bench {
    folder: TempDir,
    outbox: Outbox,
    workers: Workers,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = fixtures::settings(folder.path());
        change(&mut settings);
        let (outbox, workers) = fixtures::open(&settings, &Clock::scripted(START));
        Bench { folder, outbox, workers }
    }

    async fn again(self) -> Self {
        drop(self.outbox);
        close(self.workers).await;
        let settings = fixtures::settings(self.folder.path());
        let (outbox, workers) = fixtures::open(&settings, &Clock::scripted(START));
        Bench { outbox, workers, ..self }
    }

    async fn take(&self, topics: &[&str]) {
        for topic in topics {
            self.outbox.append(record(topic, START)).unwrap().await.unwrap().unwrap();
        }
    }

    async fn quarantine(&self, body: &str) {
        let callback = Quarantined {
            sdk_app_id: 1,
            client_ip: Some("127.0.0.1".into()),
            client_platform: Some("iOS".into()),
            received_at: START - std::time::Duration::from_secs(3600),
            reason: "an older release did not understand it".into(),
            body: body.into(),
        };
        self.outbox.quarantine(callback).unwrap().await.unwrap().unwrap();
    }

    /// All is settled up to there: delivered, but for these.
    async fn settle(&self, through: u64, dead: &[u64], deferred: &[u64]) {
        let refuse = |position: &u64| Refused {
            position: *position,
            at: START,
            reason: format!("too large: {position}"),
        };
        let again = |position: &u64| Again {
            position: *position,
            attempts: 3,
            not_before: START,
            reason: "busy".into(),
        };
        let settlement = Settlement {
            through,
            refused: dead.iter().map(refuse).collect(),
            again: deferred.iter().map(again).collect(),
            ..Settlement::default()
        };
        self.outbox.settle(settlement).await.unwrap();
    }

    async fn perform(&self, act: Act, of: Option<Of>, filter: Filter) -> Tally {
        let order = Order { of, filter, dry_run: false, outbox: None };
        let rehearsal = Order { dry_run: true, ..order.clone() };
        let before = self.all();
        let counted = self.outbox.perform(act, &rehearsal, &naming()).await;
        assert_eq!(self.all(), before, "a dry run changes nothing");
        let tally = self.outbox.perform(act, &order, &naming()).await;
        assert_eq!(tally.matched, counted.matched, "the dry run counts what is done");
        self.check_counters();
        tally
    }

    async fn import(&self, text: &str, is_rehearsal: bool) -> Tally {
        let mut import = Import::into(&self.outbox, is_rehearsal).await.unwrap();
        for piece in text.as_bytes().chunks(7) {
            if let Err(stopped) = import.push(piece).await {
                return import.end(Err(stopped)).await;
            }
        }
        let tally = import.end(Ok(())).await;
        self.check_counters();
        tally
    }

    fn list(&self, list: List) -> Vec<Kept> {
        self.outbox.reader().unwrap().run_here(|reading| reading.list(list, 0, 10_000)).unwrap()
    }

    fn all(&self) -> [Vec<Kept>; 3] {
        [List::All, List::Pending, List::Quarantined].map(|list| self.list(list))
    }

    fn positions(&self, list: List) -> Vec<u64> {
        self.list(list).iter().map(|kept| kept.position).collect()
    }

    /// What other threads see is what is in the file.
    fn check_counters(&self) {
        let status = self.outbox.reader().unwrap().run_here(|reading| reading.status()).unwrap();
        let seen = [
            self.outbox.deferred(),
            self.outbox.dead_letters(),
            self.outbox.quarantined(),
            *self.outbox.last().borrow(),
        ];
        let found =
            [status.deferred, status.dead_letters, status.quarantined, status.newest_position];
        assert_eq!(seen, found);
    }
}

fn naming() -> event::Config {
    event::Config::read(&mut Keys::defaults())
}

fn done(tally: &Tally) -> (u64, u64, u64, u64) {
    assert_eq!(tally.stopped, None);
    (tally.matched, tally.done, tally.duplicates, tally.kept)
}

fn body(topic: &str) -> String {
    format!(
        r#"{{"CallbackCommand":"Group.CallbackAfterCreateTopic","GroupId":"g","TopicId":{topic:?},
            "Operator_Account":"o","Owner_Account":"w","Type":"Community","Name":"n"}}"#
    )
}

/// An event as another outbox would export it.
fn line(topic: &str, id: Uuid) -> String {
    let mut event = record(topic, START).event;
    event.id = id;
    event.data =
        format!(r#"{{"sdk_app_id":1,"topic_id":{topic:?},"accepted_at":"{START}","extra":{{}}}}"#);
    event.structured() + "\n"
}

fn first(topic: &str) -> Uuid {
    event::id(1, topic, None)
}

#[tokio::test]
async fn dead_letters_are_queued_again_by_position_whatever_their_number() {
    let bench = Bench::new();
    let topics: Vec<_> = (1..=1200).map(|number| format!("t{number}")).collect();
    bench.take(&topics.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let dead: Vec<_> = (1..=1200).collect();
    bench.settle(1200, &dead, &[]).await;
    let mut last = bench.outbox.last();
    last.mark_unchanged();
    let tally = bench.perform(Act::Retry, Some(Of::Dead), Filter::default()).await;
    assert_eq!(done(&tally), (1200, 1200, 0, 0));
    assert!(last.has_changed().unwrap(), "the relay is woken");
    let due = bench.outbox.reader().unwrap();
    let due = due.run_here(|reading| reading.due(START, START, 600)).unwrap();
    let due: Vec<_> =
        due.iter().map(|due| (due.slot.as_ref().unwrap().position, due.attempts)).collect();
    assert_eq!(due, (1..=600).map(|position| (position, 0)).collect::<Vec<_>>());
    let bench = bench.again().await;
    assert_eq!((bench.outbox.deferred(), bench.outbox.dead_letters()), (1200, 0));
    close(bench.workers).await;
}

#[tokio::test]
async fn a_filter_chooses_and_everything_in_it_must_hold() {
    let bench = Bench::new();
    bench.take(&["a", "b", "c", "d"]).await;
    bench.settle(4, &[1, 2, 3], &[]).await;
    let later = START + std::time::Duration::from_millis(1);
    let filter = Filter::default;
    for (filter, expected) in [
        (filter(), 3),
        (Filter { position: Some(2), ..filter() }, 1),
        (Filter { position: Some(4), ..filter() }, 0), // delivered
        (Filter { position: Some(0), ..filter() }, 0),
        (Filter { id: Some(first("c")), ..filter() }, 1),
        (Filter { topic: Some("a".into()), ..filter() }, 1),
        (Filter { topic: Some("A".into()), ..filter() }, 0),
        (Filter { reason: Some("TOO large: 2".into()), ..filter() }, 1),
        (Filter { since: Some(START), ..filter() }, 3),
        (Filter { since: Some(later), ..filter() }, 0),
        (Filter { until: Some(START), ..filter() }, 0),
        (Filter { until: Some(later), ..filter() }, 3),
        (Filter { topic: Some("a".into()), position: Some(2), ..filter() }, 0),
    ] {
        let order = Order { filter, dry_run: true, ..Order::default() };
        let tally = bench.outbox.perform(Act::Retry, &order, &naming()).await;
        assert_eq!(done(&tally), (expected, 0, 0, 0), "{order:?}");
    }
    let named = Filter { position: Some(2), ..filter() };
    assert_eq!(bench.perform(Act::Drop, Some(Of::Dead), named).await.done, 1);
    assert_eq!(bench.positions(List::DeadLetters), [1, 3]);
    close(bench.workers).await;
}

#[tokio::test]
async fn a_quarantined_body_is_taken_as_a_callback_of_its_time_or_stays_with_its_new_reason() {
    let bench = Bench::new();
    for text in [&body("new"), &body("new"), "not json"] {
        bench.quarantine(text).await;
    }
    let tally = bench.perform(Act::Retry, Some(Of::Quarantined), Filter::default()).await;
    assert_eq!(done(&tally), (3, 1, 1, 1));
    let events = bench.list(List::All);
    let event: serde_json::Value = serde_json::from_slice(&events[0].content).unwrap();
    let received_at = START - std::time::Duration::from_secs(3600);
    assert_eq!(event["id"], first("new").to_string());
    assert_eq!(event["time"], received_at.to_string());
    assert_eq!(event["data"]["accepted_at"], received_at.to_string());
    assert_eq!(event["data"]["client"], serde_json::json!({"ip": "127.0.0.1", "platform": "iOS"}));
    let left = bench.list(List::Quarantined);
    assert_eq!(left.len(), 1);
    assert!(left[0].reason.as_ref().unwrap().contains("body is not JSON"), "{left:?}");

    // The topic was created an hour ago: a callback of now is another creation, one of then is not.
    let answer = bench.outbox.append(record("new", START)).unwrap().await.unwrap();
    assert_eq!(answer, Ok(Receipt::Accepted));
    bench.quarantine(&body("new")).await;
    let number = Filter { position: Some(4), ..Filter::default() };
    let tally = bench.perform(Act::Retry, Some(Of::Quarantined), number).await;
    assert_eq!(done(&tally), (1, 1, 0, 0), "an earlier creation than the last one");
    let ids: Vec<_> = kept(&bench.outbox).into_iter().map(|(_, id, _)| id).collect();
    let answer = bench.outbox.append(record("new", START)).unwrap().await.unwrap();
    assert_eq!(answer, Ok(Receipt::Duplicate), "the last creation counts: {ids:?}");
    close(bench.workers).await;
}

#[tokio::test]
async fn what_is_dropped_is_gone_and_nothing_else_is() {
    let bench = Bench::new();
    bench.take(&["a", "b"]).await;
    bench.settle(2, &[1], &[2]).await;
    bench.quarantine("not json").await;
    let tally = bench.perform(Act::Drop, Some(Of::Quarantined), Filter::default()).await;
    assert_eq!(done(&tally), (1, 1, 0, 0));
    assert_eq!(bench.positions(List::DeadLetters), [1]);
    let tally = bench.perform(Act::Drop, Some(Of::Dead), Filter::default()).await;
    assert_eq!(done(&tally), (1, 1, 0, 0));
    assert_eq!(bench.positions(List::Pending), [2]);
    close(bench.workers).await;
}

#[tokio::test]
async fn only_delivered_events_are_replayed_and_none_twice() {
    let bench = Bench::new();
    bench.take(&["delivered", "dead", "deferred", "delivered too", "pending"]).await;
    bench.settle(4, &[2], &[3]).await;
    let tally = bench.perform(Act::Replay, None, Filter::default()).await;
    assert_eq!(done(&tally), (2, 2, 0, 0));
    assert_eq!(bench.positions(List::Pending), [1, 3, 4, 5]);
    let tally = bench.perform(Act::Replay, None, Filter::default()).await;
    assert_eq!(done(&tally), (0, 0, 0, 0), "they wait already");
    let delivered_at_last = vec![1, 3, 4];
    let settlement = Settlement { through: 4, delivered_at_last, ..Settlement::default() };
    bench.outbox.settle(settlement).await.unwrap();
    assert_eq!(bench.positions(List::Delivered), [1, 3, 4]);
    close(bench.workers).await;
}

#[tokio::test]
async fn an_import_appends_what_is_new_under_its_own_id() {
    let bench = Bench::new();
    bench.take(&["delivered", "dead", "deferred", "pending"]).await;
    bench.settle(3, &[2], &[3]).await;
    let again = event::recreated_id(first("delivered"), START);
    let foreign = Uuid::from_u128(7);
    let mut text = String::new();
    for topic in ["delivered", "dead", "deferred", "pending", "new"] {
        text += &line(topic, first(topic));
    }
    text += "\n";
    text += &line("delivered", again);
    text += &line("strange", foreign);
    text += line("new", first("new")).trim_end();
    for is_rehearsal in [true, false] {
        let before = bench.all();
        let tally = bench.import(&text, is_rehearsal).await;
        assert_eq!(done(&tally), (8, 3, 5, 0));
        assert_eq!(bench.all() == before, is_rehearsal);
    }
    let kept_now: Vec<_> = kept(&bench.outbox).into_iter().skip(4).collect();
    let expected = [(5, first("new"), "new"), (6, again, "delivered"), (7, foreign, "strange")];
    assert_eq!(kept_now, expected.map(|(at, id, topic)| (at, id, topic.to_owned())));
    assert_eq!(bench.outbox.pending(), 5);
    let bench = bench.again().await;
    assert_eq!(done(&bench.import(&text, false).await), (8, 0, 8, 0));
    let answer = bench.outbox.append(record("new", START)).unwrap().await.unwrap();
    assert_eq!(answer, Ok(Receipt::Duplicate), "its topic is remembered");
    close(bench.workers).await;
}

#[tokio::test]
async fn a_line_that_is_no_event_is_named_and_ends_the_import() {
    let good = line("a", first("a"));
    for (bad, expected) in [
        ("{", "line 2 is not an event of this bridge: EOF"),
        ("{}", "missing field"),
        (r#"{"number":1,"state":"quarantined","body":"secret"}"#, "missing field"),
        (&good.replace("\"1.0\"", "\"0.3\""), "specversion"),
        (&good.replace("\"subject\":\"a\"", "\"subject\":\"b\""), "subject"),
        (&good.replace("\"subject\":\"a\"", "\"subject\":[\"secret\"]"), "not of the type"),
        (&good.replace("\"accepted_at\":\"20", "\"accepted_at\":\"secret"), "accepted_at"),
        (&good.replace("\"id\":\"", "\"id\":\"secret"), "line 2"),
    ] {
        let bench = Bench::new();
        let text = format!("{good}{bad}\n{}", line("b", first("b")));
        for is_rehearsal in [true, false] {
            let tally = bench.import(&text, is_rehearsal).await;
            let stopped = tally.stopped.unwrap();
            assert!(stopped.contains("line 2") && stopped.contains(expected), "{stopped}");
            assert!(!stopped.contains("secret"), "{stopped}");
            assert_eq!(tally.done, 1, "what came before it");
        }
        assert_eq!(kept(&bench.outbox).len(), 1);
        close(bench.workers).await;
    }
}

#[tokio::test]
async fn a_full_outbox_ends_an_act_and_what_is_done_is_counted() {
    let bench = Bench::with(|settings| settings.max_bytes = 200_000);
    let large = |topic: &str| {
        let mut record = record(topic, START);
        record.event.data = format!(r#"{{"filler":"{}"}}"#, "x".repeat(50_000));
        record
    };
    bench.outbox.append(large("a")).unwrap().await.unwrap().unwrap();
    bench.outbox.append(large("b")).unwrap().await.unwrap().unwrap();
    bench.settle(2, &[], &[]).await;
    let tally = bench.perform(Act::Replay, None, Filter::default()).await;
    assert_eq!((tally.matched, tally.done), (2, 1), "{tally:?}");
    assert_eq!(tally.stopped.as_deref(), Some("the outbox is full"));
    let text: String = (0..2000).map(|n| line(&format!("t{n}"), first(&format!("t{n}")))).collect();
    let tally = bench.import(&text, false).await;
    assert_eq!(tally.stopped.as_deref(), Some("the outbox is full"));
    assert_eq!(kept(&bench.outbox).len() as u64, 2 + tally.done);
    assert_eq!(tally.done, bench.outbox.pending() - 1, "{tally:?}");
    close(bench.workers).await;
}

#[test]
fn an_order_that_makes_no_sense_is_refused() {
    let (dead, quarantined) = (Some(Of::Dead), Some(Of::Quarantined));
    let (none, since) =
        (Filter::default(), Filter { since: Some(Timestamp::default()), ..Filter::default() });
    let reason = Filter { reason: Some("r".into()), ..since.clone() };
    let topic = Filter { topic: Some("t".into()), ..Filter::default() };
    for (act, of, filter, is_embedded, is_good) in [
        (Act::Retry, None, &none, false, true),
        (Act::Retry, dead, &none, false, true),
        (Act::Retry, dead, &none, true, false),
        (Act::Retry, quarantined, &none, true, true),
        (Act::Retry, quarantined, &topic, false, false),
        (Act::Drop, None, &none, false, false),
        (Act::Drop, dead, &topic, true, true),
        (Act::Replay, None, &none, false, false),
        (Act::Replay, None, &since, false, true),
        (Act::Replay, None, &since, true, false),
        (Act::Replay, None, &reason, false, false),
        (Act::Replay, dead, &since, false, false),
    ] {
        let order = Order { of, filter: filter.clone(), ..Order::default() };
        let fault = order.fault(act, is_embedded);
        assert_eq!(fault.is_none(), is_good, "{act:?} {order:?}: {fault:?}");
    }
    for json in [
        "{\"oops\":1}",
        "{\"filter\":{\"sinse\":\"2026-01-01T00:00:00Z\"}}",
        "{\"filter\":{\"since\":\"now\"}}",
    ] {
        assert!(serde_json::from_str::<Order>(json).is_err(), "{json}");
    }
    let order = Order { of: dead, filter: reason, dry_run: true, outbox: Some("1:2".into()) };
    let json = serde_json::to_string(&order).unwrap();
    assert_eq!(serde_json::from_str::<Order>(&json).unwrap(), order);
}
