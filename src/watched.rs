//! Noticing that files have changed, so that a renewed certificate or token needs no restart.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

/// How often watched files are looked at.
pub(crate) const LOOK: Duration = Duration::from_secs(2);

/// What a file's metadata shows of a change. The modification time alone does not: it stays when a file is
/// made readable, and a copy can bring an old one along.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stamp(Vec<Option<[i64; 7]>>);

impl Stamp {
    pub(crate) fn of<'p>(paths: impl IntoIterator<Item = &'p Path>) -> Self {
        let stamp = |path: &Path| {
            let data = std::fs::metadata(path).ok()?;
            Some([
                data.dev().cast_signed(),
                data.ino().cast_signed(),
                data.size().cast_signed(),
                data.mtime(),
                data.mtime_nsec(),
                data.ctime(),
                data.ctime_nsec(),
            ])
        };
        Stamp(paths.into_iter().map(stamp).collect())
    }
}
