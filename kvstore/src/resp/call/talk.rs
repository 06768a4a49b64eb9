//! Commands on the connection and the daemon: logging in, names, databases, what redis clients ask first.

use std::fmt::Write;
use std::time::Duration;

use super::super::client::{DATABASES_MAX, LOGIN_FAILURES_MAX, Refusal, store_refusal};
use super::super::command::COMMANDS;
use super::super::connection::Next;
use super::super::pattern::fits;
use super::super::reply::Protocol;
use super::super::user::STANDARD_USER;
use super::Call;
use crate::executor::sleep;

/// The version of redis whose commands these are; clients choose what they send by it.
const REDIS_VERSION: &str = "7.0.0";
/// What a wrong password costs, so that nobody tries many.
const LOGIN_FAILURE_PAUSE: Duration = Duration::from_millis(200);
/// Longest name of a client.
const CLIENT_NAME_BYTES_MAX: usize = 128;

impl Call<'_> {
    pub(super) async fn auth(&mut self) -> Next {
        let (name, password) = match self.arguments.len() {
            2 => (STANDARD_USER.as_bytes(), self.argument(1)),
            3 => (self.argument(1), self.argument(2)),
            _ => {
                self.output.error("ERR syntax error");
                return Next::Command;
            }
        };
        match self.log_in(name, password).await {
            Ok(()) => self.output.simple("OK"),
            Err(refusal) => return self.log_in_failed(&refusal),
        }
        Next::Command
    }

    async fn log_in(&mut self, name: &[u8], password: &[u8]) -> Result<(), Refusal> {
        if !self.client.door.has_users() {
            return Err(
                "ERR AUTH <password> called without any password configured for the default \
                user. Are you sure your configuration is correct? Users are in kv.resp.users_file"
                    .to_owned(),
            );
        }
        // Taken before the look at the users: a file read in between is looked at again.
        let edition = self.client.door.users.edition();
        let Some(user) = self.client.door.users.log_in(name, password) else {
            self.client.login_failures += 1;
            sleep(LOGIN_FAILURE_PAUSE).await;
            return Err("WRONGPASS invalid username-password pair or user is disabled.".to_owned());
        };
        self.client.log_in(user, edition).map_err(|error| store_refusal(&error))
    }

    fn log_in_failed(&mut self, refusal: &str) -> Next {
        self.output.error(refusal);
        let is_guessing = self.client.login_failures >= LOGIN_FAILURES_MAX;
        if is_guessing { Next::Close } else { Next::Command }
    }

    pub(super) async fn hello(&mut self) -> Next {
        match self.hello_options().await {
            Ok(protocol) => {
                self.output.set_protocol(protocol);
                self.say_hello();
                Next::Command
            }
            Err(refusal) => self.log_in_failed(&refusal),
        }
    }

    /// `HELLO [version [AUTH name password] [SETNAME name]]`
    async fn hello_options(&mut self) -> Result<Protocol, Refusal> {
        let protocol = match self.arguments.get(1) {
            None => self.output.protocol(),
            Some(b"2") => Protocol::Two,
            Some(b"3") => Protocol::Three,
            Some(_) => return Err("NOPROTO unsupported protocol version".to_owned()),
        };
        let mut index = 2;
        while index < self.arguments.len() {
            if self.arguments.is(index, "AUTH") && index + 2 < self.arguments.len() {
                self.log_in(self.argument(index + 1), self.argument(index + 2)).await?;
                index += 3;
            } else if self.arguments.is(index, "SETNAME") && index + 1 < self.arguments.len() {
                self.set_name(self.argument(index + 1))?;
                index += 2;
            } else {
                let option = String::from_utf8_lossy(self.argument(index)).into_owned();
                return Err(format!("ERR Syntax error in HELLO option '{option}'"));
            }
        }
        if self.client.is_logged_in() {
            return Ok(protocol);
        }
        Err("NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO \
             <proto> AUTH <user> <pass> option can be used to authenticate the client and select \
             the RESP protocol version at the same time"
            .to_owned())
    }

    fn say_hello(&mut self) {
        self.output.map(7);
        for (name, value) in [
            ("server", "redis"),
            ("version", REDIS_VERSION),
            ("mode", "standalone"),
            ("role", "master"),
        ] {
            self.output.bulk(name.as_bytes());
            self.output.bulk(value.as_bytes());
        }
        self.output.bulk(b"proto");
        self.output.integer(if self.output.protocol() == Protocol::Three { 3 } else { 2 });
        self.output.bulk(b"id");
        self.output.integer(self.client.number);
        self.output.bulk(b"modules");
        self.output.array(0);
    }

    pub(super) fn ping(&mut self) -> Result<(), Refusal> {
        match self.arguments.len() {
            1 => self.output.simple("PONG"),
            2 => self.output.bulk(self.argument(1)),
            _ => return Err("ERR wrong number of arguments for 'ping' command".to_owned()),
        }
        Ok(())
    }

    pub(super) fn echo(&mut self) -> Result<(), Refusal> {
        self.output.bulk(self.argument(1));
        Ok(())
    }

    pub(super) fn reset(&mut self) -> Result<(), Refusal> {
        self.client.reset();
        self.output.set_protocol(Protocol::Two);
        self.output.simple("RESET");
        Ok(())
    }

    pub(super) fn select(&mut self) -> Result<(), Refusal> {
        let text = std::str::from_utf8(self.argument(1)).unwrap_or_default();
        let database: i64 = text.parse().map_err(|_| "ERR invalid DB index")?;
        let database = u32::try_from(database).ok().filter(|database| *database < DATABASES_MAX);
        let database = database.ok_or("ERR DB index is out of range")?;
        self.client.select(database).map_err(|error| store_refusal(&error))?;
        self.output.simple("OK");
        Ok(())
    }

    pub(super) fn client(&mut self) -> Result<(), Refusal> {
        let is = |word: &str| self.arguments.is(1, word);
        if is("SETINFO") || is("NO-EVICT") || is("NO-TOUCH") {
            // What a client says of itself in passing: heard, and of no use here.
            self.output.simple("OK");
        } else if is("SETNAME") && self.arguments.len() == 3 {
            self.set_name(self.argument(2))?;
            self.output.simple("OK");
        } else if is("GETNAME") {
            match self.client.name.as_slice() {
                [] => self.output.nil(),
                name => self.output.bulk(name),
            }
        } else if is("ID") {
            self.output.integer(self.client.number);
        } else if is("LIST") || is("INFO") {
            // A client sees itself: others may be of other users.
            let line = self.description();
            self.output.bulk(line.as_bytes());
        } else {
            return Err(self.unknown_subcommand("CLIENT"));
        }
        Ok(())
    }

    fn set_name(&mut self, name: &[u8]) -> Result<(), Refusal> {
        if name.len() > CLIENT_NAME_BYTES_MAX || name.iter().any(|byte| !byte.is_ascii_graphic()) {
            return Err("ERR Client names cannot contain spaces, newlines or special characters."
                .to_owned());
        }
        self.client.name = name.to_vec();
        Ok(())
    }

    fn description(&self) -> String {
        let client = &self.client;
        let name = String::from_utf8_lossy(&client.name).into_owned();
        let resp = if self.output.protocol() == Protocol::Three { 3 } else { 2 };
        format!(
            "id={} addr={} laddr={} name={name} db={} user={} resp={resp}\n",
            client.number,
            client.peer,
            client.door.listen,
            client.database,
            client.user(),
        )
    }

    /// How many there are; what each is for stands in our docs and not here.
    pub(super) fn command(&mut self) -> Result<(), Refusal> {
        let is = |word: &str| self.arguments.is(1, word);
        if self.arguments.len() == 1 || is("INFO") || is("LIST") {
            self.output.array(0);
        } else if is("COUNT") {
            self.output.integer(COMMANDS.len() as u64);
        } else if is("DOCS") {
            self.output.map(0);
        } else {
            return Err(self.unknown_subcommand("COMMAND"));
        }
        Ok(())
    }

    /// CONFIG GET knows what benchmarks and libraries look at.
    pub(super) fn config(&mut self) -> Result<(), Refusal> {
        if !self.arguments.is(1, "GET") || self.arguments.len() < 3 {
            return Err(
                "ERR of CONFIG only CONFIG GET parameter is known; the rest stands in the \
                daemon's configuration file"
                    .to_owned(),
            );
        }
        let clients_max = self.client.terms.config.clients_max.to_string();
        let databases = DATABASES_MAX.to_string();
        let known = [
            ("save", ""),
            ("appendonly", "no"),
            ("databases", databases.as_str()),
            ("maxclients", clients_max.as_str()),
        ];
        let arguments = self.arguments;
        let asked = |name: &str| {
            arguments.from(2).any(|pattern| fits(&pattern.to_ascii_lowercase(), name.as_bytes()))
        };
        let found: Vec<_> = known.into_iter().filter(|(name, _)| asked(name)).collect();
        self.output.map(found.len());
        for (name, value) in found {
            self.output.bulk(name.as_bytes());
            self.output.bulk(value.as_bytes());
        }
        Ok(())
    }

    /// Sections of redis that its tools read; the daemon's own numbers are its metrics.
    pub(super) fn info(&mut self) -> Result<(), Refusal> {
        let door = &self.client.door;
        let house = self.client.store.house();
        let used: u64 = house.namespaces.all().iter().map(|namespace| namespace.used_bytes()).sum();
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "# Server\r\nredis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\n\
             cognitora_version:{}\r\nprocess_id:{}\r\ntcp_port:{}\r\nuptime_in_seconds:{}\r\n\r\n\
             # Clients\r\nconnected_clients:{}\r\nmaxclients:{}\r\n\r\n\
             # Memory\r\nused_memory:{used}\r\nmaxmemory:{}\r\nmaxmemory_policy:allkeys-lfu\r\n\r\n\
             # Stats\r\nevicted_keys:{}\r\n\r\n\
             # Replication\r\nrole:master\r\nconnected_slaves:0\r\n\r\n\
             # Cluster\r\ncluster_enabled:0\r\n",
            env!("CARGO_PKG_VERSION"),
            std::process::id(),
            door.listen.port(),
            door.began.elapsed().as_secs(),
            door.clients(),
            self.client.terms.config.clients_max,
            house.stats.budget_bytes.get(),
            house.stats.evictions.get(),
        );
        self.output.bulk(text.as_bytes());
        Ok(())
    }

    fn unknown_subcommand(&self, command: &str) -> Refusal {
        let word = self.argument(1);
        let word = String::from_utf8_lossy(&word[..word.len().min(128)]).into_owned();
        format!("ERR unknown subcommand '{word}'. Try {command} HELP.")
    }
}
