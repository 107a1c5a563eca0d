//! What all readers together may hold in memory. Text is paid for before it is read, and its share comes back when
//! the last of it has been sent, or its reader is gone.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[derive(Clone)]
pub(crate) struct Budget {
    free: Arc<Semaphore>,
    /// The semaphore counts in `u32`: more than 4 GiB is as much as that.
    total: u32,
}

/// A part of the budget.
pub(crate) struct Share(OwnedSemaphorePermit);

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        let total = u32::try_from(bytes).unwrap_or(u32::MAX);
        Budget { free: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// So many bytes, or all that there are.
    pub(crate) fn at_most(&self, bytes: usize) -> usize {
        bytes.min(self.total as usize)
    }

    /// Waits for so many bytes, in turn; for all of the budget if they are more than that.
    pub(crate) async fn reserve(&self, bytes: usize) -> Share {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.total);
        let permits = self.free.clone().acquire_many_owned(bytes);
        Share(permits.await.expect("it is never closed"))
    }
}

/// A text and the share that pays for it.
struct Paid {
    text: String,
    _share: Share,
}

impl AsRef<[u8]> for Paid {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl Share {
    /// Gives back what the text does not need, and the rest once all of these bytes are dropped.
    pub(crate) fn pay_for(mut self, mut text: String) -> Bytes {
        text.shrink_to_fit();
        let unused = self.0.num_permits().saturating_sub(text.len());
        drop(self.0.split(unused));
        Bytes::from_owner(Paid { text, _share: self })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_share_comes_back_when_the_last_of_its_bytes_is_gone() {
        let budget = Budget::new(10);
        let share = budget.reserve(8).await;
        assert!(budget.reserve(3).now_or_never().is_none());
        let text = share.pay_for("12345".into());
        drop(budget.reserve(5).now_or_never().expect("what the text did not need is free"));
        let rest = text.slice(3..);
        drop(text);
        assert!(budget.reserve(6).now_or_never().is_none());
        drop(rest);
        assert!(budget.reserve(10).now_or_never().is_some());
    }

    #[tokio::test]
    async fn what_is_larger_than_the_budget_takes_all_of_it() {
        let budget = Budget::new(10);
        let text = budget.reserve(1000).await.pay_for("x".repeat(1000));
        assert!(budget.reserve(1).now_or_never().is_none());
        drop(text);
        assert!(budget.reserve(1).now_or_never().is_some());
    }
}
