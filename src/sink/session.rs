//! One model for all brokers. A [`Session`] is opened, checked (is the topology as it should be? what is
//! missing is created), used for publishing, and dropped when in doubt. Its progress is recorded as
//! [`Steps`], which `check --connect` shows: the same steps, except that nothing is created.

use std::time::{Duration, Instant};

use super::{Finding, Health, Outgoing};
use crate::verdict::{Kind, Reason, Verdict};

/// How often to check the topology again while events come back unroutable.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Where sessions come from.
pub(super) trait Broker {
    type Session: Session;

    /// The best batch size, in multiples of `relay.batch`. Each batch is awaited, so larger ones wait
    /// less often.
    const BATCHES: usize = 1;

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

    fn doubts(self) -> Vec<String> {
        let doubtful = self.findings.into_iter().filter(|f| f.verdict == Health::Doubtful);
        doubtful.map(|finding| finding.text).collect()
    }
}

/// Prepares a session point by point without changing anything. The points come in an order in which each
/// needs those before it; the first bad one may be the last.
pub(super) async fn examine(broker: &impl Broker) -> Vec<Finding> {
    let mut steps = Steps::new(true);
    let result = async {
        let mut session = broker.open(&mut steps).await?;
        let checked = session.check(&mut steps).await;
        session.close().await;
        checked
    };
    let result = result.await;
    let _ = steps.go_on(result); // reported like any other bad point
    steps.findings
}

/// Keeps one session open for as long as it is sound.
pub(super) struct Delivery<B: Broker> {
    broker: B,
    /// Taken while in use, so that a call that is dropped midway drops it as well: nobody knows what is
    /// still in flight then.
    session: Option<B::Session>,
    is_checked: bool,
    checked_at: Instant,
    /// The doubts that were already logged.
    said: Vec<String>,
}

impl<B: Broker> Delivery<B> {
    pub(super) fn new(broker: B, session: Option<B::Session>) -> Self {
        let checked_at = Instant::now();
        Delivery { broker, session, is_checked: false, checked_at, said: Vec::new() }
    }

    /// Whether events can be delivered now. Checks again, because things may have been removed since.
    pub(super) async fn ready(&mut self) -> Result<(), Reason> {
        self.is_checked = false;
        let session = self.prepare().await?;
        self.session = Some(session);
        Ok(())
    }

    pub(super) async fn deliver(&mut self, messages: Vec<Outgoing<'_>>) -> Vec<Verdict> {
        let mut session = match self.prepare().await {
            Ok(session) => session,
            Err(reason) => return vec![Verdict::Away(reason); messages.len()],
        };
        let verdicts = session.publish(messages).await;
        let has = |is: fn(&Verdict) -> bool| verdicts.iter().any(is);
        let may_be_gone = has(|verdict| matches!(verdict, Verdict::Away(_)))
            || has(|verdict| matches!(verdict, Verdict::Later(_)))
                && self.checked_at.elapsed() >= CHECK_EVERY;
        self.is_checked = !may_be_gone;
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
                self.is_checked = false;
                self.broker.open(&mut steps).await.map_err(|failed| failed.reason)?
            }
        };
        if self.is_checked {
            return Ok(session);
        }
        if let Err(Failed { reason, .. }) = session.check(&mut steps).await {
            // A problem of the broker is not a fault of the connection.
            if matches!(reason.kind, Kind::Topology | Kind::Blocked) {
                self.session = Some(session);
            }
            return Err(reason);
        }
        let doubts = steps.doubts();
        for doubt in doubts.iter().filter(|doubt| !self.said.contains(doubt)) {
            tracing::warn!("{doubt}");
        }
        self.said = doubts;
        (self.is_checked, self.checked_at) = (true, Instant::now());
        Ok(session)
    }

    #[cfg(test)]
    pub(super) fn session(&self) -> Option<&B::Session> {
        self.session.as_ref()
    }
}
