//! Tasks of one thread that do something one at a time.

use std::cell::Cell;

use crate::signal::Signal;

/// What there is one of.
#[derive(Debug, Default)]
pub struct Turns {
    is_taken: Cell<bool>,
    ended: Signal,
}

/// The turn of one task. It ends when this is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
}

impl Turns {
    /// Waits for one's turn: first come, first served, but for who comes while one ends.
    pub async fn take(&self) -> Turn<'_> {
        loop {
            let rings = self.ended.rings();
            if !self.is_taken.replace(true) {
                return Turn { turns: self };
            }
            self.ended.rung_since(rings).await;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.is_taken.set(false);
        self.turns.ended.ring();
    }
}
