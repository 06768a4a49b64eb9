//! Metrics and health over HTTP/1.1, on one shard.
//!
//! Two paths, one request a connection: this is for a scraper and a probe, not for users.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use monoio::net::TcpListener;

use crate::executor::{sleep, spawn};
use crate::socket::Stream;
use crate::store::Store;

/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Connections served at once; more are closed.
const CONNECTIONS_MAX: usize = 64;
/// How long a connection may take in all.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);
/// Pause after the system would give no connection: out of descriptors, for example.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves on `listener` for ever.
pub async fn serve(listener: TcpListener, store: Store) {
    let open = Rc::new(Cell::new(0usize));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => Stream::from(stream),
            Err(error) => {
                tracing::warn!(%error, "the metrics listener could not accept");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if open.get() >= CONNECTIONS_MAX {
            continue;
        }
        open.set(open.get() + 1);
        let (store, open) = (store.clone(), open.clone());
        spawn(async move {
            let late = async {
                sleep(CONNECTION_TIME_MAX).await;
                Ok(())
            };
            // A scraper that hangs up early is its own problem.
            let _ = futures_lite::future::or(one(stream, store), late).await;
            open.set(open.get() - 1);
        });
    }
}

/// Reads one request and answers it.
async fn one(mut stream: Stream, store: Store) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    let path = loop {
        let count = stream.read(&mut piece).await?;
        if count == 0 || head.len() + count > HEAD_BYTES_MAX {
            return Ok(());
        }
        head.extend_from_slice(&piece[..count]);
        match path(&head) {
            Ok(Some(path)) => break path,
            Ok(None) => {}
            Err(()) => return answer(&mut stream, "400 Bad Request", b"not HTTP/1.1\n").await,
        }
    };
    match path.as_str() {
        "/metrics" => {
            store.measure().await;
            answer(&mut stream, "200 OK", &store.house().stats.exposition()).await
        }
        "/healthz" => answer(&mut stream, "200 OK", b"ok\n").await,
        _ => answer(&mut stream, "404 Not Found", b"there are /metrics and /healthz\n").await,
    }
}

/// The path asked for, once the head is complete.
fn path(head: &[u8]) -> Result<Option<String>, ()> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {
            let path = request.path.unwrap_or_default();
            Ok(Some(path.split('?').next().unwrap_or_default().to_owned()))
        }
        Ok(httparse::Status::Partial) => Ok(None),
        Err(_) => Err(()),
    }
}

async fn answer(stream: &mut Stream, status: &str, body: &[u8]) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await
}
