//! The named parts of a running bridge. None is supposed to end unasked: one that does is reported by
//! name, whether it ended with an error, with a panic, or silently.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::runtime::Builder;
use tokio::task::{Id, JoinSet};

/// How long to wait, at the end of a thread, for calls into client libraries that still block.
const LEFTOVERS: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct Tasks {
    set: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
    /// The results of those that have ended.
    ended: HashMap<&'static str, anyhow::Result<()>>,
}

impl Tasks {
    pub(crate) fn spawn(
        &mut self,
        name: &'static str,
        body: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let id = self.set.spawn(body).id();
        self.names.insert(id, name);
    }

    /// Waits until the named part has ended, even if that was long ago. Returns its result only once.
    /// Cancelling the wait loses nothing.
    pub(crate) async fn end_of(&mut self, name: &'static str) -> anyhow::Result<()> {
        loop {
            if let Some(result) = self.ended.remove(name) {
                return result;
            }
            if self.next().await.is_none() {
                return Ok(()); // its result was already returned
            }
        }
    }

    /// Waits for the first part to end, and returns which one it was and why.
    pub(crate) async fn first_end(&mut self) -> anyhow::Error {
        let Some(name) = self.next().await else { return anyhow!("nothing was running") };
        match self.ended.insert(name, Ok(())) {
            Some(Err(error)) => error,
            _ => anyhow!("the {name} ended unexpectedly"),
        }
    }

    async fn next(&mut self) -> Option<&'static str> {
        let (id, result) = match self.set.join_next_with_id().await? {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(anyhow!("it panicked: {error}"))),
        };
        let name = self.names.get(&id).copied().unwrap_or_default();
        self.ended.insert(name, result.with_context(|| format!("the {name} failed")));
        Some(name)
    }
}

/// Runs a future that sometimes blocks, and everything that it spawns, on a separate thread so that it
/// does not delay anything else.
pub(crate) async fn on_own_thread(
    name: &str,
    body: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) -> anyhow::Result<()> {
    let (done, result) = tokio::sync::oneshot::channel();
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start a runtime")?;
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let result = runtime.block_on(body);
            runtime.shutdown_timeout(LEFTOVERS);
            done.send(result)
        })
        .context("cannot start a thread")?;
    result.await.context("it panicked")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_to_end_is_named_with_its_reason() {
        for (name, expected) in [
            ("quiet part", "the quiet part ended unexpectedly"),
            ("failing part", "the failing part failed: no luck"),
            ("panicking part", "the panicking part failed: it panicked: "),
            ("thread", "the thread failed: it panicked"),
        ] {
            let mut tasks = Tasks::default();
            tasks.spawn("patient part", std::future::pending());
            match name {
                "quiet part" => tasks.spawn(name, async { Ok(()) }),
                "failing part" => tasks.spawn(name, async { Err(anyhow!("no luck")) }),
                "panicking part" => tasks.spawn(name, async { panic!("ouch") }),
                name => tasks.spawn(name, on_own_thread(name, async { panic!("ouch") })),
            }
            let said = format!("{:#}", tasks.first_end().await);
            assert!(said.starts_with(expected), "{said}");
            assert!(tasks.end_of(name).await.is_ok(), "it was reported, and counts as ended");
        }
    }

    #[tokio::test]
    async fn what_ended_while_another_was_waited_for_is_still_told() {
        let mut tasks = Tasks::default();
        tasks.spawn("early", async { Err(anyhow!("no luck")) });
        let (late, end) = tokio::sync::oneshot::channel();
        tasks.spawn("late", async { Ok(end.await?) });
        let too_short = Duration::from_millis(10);
        assert!(tokio::time::timeout(too_short, tasks.end_of("late")).await.is_err());
        late.send(()).unwrap();
        assert!(tasks.end_of("late").await.is_ok());
        assert_eq!(
            format!("{:#}", tasks.end_of("early").await.unwrap_err()),
            "the early failed: no luck"
        );
    }
}
