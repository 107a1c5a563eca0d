//! What this program was built from. `build.rs` finds it out.

pub(crate) const NUMBER: &str = env!("CARGO_PKG_VERSION");
/// With `-dirty` behind it where the sources were modified, or `unknown`.
pub(crate) const COMMIT: &str = env!("BUILT_WITH_COMMIT");
pub(crate) const RUSTC: &str = env!("BUILT_WITH_RUSTC");
pub(crate) const RUSTLS: &str = env!("BUILT_WITH_RUSTLS");
pub(crate) const RING: &str = env!("BUILT_WITH_RING");
/// librdkafka's.
pub(crate) const OPENSSL: &str = env!("BUILT_WITH_OPENSSL");
