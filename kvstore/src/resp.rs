//! The RESP door: stock clients of redis and LMCache store and fetch blocks over TCP.
//!
//! A value goes from the socket straight to its place in the arena, and from there straight to the
//! socket. One accept loop runs on each shard; a connection stays where it was accepted. Bytes to
//! commands is [`parse`]; who may what is [`user`] and [`command`]; the life of one connection is
//! `connection`. It keeps no block itself.

mod call;
mod client;
pub mod command;
pub mod config;
mod connection;
mod door;
pub mod parse;
pub mod pattern;
mod promise;
pub mod reply;
mod tls;
pub mod user;
pub mod wire;

use std::sync::Arc;
use std::time::Instant;

use futures_lite::AsyncWriteExt;
use glommio::net::{TcpListener, TcpStream};

pub use self::door::{Door, DoorError};
pub use self::tls::{TlsFileError, TlsFiles};

use self::client::Client;
use self::connection::{Connection, Over};
use self::door::Admission;
use self::tls::Tls;
use self::wire::Wire;
use crate::admin::ACCEPT_PAUSE;
use crate::store::Store;

/// Lets clients in on `listener`, for ever. Runs on each shard, with the store of its thread.
pub async fn serve(door: Arc<Door>, listener: TcpListener, store: Store) {
    loop {
        match listener.accept().await {
            Ok(stream) => match door.admit() {
                Some(admission) => {
                    glommio::spawn_local(one(admission, stream, store.clone())).detach();
                }
                None => {
                    glommio::spawn_local(turn_away(stream)).detach();
                }
            },
            Err(error) => {
                tracing::warn!(%error, "the RESP listener could not accept");
                glommio::timer::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// As redis says it. A client that does not take these few bytes at once goes without.
async fn turn_away(mut stream: TcpStream) {
    let _ = stream.set_write_timeout(Some(ACCEPT_PAUSE));
    let _ = stream.write_all(b"-ERR max number of clients reached\r\n").await;
}

async fn one(admission: Admission, stream: TcpStream, store: Store) {
    let connections = store.house().stats.connections.with_label_values(&["resp"]);
    connections.inc();
    match open(&admission, stream, store) {
        Ok(connection) => {
            let number = admission.number;
            match connection.serve().await {
                Over::Closed => {}
                over => tracing::debug!(client = number, %over, "a RESP client is gone"),
            }
        }
        Err(error) => tracing::debug!(%error, "a RESP client could not come in"),
    }
    connections.dec();
}

fn open(admission: &Admission, stream: TcpStream, store: Store) -> std::io::Result<Connection> {
    let door = admission.door.clone();
    let session = door.tls.clone().map(Tls::new).transpose().map_err(std::io::Error::other)?;
    let wire = Wire::new(stream, session.map(Box::new), door.config.pace())?;
    let client = Client::new(door, store, admission.number, wire.peer()?);
    Ok(Connection::new(wire, client, Instant::now()))
}
