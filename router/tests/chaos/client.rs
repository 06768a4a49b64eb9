//! One request on a connection of its own, to the end of the connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Longer than the router lets an engine be silent: whoever waits so long hangs.
const SILENCE_MAX: Duration = Duration::from_secs(150);

/// The raw response.
///
/// # Errors
/// The socket's: the router must not let it come to that.
pub fn exchange(address: SocketAddr, body: &Value) -> std::io::Result<Vec<u8>> {
    let body = body.to_string();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    Ok(response)
}
