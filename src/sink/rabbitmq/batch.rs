//! Publishing a batch, and its outcome.
//!
//! The broker returns a message that no queue accepts, and then confirms it nevertheless. lapin attaches
//! a returned message to whichever confirm comes next, which need not be its own. So nothing is judged
//! before all confirms are there: by then each returned message has come with one of them, and its id
//! says which event it is.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{Confirmation, Error, ErrorKind};
use tokio::time::sleep;

use super::connection::Link;
use super::errors;
use super::message::Message;
use crate::verdict::{Kind, Reason, Verdict};

/// The answers to a batch.
pub(super) struct Published {
    sent: Vec<Sent>,
    /// The reason for messages without an answer.
    cut_off: Reason,
}

struct Sent {
    id: String,
    bytes: usize,
    answer: Option<Result<Confirmation, Error>>,
}

impl Link {
    /// Sends all messages, then waits for their confirms, up to `relay.confirm_timeout`, but only briefly
    /// once the connection is blocked.
    pub(super) async fn send(&mut self, messages: Vec<Message<'_>>) -> Published {
        let Link { channel, alarm, rabbitmq, .. } = self;
        let patience = rabbitmq.patience;
        let channel = channel.as_ref().expect("one is opened before publishing");
        let exchange = ShortString::from(rabbitmq.config.exchange.as_str());
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let (mut publishes, mut sent) = (Vec::new(), Vec::new());
        for Message { id, routing_key, properties, body } in messages {
            let exchange = exchange.clone();
            sent.push(Sent { id, bytes: body.len(), answer: None });
            publishes.push(Box::pin(async move {
                let body = body.as_bytes();
                channel.basic_publish(exchange, routing_key, options, body, properties).await?.await
            }));
        }
        // The first poll of each sends it, so all are in flight before the first is awaited.
        look_at_all(&mut publishes, &mut sent).await;
        let answers = async {
            for (publish, sent) in publishes.iter_mut().zip(&mut sent) {
                if sent.answer.is_none() {
                    sent.answer = Some(publish.await);
                }
            }
        };
        let cut_off = tokio::select! {
            () = answers => None,
            () = alarm.has_lasted() => alarm.check(),
            () = sleep(patience) => None,
        };
        look_at_all(&mut publishes, &mut sent).await;
        let cut_off = cut_off.unwrap_or_else(|| {
            let text = format!(
                "RabbitMQ has not confirmed every event within {patience:?} \
                 (relay.confirm_timeout): it is overloaded, or a queue has lost its leader or most of its \
                 replicas"
            );
            Reason::new(Kind::Timeout, text)
        });
        Published { sent, cut_off }
    }
}

/// Collects the answers that have arrived, without waiting.
async fn look_at_all<F>(publishes: &mut [Pin<Box<F>>], sent: &mut [Sent])
where
    F: Future<Output = Result<Confirmation, Error>>,
{
    poll_fn(|context| {
        for (publish, sent) in publishes.iter_mut().zip(sent.iter_mut()) {
            if sent.answer.is_none()
                && let Poll::Ready(answer) = publish.as_mut().poll(context)
            {
                sent.answer = Some(answer);
            }
        }
        Poll::Ready(())
    })
    .await;
}

impl Published {
    /// Whether each message got an ack or a nack.
    pub(super) fn is_whole(&self) -> bool {
        let is_confirmed = |sent: &Sent| {
            matches!(sent.answer, Some(Ok(Confirmation::Ack(_) | Confirmation::Nack(_))))
        };
        self.sent.iter().all(is_confirmed)
    }

    /// Whether each message got some answer, even if it is an error.
    pub(super) fn has_answers(&self) -> bool {
        self.sent.iter().all(|sent| sent.answer.is_some())
    }

    pub(super) fn judge(&self, exchange: &str) -> Vec<Verdict> {
        let returned = self.returned();
        // If a batch was cut short, an acked message may have been returned, with its return still in the
        // library, waiting for a confirm to be attached to. If no confirm came with a return, there is
        // none.
        let are_acks_true = self.is_whole() || returned.is_empty();
        let failure = self.failure();
        let judge = |sent: &Sent| match (returned.get(&*sent.id), &sent.answer) {
            (Some(returned), _) => Verdict::Later(unroutable(returned, exchange)),
            (None, Some(Ok(Confirmation::Ack(_)))) if are_acks_true => Verdict::Delivered,
            (None, Some(Ok(Confirmation::Nack(_)))) => Verdict::Away(rejected()),
            (None, _) if failure.kind == Kind::TooLarge => self.judge_by_size(sent, &failure),
            (None, _) => Verdict::Away(failure.clone()),
        };
        self.sent.iter().map(judge).collect()
    }

    fn returned(&self) -> HashMap<&str, &BasicReturnMessage> {
        let confirmations = self.sent.iter().filter_map(|sent| sent.answer.as_ref()?.as_ref().ok());
        let returned = confirmations.filter_map(|confirmation| match confirmation {
            Confirmation::Ack(returned) | Confirmation::Nack(returned) => returned.as_ref(),
            Confirmation::NotRequested => None,
        });
        let by_id = returned.filter_map(|returned| {
            let id = returned.properties.message_id().as_ref()?;
            Some((id.as_str(), returned))
        });
        by_id.collect()
    }

    /// Why some messages are not confirmed. One error fails everything in flight, in several ways; the
    /// broker's own message is the most useful.
    fn failure(&self) -> Reason {
        let errors = || self.sent.iter().filter_map(|sent| sent.answer.as_ref()?.as_ref().err());
        let is_answer = |error: &&Error| matches!(error.kind(), ErrorKind::ProtocolError(_));
        let error = errors().find(is_answer).or_else(|| errors().next());
        error.map_or_else(|| self.cut_off.clone(), errors::sort)
    }

    /// One message that is too large closes the channel for all. The error usually says how large one may
    /// be.
    fn judge_by_size(&self, sent: &Sent, failure: &Reason) -> Verdict {
        let limit = errors::size_limit(&failure.text);
        if self.sent.len() == 1 || limit.is_some_and(|limit| sent.bytes > limit) {
            return Verdict::Refused(failure.clone());
        }
        Verdict::Alone(failure.clone())
    }
}

fn unroutable(returned: &BasicReturnMessage, exchange: &str) -> Reason {
    let text = format!(
        "no queue is bound to the exchange {exchange:?} for the routing key {:?}: bind one, or name \
         one in rabbitmq.queue with rabbitmq.declare = \"active\"",
        returned.routing_key.as_str()
    );
    Reason::new(Kind::Unroutable, text)
}

/// What is full for one event is full for the next, so the event keeps its place in the queue.
fn rejected() -> Reason {
    let text = "RabbitMQ did not take an event (basic.nack): a queue bound to the exchange is full, or \
                cannot write; make room there, or raise its limit";
    Reason::new(Kind::Rejected, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::BasicProperties;
    use lapin::message::Delivery;

    enum Came {
        Ack,
        Nack,
        /// An ack that carries what was returned of the message with this id.
        Returned(&'static str),
        Error(u16, &'static str),
        Nothing,
    }

    /// What became of messages `a`, `b`, …, each a byte longer than the one before.
    fn check(came: Vec<Came>, expected: &[&str], is_whole: bool) {
        let ids = ["a", "b", "c", "d"];
        let answer = |came| match came {
            Came::Ack => Some(Ok(Confirmation::Ack(None))),
            Came::Nack => Some(Ok(Confirmation::Nack(None))),
            Came::Returned(id) => Some(Ok(Confirmation::Ack(Some(returned(id))))),
            Came::Error(code, text) => {
                let error = lapin::protocol::AMQPError::from_id(code, text.into()).unwrap();
                Some(Err(ErrorKind::ProtocolError(error).into()))
            }
            Came::Nothing => None,
        };
        let sent = came.into_iter().zip(ids).enumerate();
        let sent =
            sent.map(|(bytes, (came, id))| Sent { id: id.into(), bytes, answer: answer(came) });
        let cut_off = Reason::new(Kind::Timeout, "too late");
        let published = Published { sent: sent.collect(), cut_off };
        assert_eq!(published.is_whole(), is_whole);
        let verdicts = published.judge("x");
        assert_eq!(verdicts.iter().map(Verdict::to_string).collect::<Vec<_>>(), expected);
    }

    fn returned(id: &str) -> BasicReturnMessage {
        let mut delivery = Delivery::mock(0, "x".into(), "key".into(), false, Vec::new());
        delivery.properties = BasicProperties::default().with_message_id(id.into());
        BasicReturnMessage { delivery, reply_code: 312, reply_text: "NO_ROUTE".into() }
    }

    #[test]
    fn a_returned_event_is_found_whichever_confirm_it_came_with() {
        use Came::*;
        check(vec![Ack, Returned("a"), Ack], &["later unroutable", "delivered", "delivered"], true);
        let both = ["later unroutable", "later unroutable", "delivered"];
        check(vec![Returned("b"), Ack, Returned("a")], &both, true);
    }

    #[test]
    fn a_nack_keeps_its_place_in_the_line() {
        use Came::*;
        check(vec![Ack, Nack, Ack], &["delivered", "away rejected", "delivered"], true);
    }

    #[test]
    fn a_batch_cut_short_counts_only_what_is_certain() {
        use Came::*;
        check(vec![Ack, Nothing, Ack], &["delivered", "away timeout", "delivered"], false);
        // The return of the last one may not have come with any confirm yet.
        let doubted = ["later unroutable", "away timeout", "away timeout"];
        check(vec![Returned("a"), Nothing, Ack], &doubted, false);
    }

    #[test]
    fn what_the_broker_said_goes_before_what_followed_from_it() {
        use Came::*;
        let lost = Error(504, "CHANNEL_ERROR - expected 'channel.open'");
        let missing = Error(404, "NOT_FOUND - no exchange 'x' in vhost '/'");
        check(vec![missing, lost, Nothing], &["away topology"; 3], false);
    }

    #[test]
    fn only_the_event_that_is_too_large_is_refused() {
        use Came::*;
        let larger = "PRECONDITION_FAILED - message size 2 is larger than configured max size 1";
        let expected = ["delivered", "alone too_large", "refused too_large"];
        check(vec![Ack, Error(406, larger), Error(406, larger)], &expected, false);
        let untold = "PRECONDITION_FAILED - message size is beyond belief";
        check(vec![Error(406, untold), Nothing], &["alone too_large"; 2], false);
        check(vec![Error(406, untold)], &["refused too_large"], false);
    }
}
