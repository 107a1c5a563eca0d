//! Authentic callbacks of other commands: to the backend behind the passthrough as they came, or answered OK.
//! Never refused for what they hold: refusing a *before* callback would block the user who caused it.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;

use super::{Call, Ingress, respond};
use crate::answer::Answer;
use crate::callback::{TOPIC_CREATED, command_in, command_label};
use crate::metrics::CallbackOutcome;
use crate::requests::Entry;

impl Ingress {
    pub(super) async fn other(
        self: &Arc<Self>,
        call: &Call<'_>,
        command: &str,
        body: Result<Bytes, Answer>,
        entry: &mut Entry<'_>,
    ) -> Response {
        let (body, too_large) = match body {
            Err(half @ (Answer::Timeout | Answer::Broken)) => {
                return self.refuse_plainly(&half, entry);
            }
            Err(refusal) => (Bytes::new(), Some(refusal.info())),
            Ok(body) => (body, None),
        };
        let mislabelled = match command_in(&body).as_deref() == Some(TOPIC_CREATED) {
            true => match self.keep_mislabelled(call, command, &body).await {
                Err(refusal) if self.passthrough.is_none() => {
                    return self.refuse_plainly(&refusal, entry); // an OK would say that it is kept
                }
                Err(refusal) => Some(format!("not kept: {}", refusal.info())),
                Ok(reason) => Some(reason),
            },
            false => None,
        };
        self.metrics.count(CallbackOutcome::Ignored);
        self.metrics.count_ignored(command_label(command));
        let (response, became) = match (&self.passthrough, too_large) {
            (None, _) => (respond(&Answer::Ok), None),
            (Some(_), Some(reason)) => {
                (respond(&Answer::Ok), Some(format!("not forwarded: {reason}")))
            }
            (Some(passthrough), None) => {
                match passthrough.forward(call.head, body, call.arrived).await {
                    Ok(response) => {
                        let status = response.status().as_u16();
                        (response.map(Body::from), Some(format!("the backend answered {status}")))
                    }
                    Err(missed) => {
                        let missed = missed.to_string();
                        self.warnings.warn_of_backend(&missed);
                        (respond(&Answer::Ok), Some(format!("answered OK: {missed}")))
                    }
                }
            }
        };
        entry.ends(CallbackOutcome::Ignored.name(), mislabelled.or(became).map(Cow::Owned));
        response
    }

    /// Quarantines a topic-created callback whose URL names another command: one that an intermediary has
    /// changed, say. Returns the reason.
    async fn keep_mislabelled(
        &self,
        call: &Call<'_>,
        command: &str,
        body: &Bytes,
    ) -> Result<String, Answer> {
        let reason = format!(
            "the CallbackCommand of the URL is {command:.64?}, that of the body is {TOPIC_CREATED:?}"
        );
        self.quarantine(call, body, reason.clone()).await?;
        self.warnings.warn_of_mislabelled(&reason);
        Ok(reason)
    }
}
