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
mod terms;
mod tls;
pub mod user;
mod watch;
pub mod wire;

use std::io::IoSlice;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use monoio::net::{TcpListener, TcpStream};

pub use self::door::{Door, DoorError};
pub use self::tls::{TlsFileError, TlsFiles};

use self::client::Client;
use self::connection::{Connection, Over};
use self::door::Admission;
use self::tls::Tls;
use self::watch::Watchdog;
use self::wire::Wire;
use crate::admin::ACCEPT_PAUSE;
use crate::executor::{sleep, spawn};
use crate::socket::Stream;
use crate::store::Store;

/// Lets clients in on `listener`, for ever. Runs on each shard, with the store of its thread.
pub async fn serve(door: Arc<Door>, listener: TcpListener, store: Store) {
    let dog = Rc::new(Watchdog::default());
    let looking = dog.clone();
    spawn(async move {
        loop {
            sleep(watch::TICK).await;
            looking.look(Instant::now());
        }
    });
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match door.admit() {
                Some(admission) => {
                    spawn(one(admission, stream, store.clone(), dog.clone()));
                }
                None => turn_away(stream),
            },
            Err(error) => {
                tracing::warn!(%error, "the RESP listener could not accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// As redis says it. A client that does not take these few bytes at once goes without.
fn turn_away(stream: TcpStream) {
    let line = [IoSlice::new(b"-ERR max number of clients reached\r\n")];
    let _ = Stream::from(stream).poll_write(&mut Context::from_waker(Waker::noop()), &line);
}

async fn one(admission: Admission, stream: TcpStream, store: Store, dog: Rc<Watchdog>) {
    let connections = store.house().stats.connections.with_label_values(&["resp"]);
    connections.inc();
    match open(&admission, stream, store, &dog) {
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

fn open(
    admission: &Admission,
    stream: TcpStream,
    store: Store,
    dog: &Rc<Watchdog>,
) -> std::io::Result<Connection> {
    let door = admission.door.clone();
    let terms = door.terms();
    let session = terms.tls.clone().map(Tls::new).transpose().map_err(std::io::Error::other)?;
    stream.set_nodelay(true)?;
    let peer = stream.peer_addr()?;
    let pace = terms.config.pace();
    let wire = Wire::new(stream.into(), session.map(Box::new), pace, dog.watch());
    let client = Client::new(door, terms, store, admission.number, peer);
    Ok(Connection::new(wire, client, Instant::now()))
}
