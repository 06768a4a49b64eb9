//! One command carried out: who may, with which arguments, and then what it does.
//!
//! [`keys`] has the commands on blocks, [`talk`] those on the connection and the daemon. Each answers
//! exactly once, an error included.

mod keys;
mod talk;

use std::io;

use super::client::{Client, Refusal};
use super::command::{Entry, Verb};
use super::connection::{Next, Value};
use super::parse::Arguments;
use super::reply::Output;
use super::wire::Wire;

/// Arguments of an unknown command that its error shows, and their bytes in all, as in redis.
const SHOWN_BYTES_MAX: usize = 128;

/// A command and all it is carried out with.
pub(super) struct Call<'a> {
    pub(super) client: &'a mut Client,
    pub(super) arguments: &'a Arguments,
    pub(super) values: &'a mut Vec<Value>,
    pub(super) output: &'a mut Output,
    pub(super) wire: &'a mut Wire,
}

impl<'a> Call<'a> {
    /// Answers the command.
    pub(super) async fn run(mut self) -> io::Result<Next> {
        let entry = match self.entry() {
            Ok(entry) => entry,
            Err(refusal) => {
                self.output.error(&refusal);
                return Ok(Next::Command);
            }
        };
        let done = match entry.verb {
            Verb::Quit => {
                self.output.simple("OK");
                return Ok(Next::Close);
            }
            // One more failure and the client is somebody who guesses.
            Verb::Auth => return Ok(self.auth().await),
            Verb::Hello => return Ok(self.hello().await),
            Verb::Get => self.get().await,
            Verb::Set => self.set().await,
            Verb::SetNx => self.set_nx().await,
            Verb::Exists => self.exists().await,
            Verb::MGet => return self.mget().await.map(|()| Next::Command),
            Verb::MSet => self.mset().await,
            Verb::Del => self.del().await,
            Verb::StrLen => self.strlen().await,
            Verb::Type => self.kind().await,
            Verb::Ttl => self.ttl().await,
            Verb::Memory => self.memory().await,
            Verb::Scan => self.scan().await,
            Verb::DbSize => self.dbsize().await,
            Verb::FlushDb => self.flushdb().await,
            Verb::Keys => {
                Err("ERR KEYS is not supported: its reply has no bound; use SCAN".to_owned())
            }
            Verb::Expire => Err(keys::NO_EXPIRY.to_owned()),
            Verb::FlushAll => Err("ERR FLUSHALL is not supported: it would empty other users' \
                 namespaces; FLUSHDB empties this database"
                .to_owned()),
            Verb::Ping => self.ping(),
            Verb::Echo => self.echo(),
            Verb::Select => self.select(),
            Verb::Client => self.client(),
            Verb::Command => self.command(),
            Verb::Config => self.config(),
            Verb::Info => self.info(),
            Verb::Reset => self.reset(),
        };
        if let Err(refusal) = done {
            self.output.error(&refusal);
        }
        Ok(Next::Command)
    }

    /// The command, if it is one, with arguments, that the client may give.
    fn entry(&mut self) -> Result<&'static Entry, Refusal> {
        let name = self.argument(0);
        let Some(entry) = Entry::find(name) else {
            // Who is not logged in learns nothing of what there is.
            if !self.client.is_logged_in() {
                return Err("NOAUTH Authentication required.".to_owned());
            }
            return Err(unknown(self.arguments));
        };
        self.client.check(entry)?;
        if !entry.takes(self.arguments.len()) {
            return Err(format!("ERR wrong number of arguments for '{}' command", entry.name));
        }
        Ok(entry)
    }

    /// The argument at `index`; empty where there is none, which the arity excludes.
    fn argument(&self, index: usize) -> &'a [u8] {
        let arguments: &'a Arguments = self.arguments;
        arguments.get(index).unwrap_or_default()
    }
}

/// As redis words it, so that clients that look for the words find them.
fn unknown(arguments: &Arguments) -> Refusal {
    let name = arguments.get(0).unwrap_or_default();
    let name = String::from_utf8_lossy(&name[..name.len().min(SHOWN_BYTES_MAX)]).into_owned();
    let mut shown = String::new();
    for argument in arguments.from(1) {
        let room = SHOWN_BYTES_MAX.saturating_sub(shown.len());
        if room == 0 {
            break;
        }
        let argument = String::from_utf8_lossy(&argument[..argument.len().min(room)]);
        shown += &format!("'{argument}' ");
    }
    format!("ERR unknown command '{name}', with args beginning with: {shown}")
}
