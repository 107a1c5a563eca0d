//! One model for all brokers. A [`Session`] is opened, checked (is the topology as it should be? what is
//! missing is created), used for publishing, and dropped when in doubt. Its progress is recorded as
//! [`Steps`], which `check --connect` shows: the same steps, except that nothing is created.

use std::time::{Duration, Instant};

use super::sends::{Destination, Sends};
use super::{Finding, Health, Outgoing, http_port};
use crate::message::Envelope;
use crate::spans::Spans;
use crate::verdict::{Kind, Reason, Verdict};

/// While events are unroutable, how often the topology is checked again.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Where sessions come from.
pub(super) trait Broker {
    type Session: Session;

    /// The best batch size, in multiples of `relay.batch`. Each batch is awaited, so larger ones wait
    /// less often.
    const BATCHES: usize = 1;

    /// Where its servers are, as `host:port`.
    fn addresses(&self) -> Vec<String>;

    /// Where an event's message goes.
    fn destination(&self, event: &Envelope) -> Destination;

    /// Connects.
    async fn open(&self, steps: &mut Steps) -> Result<Self::Session, Failed>;
}

/// A connection to a broker. Every wait has a deadline, `relay.confirm_timeout`.
pub(super) trait Session {
    /// Whether events can be delivered: creates or checks what is configured.
    async fn check(&mut self, steps: &mut Steps) -> Result<(), Failed>;

    /// One verdict for each message, in the same order.
    async fn publish(&mut self, messages: Vec<Outgoing<'_>>) -> Vec<Verdict>;

    /// Whether it can be used further: it is connected, and no confirmation is outstanding.
    fn is_sound(&self) -> bool;

    /// Closes the connection properly, in a second or two at most.
    async fn close(self);
}

/// A failed step: why nothing can be delivered.
#[derive(Debug)]
pub(super) struct Failed {
    point: &'static str,
    pub(super) reason: Reason,
}

impl Reason {
    /// The failed step, with this reason.
    pub(super) fn at(self, point: &'static str) -> Failed {
        Failed { point, reason: self }
    }
}

/// What was done and found while preparing a session.
pub(super) struct Steps {
    is_look: bool,
    findings: Vec<Finding>,
}

impl Steps {
    fn new(is_look: bool) -> Self {
        Steps { is_look, findings: Vec::new() }
    }

    /// Whether this only reports to an operator, so that nothing may be changed.
    pub(super) fn is_look(&self) -> bool {
        self.is_look
    }

    pub(super) fn good(&mut self, point: &'static str, text: impl Into<String>) {
        self.add(point, Health::Good, text.into());
    }

    /// Events are delivered nevertheless, or this cannot be known from here.
    pub(super) fn doubtful(&mut self, point: &'static str, text: impl Into<String>) {
        self.add(point, Health::Doubtful, text.into());
    }

    /// Continues with the next point when all points are to be shown.
    pub(super) fn go_on(&mut self, step: Result<(), Failed>) -> Result<(), Failed> {
        match step {
            Err(Failed { point, reason }) if self.is_look => {
                self.add(point, Health::Bad, reason.text);
                Ok(())
            }
            step => step,
        }
    }

    fn add(&mut self, point: &'static str, verdict: Health, text: String) {
        self.findings.push(Finding { point, verdict, text });
    }
}

/// A session for somebody who only reads, so that nothing needs to be checked.
pub(super) async fn open<B: Broker>(broker: &B) -> anyhow::Result<B::Session> {
    match broker.open(&mut Steps::new(false)).await {
        Ok(session) => Ok(session),
        Err(failed) => anyhow::bail!(explained(broker, failed.reason).await.text),
    }
}

/// The reason why nothing could be reached; where that is an HTTP server, it says so.
pub(super) async fn explained(broker: &impl Broker, reason: Reason) -> Reason {
    if !matches!(reason.kind, Kind::Unreachable | Kind::Timeout) {
        return reason;
    }
    match http_port::find(&broker.addresses()).await {
        None => reason,
        Some(address) => Reason::new(
            reason.kind,
            format!(
                "an HTTP server answers at {address}, not a broker: is that the port of its web page, or of \
                 another program?"
            ),
        ),
    }
}

/// Opens and checks a session step by step, and changes nothing. Each step depends on those before it, so a bad
/// one may be the last.
pub(super) async fn examine(broker: &impl Broker) -> Vec<Finding> {
    let mut steps = Steps::new(true);
    let result = async {
        let mut session = broker.open(&mut steps).await?;
        let checked = session.check(&mut steps).await;
        session.close().await;
        checked
    };
    let result = match result.await {
        Err(Failed { point, reason }) => Err(explained(broker, reason).await.at(point)),
        good => good,
    };
    let _ = steps.go_on(result); // reported like any other bad point
    steps.findings
}

/// Keeps one session open for as long as it is sound.
pub(super) struct Delivery<B: Broker> {
    broker: B,
    /// Taken while in use, so that a call that is dropped midway drops it as well: nobody knows what is
    /// still in flight then.
    session: Option<B::Session>,
    doubt: Doubt,
    checked_at: Instant,
    /// The doubts that were logged and are not over.
    said: Vec<(&'static str, String)>,
}

/// Whether the topology is as it was when it was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Doubt {
    None,
    /// Some events were unroutable, or not accepted for another reason of their own.
    Some,
    /// Nothing is accepted, or nothing is known.
    Full,
}

impl<B: Broker> Delivery<B> {
    pub(super) fn new(broker: B, session: Option<B::Session>) -> Self {
        let checked_at = Instant::now();
        Delivery { broker, session, doubt: Doubt::Full, checked_at, said: Vec::new() }
    }

    /// Whether events can be delivered now. Checks again, because things may have been removed since.
    pub(super) async fn ready(&mut self) -> Result<(), Reason> {
        self.doubt = Doubt::Full;
        let session = self.prepare().await?;
        self.session = Some(session);
        Ok(())
    }

    pub(super) async fn deliver(
        &mut self,
        mut messages: Vec<Outgoing<'_>>,
        spans: &Spans,
    ) -> Vec<Verdict> {
        let sends = Sends::begin(spans, &self.broker, &mut messages);
        let verdicts = self.publish(messages).await;
        if let Some(sends) = sends {
            sends.end(&verdicts);
        }
        verdicts
    }

    async fn publish(&mut self, messages: Vec<Outgoing<'_>>) -> Vec<Verdict> {
        let mut session = match self.prepare().await {
            Ok(session) => session,
            Err(reason) => return vec![Verdict::Away(reason); messages.len()],
        };
        let verdicts = session.publish(messages).await;
        let of = |verdict: &Verdict| match verdict {
            Verdict::Away(_) => Doubt::Full,
            Verdict::Later(_) => Doubt::Some,
            Verdict::Delivered | Verdict::Alone(_) | Verdict::Refused(_) => Doubt::None,
        };
        self.doubt = verdicts.iter().map(of).max().unwrap_or(Doubt::None);
        // A session in doubt is dropped at once: what it still holds must not be sent later.
        self.session = Some(session).filter(Session::is_sound);
        verdicts
    }

    pub(super) async fn close(self) {
        if let Some(session) = self.session {
            session.close().await;
        }
    }

    /// A session that has passed its checks.
    async fn prepare(&mut self) -> Result<B::Session, Reason> {
        let mut steps = Steps::new(false);
        let mut session = match self.session.take().filter(Session::is_sound) {
            Some(session) => session,
            None => {
                self.doubt = Doubt::Full;
                self.broker.open(&mut steps).await.map_err(|failed| failed.reason)?
            }
        };
        let is_checked = match self.doubt {
            Doubt::None => true,
            Doubt::Some => self.checked_at.elapsed() < CHECK_EVERY,
            Doubt::Full => false,
        };
        if is_checked {
            return Ok(session);
        }
        if let Err(Failed { reason, .. }) = session.check(&mut steps).await {
            // A problem with the topology is not a fault of the connection.
            if matches!(reason.kind, Kind::Topology | Kind::Blocked) {
                self.session = Some(session);
            } else if reason.kind == Kind::Credentials {
                session.close().await; // it is well, and the broker would log that it was cut
            }
            return Err(reason);
        }
        self.warn(steps);
        (self.doubt, self.checked_at) = (Doubt::None, Instant::now());
        Ok(session)
    }

    /// Logs each doubt once, and again when it comes back.
    fn warn(&mut self, steps: Steps) {
        let findings = &steps.findings;
        let is_over = |(point, text): &(&str, String)| {
            let looked_at = findings.iter().any(|finding| finding.point == *point);
            looked_at && !findings.iter().any(|finding| finding.text == *text)
        };
        self.said.retain(|said| !is_over(said));
        for Finding { point, text, .. } in findings.iter().filter(|f| f.verdict == Health::Doubtful)
        {
            if !self.said.iter().any(|(_, said)| said == text) {
                tracing::warn!(point, "{text}");
                self.said.push((*point, text.clone()));
            }
        }
    }

    #[cfg(test)]
    pub(super) fn session(&self) -> Option<&B::Session> {
        self.session.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was done to a broker, in order, and what it says to the next batches.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<(Vec<&'static str>, Vec<Verdict>)>>);

    struct FakeSession {
        fake: Fake,
        is_sound: bool,
    }

    impl Fake {
        fn did(&self, what: &'static str) {
            self.0.lock().unwrap().0.push(what);
        }

        fn done(&self) -> Vec<&'static str> {
            std::mem::take(&mut self.0.lock().unwrap().0)
        }

        async fn deliver(
            &self,
            delivery: &mut Delivery<Fake>,
            verdict: Verdict,
        ) -> Vec<&'static str> {
            self.0.lock().unwrap().1.push(verdict.clone());
            assert_eq!(delivery.deliver(Vec::new(), &Spans::off()).await, [verdict]);
            self.done()
        }
    }

    impl Broker for Fake {
        type Session = FakeSession;

        fn addresses(&self) -> Vec<String> {
            Vec::new()
        }

        fn destination(&self, _event: &Envelope) -> Destination {
            unreachable!("no spans are made here")
        }

        async fn open(&self, _steps: &mut Steps) -> Result<FakeSession, Failed> {
            self.did("open");
            Ok(FakeSession { fake: self.clone(), is_sound: true })
        }
    }

    impl Session for FakeSession {
        async fn check(&mut self, _steps: &mut Steps) -> Result<(), Failed> {
            self.fake.did("check");
            Ok(())
        }

        async fn publish(&mut self, _messages: Vec<Outgoing<'_>>) -> Vec<Verdict> {
            self.fake.did("publish");
            let verdict = self.fake.0.lock().unwrap().1.remove(0);
            let kind = verdict.reason().map(|reason| reason.kind);
            self.is_sound = kind != Some(Kind::Unreachable);
            vec![verdict]
        }

        fn is_sound(&self) -> bool {
            self.is_sound
        }

        async fn close(self) {}
    }

    #[tokio::test]
    async fn what_may_be_gone_is_checked_again_before_more_is_sent() {
        let reason = |kind| Reason::new(kind, "because");
        let fake = Fake::default();
        let mut delivery = Delivery::new(fake.clone(), None);
        assert_eq!(
            fake.deliver(&mut delivery, Verdict::Delivered).await,
            ["open", "check", "publish"]
        );
        let refused = Verdict::Refused(reason(Kind::TooLarge));
        assert_eq!(fake.deliver(&mut delivery, refused).await, ["publish"]);
        let unroutable = Verdict::Later(reason(Kind::Unroutable));
        assert_eq!(fake.deliver(&mut delivery, unroutable.clone()).await, ["publish"]);
        assert_eq!(fake.deliver(&mut delivery, unroutable).await, ["publish"], "a moment later");
        delivery.checked_at -= CHECK_EVERY;
        let full = Verdict::Away(reason(Kind::Rejected));
        assert_eq!(fake.deliver(&mut delivery, full).await, ["check", "publish"]);
        let lost = Verdict::Away(reason(Kind::Unreachable));
        assert_eq!(fake.deliver(&mut delivery, lost).await, ["check", "publish"]);
        assert!(delivery.session().is_none(), "what is in doubt is dropped at once");
        assert_eq!(
            fake.deliver(&mut delivery, Verdict::Delivered).await,
            ["open", "check", "publish"]
        );
        delivery.ready().await.unwrap();
        assert_eq!(fake.done(), ["check"]);
    }

    #[test]
    fn a_doubt_is_said_once_and_again_when_it_comes_back() {
        let mut delivery = Delivery::new(Fake::default(), None);
        let mut said = |findings: &[(&'static str, bool)]| {
            let mut steps = Steps::new(false);
            for (point, is_good) in findings {
                match is_good {
                    true => steps.good(point, "fine"),
                    false => steps.doubtful(point, format!("{point} is weak")),
                }
            }
            delivery.warn(steps);
            delivery.said.iter().map(|(point, _)| *point).collect::<Vec<_>>()
        };
        assert_eq!(said(&[("size", false), ("topic", false)]), ["size", "topic"]);
        assert_eq!(said(&[("topic", false)]), ["size", "topic"], "nobody looked at the size");
        assert_eq!(said(&[("topic", true)]), ["size"]);
        assert_eq!(said(&[("topic", false)]), ["size", "topic"]);
    }
}
