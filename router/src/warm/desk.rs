//! Where the cores put wishes for agents, and find the answers: agents are spoken to on the house thread
//! alone ([`crate::kv_feed`]), requests run on all.
//!
//! It owns the open tickets and what is on its way to the house thread, both bounded. A wish rings a bell,
//! a socket pair as of the waiting room ([`crate::hall`]); an answer is looked for by who waits.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dataplane::feed::Warm;

/// Wishes that are open at once, over all cores. More than an agent serves within any request's patience.
const TICKETS_MAX: usize = 1_024;

/// Wishes and answers.
#[derive(Debug, Default)]
pub struct Desk(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    button: Option<UnixStream>,
    tickets_given: u64,
    open: HashMap<u64, Open>,
    out: Vec<(String, Warm)>,
}

#[derive(Debug)]
struct Open {
    agent: String,
    answer: Option<u32>,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The house thread's end of the bell. Until it is asked for, and after it is gone, nothing is taken.
    ///
    /// # Errors
    /// The system's.
    pub fn hire(&self) -> io::Result<UnixStream> {
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        self.lock().button = Some(far);
        Ok(near)
    }

    /// Puts down a wish for the agent at that address; its ticket is given here. None: nobody takes it, or too
    /// many are open.
    pub fn ask(&self, agent: &str, wish: Warm) -> Option<Asked<'_>> {
        let mut inner = self.lock();
        if inner.open.len() >= TICKETS_MAX || inner.out.len() >= TICKETS_MAX {
            return None;
        }
        // A full socket holds rings that were not heard yet: one more would say nothing new.
        match inner.button.as_mut()?.write(&[1]) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return None,
            _ => {}
        }
        inner.tickets_given += 1;
        let ticket = inner.tickets_given;
        inner.open.insert(ticket, Open { agent: agent.to_owned(), answer: None });
        inner.out.push((agent.to_owned(), Warm { ticket, ..wish }));
        Some(Asked { desk: self, ticket })
    }

    /// Takes the wishes put down, with the agent's address of each; those nobody waits for any more are left
    /// out.
    pub fn take(&self) -> Vec<(String, Warm)> {
        let mut inner = self.lock();
        let mut out = std::mem::take(&mut inner.out);
        out.retain(|(_, wish)| inner.open.contains_key(&wish.ticket));
        out
    }

    /// The agent at that address has answered. One that was not asked has nothing to say.
    pub fn answer(&self, agent: &str, ticket: u64, tokens: u32) {
        let mut inner = self.lock();
        let open = inner.open.get_mut(&ticket).filter(|open| open.agent == agent);
        if let Some(open) = open {
            open.answer = Some(tokens);
        }
    }

    /// The line to the agent broke: it answers nothing any more.
    pub fn close(&self, agent: &str) {
        let mut inner = self.lock();
        for open in inner.open.values_mut().filter(|open| open.agent == agent) {
            open.answer.get_or_insert(0);
        }
    }
}

/// An open wish. Whoever drops it does not wait for it any more.
#[derive(Debug)]
pub struct Asked<'a> {
    desk: &'a Desk,
    ticket: u64,
}

impl Asked<'_> {
    /// Tokens the worker was given, once that is known.
    pub fn answer(&self) -> Option<u32> {
        self.desk.lock().open.get(&self.ticket)?.answer
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.desk.lock().open.remove(&self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn wish() -> Warm {
        Warm { worker: "w".into(), ticket: 0, deadline_ms: 1, blocks_min: 1, digests: vec![] }
    }

    #[test]
    fn a_wish_rings_is_taken_once_and_answered_by_whom_it_was_for() {
        let desk = Desk::default();
        assert!(desk.ask("a", wish()).is_none(), "nobody listens");
        let mut bell = desk.hire().unwrap();
        let asked = desk.ask("a", wish()).unwrap();
        assert_eq!(bell.read(&mut [0; 8]).unwrap(), 1);
        let taken = desk.take();
        assert_eq!((taken.len(), taken[0].0.as_str(), taken[0].1.ticket), (1, "a", 1));
        assert!(desk.take().is_empty());
        desk.answer("b", 1, 7);
        desk.answer("a", 2, 7);
        assert_eq!(asked.answer(), None);
        desk.answer("a", 1, 48);
        assert_eq!(asked.answer(), Some(48));
        desk.close("a");
        assert_eq!(asked.answer(), Some(48), "it was answered before");
        drop(asked);
        desk.answer("a", 1, 48);
        assert!(desk.lock().open.is_empty());
    }

    #[test]
    fn who_gave_up_is_not_asked_for_and_who_is_cut_off_is_told() {
        let desk = Desk::default();
        let _bell = desk.hire().unwrap();
        drop(desk.ask("a", wish()).unwrap());
        let asked = desk.ask("a", wish()).unwrap();
        let other = desk.ask("b", wish()).unwrap();
        assert_eq!(desk.take().iter().map(|(_, wish)| wish.ticket).collect::<Vec<_>>(), [2, 3]);
        desk.close("a");
        assert_eq!((asked.answer(), other.answer()), (Some(0), None));
    }

    #[test]
    fn tickets_are_bounded_also_while_nobody_hears_the_bell() {
        let desk = Desk::default();
        let bell = desk.hire().unwrap();
        let held: Vec<_> = std::iter::from_fn(|| desk.ask("a", wish())).collect();
        assert_eq!(held.len(), TICKETS_MAX);
        drop(held);
        assert!(desk.ask("a", wish()).is_none(), "what was put down is still there");
        assert!(desk.take().is_empty(), "but nobody waits for it");
        assert!(desk.ask("a", wish()).is_some());
        drop(bell);
        assert!(desk.ask("a", wish()).is_none(), "the house thread is gone");
    }
}
