//! A piece of a feed as text, in one of the two forms, of bounded length.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::budget::Share;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Form {
    /// Server-sent events.
    Stream,
    /// NDJSON.
    Page,
}

/// What a feed is asked to fill. It holds what pays for it, so that also a read that nobody waits for any more is
/// paid for until it ends.
pub(super) struct Chunk {
    form: Form,
    text: String,
    after: u64,
    limit: usize,
    max_bytes: usize,
    needs: Option<usize>,
    share: Share,
}

impl Chunk {
    pub(super) fn new(
        form: Form,
        after: u64,
        limit: usize,
        max_bytes: usize,
        share: Share,
    ) -> Self {
        // Of full size at once: growing step by step takes more memory for a moment, and leaves holes behind.
        let text = String::with_capacity(max_bytes);
        Chunk { form, text, after, limit, max_bytes, needs: None, share }
    }

    /// The number of the last line that is in it: the next one to be added is the first one after it.
    pub(super) fn after(&self) -> u64 {
        self.after
    }

    /// How many more lines are wanted.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Adds a line, and says whether more are wanted.
    pub(super) fn push(&mut self, number: u64, json: &str) -> ControlFlow<()> {
        let (before, after) = match self.form {
            Form::Stream => (format!("{}id: {number}\ndata: ", self.gap(number)), "\n\n"),
            Form::Page => (String::new(), "\n"),
        };
        let needed = before.len() + json.len() + after.len();
        if self.text.len() + needed > self.max_bytes {
            if self.text.is_empty() {
                self.needs = Some(needed);
            }
            return ControlFlow::Break(());
        }
        [&before, json, after].into_iter().for_each(|part| self.text.push_str(part));
        self.passed(number)
    }

    /// Passes over a line that cannot be shown.
    pub(super) fn skip(&mut self, number: u64) -> ControlFlow<()> {
        let gap = self.gap(number);
        self.text.push_str(&gap);
        self.passed(number)
    }

    fn passed(&mut self, number: u64) -> ControlFlow<()> {
        self.after = number.max(self.after + 1); // never back: a damaged file may not be in order
        self.limit -= 1;
        if self.limit == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// A reader of a stream may have fallen behind the oldest line that is kept: what to tell it.
    fn gap(&self, number: u64) -> String {
        match number.saturating_sub(self.after + 1) {
            missed if missed > 0 && self.form == Form::Stream => missed_events(missed, number - 1),
            _ => String::new(),
        }
    }

    /// The text and the number of its last line; or how many bytes its first line takes, if those are too many.
    pub(super) fn finish(self) -> Result<(Bytes, u64), usize> {
        match self.needs {
            Some(bytes) => Err(bytes),
            None => Ok((self.share.pay_for(self.text), self.after)),
        }
    }
}

/// An event of a separate type, which readers that do not listen for it never see.
pub(super) fn missed_events(events: u64, next_after: u64) -> String {
    format!("event: missed\ndata: {{\"events\":{events},\"next_after\":{next_after}}}\n\n")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::super::budget::Budget;
    use super::*;

    fn chunk(form: Form, after: u64, limit: usize, max_bytes: usize) -> Chunk {
        let share = Budget::new(1000).reserve(max_bytes).now_or_never().unwrap();
        Chunk::new(form, after, limit, max_bytes, share)
    }

    const MORE: ControlFlow<()> = ControlFlow::Continue(());
    const ENOUGH: ControlFlow<()> = ControlFlow::Break(());

    #[test]
    fn a_chunk_takes_as_many_lines_and_bytes_as_are_wanted() {
        let mut page = chunk(Form::Page, 0, 2, 100);
        assert_eq!((page.push(1, "{}"), page.push(2, "{}")), (MORE, ENOUGH));
        assert_eq!(page.finish(), Ok(("{}\n{}\n".into(), 2)));

        let mut page = chunk(Form::Page, 0, 10, 7);
        assert_eq!((page.push(1, "{}"), page.skip(2), page.push(3, "{--}")), (MORE, MORE, ENOUGH));
        assert_eq!(page.finish(), Ok(("{}\n".into(), 2)), "the third is for the next page");

        let mut page = chunk(Form::Page, 0, 10, 3);
        assert_eq!(page.push(1, "{--}"), ENOUGH);
        assert_eq!(page.finish(), Err(5), "it cannot be cut");
    }

    #[test]
    fn a_stream_says_what_is_missing() {
        let mut stream = chunk(Form::Stream, 3, 10, 1000);
        assert_eq!((stream.push(4, "{}"), stream.push(7, "{}")), (MORE, MORE));
        let missed = "event: missed\ndata: {\"events\":2,\"next_after\":6}\n\n";
        let expected = format!("id: 4\ndata: {{}}\n\n{missed}id: 7\ndata: {{}}\n\n");
        assert_eq!(stream.finish(), Ok((expected.into(), 7)));
        let mut damaged = chunk(Form::Stream, 4, 10, 1000);
        assert_eq!(damaged.skip(7), MORE);
        assert_eq!(damaged.finish(), Ok((missed.into(), 7)));
    }
}
