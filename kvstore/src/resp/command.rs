//! The commands the RESP door knows: name, number of arguments, and what a user needs for it.

use super::user::Right;

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the redis command of its name")]
pub enum Verb {
    Auth,
    Client,
    Command,
    Config,
    DbSize,
    Del,
    Echo,
    Exists,
    /// EXPIRE and its kin: blocks leave by eviction, not by time.
    Expire,
    /// FLUSHALL: one user must not empty another's namespace.
    FlushAll,
    FlushDb,
    Get,
    Hello,
    Info,
    /// KEYS would be one unbounded reply.
    Keys,
    MGet,
    MSet,
    Memory,
    Ping,
    Quit,
    Reset,
    Scan,
    Select,
    Set,
    SetNx,
    StrLen,
    Ttl,
    Type,
}

/// What a client needs for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: it is how one logs in or leaves.
    Nothing,
    /// A login.
    Login,
    /// A login as a user that may do this.
    Right(Right),
}

/// One command as clients write it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name in small letters, as errors show it.
    pub name: &'static str,
    /// What it is.
    pub verb: Verb,
    /// Arguments with the name: so many, or, below zero, at least so many.
    pub arity: i32,
    /// What a client needs for it.
    pub need: Need,
}

const fn entry(name: &'static str, verb: Verb, arity: i32, need: Need) -> Entry {
    Entry { name, verb, arity, need }
}

const READ: Need = Need::Right(Right::Read);
const WRITE: Need = Need::Right(Right::Write);
const ADMIN: Need = Need::Right(Right::Admin);

/// Every command, those of the data path first.
pub const COMMANDS: &[Entry] = &[
    entry("get", Verb::Get, 2, READ),
    entry("set", Verb::Set, -3, WRITE),
    entry("exists", Verb::Exists, -2, READ),
    entry("mget", Verb::MGet, -2, READ),
    entry("mset", Verb::MSet, -3, WRITE),
    entry("del", Verb::Del, -2, WRITE),
    entry("unlink", Verb::Del, -2, WRITE),
    entry("strlen", Verb::StrLen, 2, READ),
    entry("setnx", Verb::SetNx, 3, WRITE),
    entry("type", Verb::Type, 2, READ),
    entry("ttl", Verb::Ttl, 2, READ),
    entry("pttl", Verb::Ttl, 2, READ),
    entry("memory", Verb::Memory, -2, READ),
    entry("scan", Verb::Scan, -2, READ),
    entry("keys", Verb::Keys, 2, READ),
    entry("dbsize", Verb::DbSize, 1, READ),
    entry("expire", Verb::Expire, -3, WRITE),
    entry("pexpire", Verb::Expire, -3, WRITE),
    entry("expireat", Verb::Expire, -3, WRITE),
    entry("pexpireat", Verb::Expire, -3, WRITE),
    entry("setex", Verb::Expire, 4, WRITE),
    entry("psetex", Verb::Expire, 4, WRITE),
    entry("flushdb", Verb::FlushDb, -1, ADMIN),
    entry("flushall", Verb::FlushAll, -1, ADMIN),
    entry("auth", Verb::Auth, -2, Need::Nothing),
    entry("hello", Verb::Hello, -1, Need::Nothing),
    entry("quit", Verb::Quit, -1, Need::Nothing),
    entry("reset", Verb::Reset, 1, Need::Nothing),
    entry("ping", Verb::Ping, -1, Need::Login),
    entry("echo", Verb::Echo, 2, Need::Login),
    entry("select", Verb::Select, 2, Need::Login),
    entry("client", Verb::Client, -2, Need::Login),
    entry("command", Verb::Command, -1, Need::Login),
    entry("config", Verb::Config, -2, Need::Login),
    entry("info", Verb::Info, -1, Need::Login),
];

impl Entry {
    /// The command called `name`, in letters of any size.
    pub fn find(name: &[u8]) -> Option<&'static Entry> {
        COMMANDS.iter().find(|entry| entry.name.as_bytes().eq_ignore_ascii_case(name))
    }

    /// Whether so many arguments are right for it, its name included.
    pub fn takes(&self, count: usize) -> bool {
        let bound = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { count >= bound } else { count == bound }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_stand_once() {
        assert_eq!(Entry::find(b"gEt").map(|entry| entry.verb), Some(Verb::Get));
        assert!(Entry::find(b"ge").is_none() && Entry::find(b"").is_none());
        for entry in COMMANDS {
            assert_eq!(entry.name, entry.name.to_lowercase());
            assert_eq!(COMMANDS.iter().filter(|other| other.name == entry.name).count(), 1);
        }
    }

    #[test]
    fn arity_is_exact_or_a_minimum() {
        let (get, set) = (Entry::find(b"get").unwrap(), Entry::find(b"set").unwrap());
        assert!(get.takes(2) && !get.takes(1) && !get.takes(3));
        assert!(set.takes(3) && set.takes(9) && !set.takes(2));
    }
}
