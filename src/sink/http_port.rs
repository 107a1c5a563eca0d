//! Whether an HTTP server answers where a broker should: the port of its web page, or of another program. Asked only
//! for an operator, after the broker's own protocol got no answer.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A web server that is well answers sooner.
const PATIENCE: Duration = Duration::from_secs(1);

/// The first of these addresses, `host:port`, at which one answers.
pub(super) async fn find(addresses: &[String]) -> Option<&str> {
    for address in addresses {
        if timeout(PATIENCE, is_http(address)).await == Ok(Some(true)) {
            return Some(address);
        }
    }
    None
}

async fn is_http(address: &str) -> Option<bool> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(b"HEAD / HTTP/1.0\r\n\r\n").await.ok()?;
    let mut begin = [0; 5];
    stream.read_exact(&mut begin).await.ok()?;
    Some(&begin == b"HTTP/")
}
