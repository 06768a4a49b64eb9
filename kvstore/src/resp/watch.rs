//! One watchdog for the connections of a core: who lets the daemon wait too long is cut off, at no cost to
//! a read or write that goes well.
//!
//! A connection says by when bytes must have come or gone by setting a cell. Every [`TICK`] the watchdog
//! looks at all of them and wakes those whose time is over; they find out by [`Watch::is_late`]. It
//! touches no socket.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

/// Between two looks: a limit of whole seconds is kept to a tenth of one.
pub const TICK: Duration = Duration::from_millis(100);

/// One connection's times.
#[derive(Default)]
pub struct Watch {
    read_by: Cell<Option<Instant>>,
    write_by: Cell<Option<Instant>>,
    is_late: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    place: Cell<usize>,
}

impl Watch {
    /// When the next bytes must have come; none: any time. What was late before is forgiven: if it still
    /// is, the next look says so.
    pub fn read_by(&self, deadline: Option<Instant>) {
        self.read_by.set(deadline);
        self.is_late.set(false);
    }

    /// When the next bytes must have gone; none: there are none.
    pub fn write_by(&self, deadline: Option<Instant>) {
        self.write_by.set(deadline);
        self.is_late.set(false);
    }

    /// Whether a time is over. If not, `waker` is woken when one is.
    pub fn is_late(&self, waker: &Waker) -> bool {
        let mut kept = self.waker.borrow_mut();
        match kept.as_mut() {
            Some(kept) => kept.clone_from(waker),
            None => *kept = Some(waker.clone()),
        }
        self.is_late.get()
    }

    fn look(&self, now: Instant) {
        let is_over = |by: &Cell<Option<Instant>>| by.get().is_some_and(|by| by <= now);
        if is_over(&self.read_by) || is_over(&self.write_by) {
            self.is_late.set(true);
            if let Some(waker) = self.waker.borrow().as_ref() {
                waker.wake_by_ref();
            }
        }
    }
}

/// All connections of one core.
#[derive(Default)]
pub struct Watchdog(RefCell<Vec<Rc<Watch>>>);

impl Watchdog {
    /// Takes a connection in.
    pub fn watch(self: &Rc<Self>) -> Watched {
        let watch = Rc::new(Watch::default());
        let mut all = self.0.borrow_mut();
        watch.place.set(all.len());
        all.push(watch.clone());
        Watched { watch, dog: self.clone() }
    }

    /// One look at all; to be called every [`TICK`].
    pub fn look(&self, now: Instant) {
        self.0.borrow().iter().for_each(|watch| watch.look(now));
    }
}

/// A connection is watched until this is dropped.
pub struct Watched {
    watch: Rc<Watch>,
    dog: Rc<Watchdog>,
}

impl Deref for Watched {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.watch
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut all = self.dog.0.borrow_mut();
        let place = self.watch.place.get();
        all.swap_remove(place);
        if let Some(moved) = all.get(place) {
            moved.place.set(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_late_is_told_and_connections_go_in_any_order() {
        let (dog, start) = (Rc::new(Watchdog::default()), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut all: Vec<Watched> = (0..5).map(|_| dog.watch()).collect();
        for (number, watch) in all.iter().enumerate() {
            watch.read_by(Some(at(number as u64 * 10)));
            watch.write_by(None);
        }
        drop(all.remove(1));
        drop(all.remove(3));
        all[1].read_by(None);
        dog.look(at(15));
        let late = |all: &[Watched]| -> Vec<bool> {
            all.iter().map(|watch| watch.is_late(Waker::noop())).collect()
        };
        assert_eq!(late(&all), [true, false, false]);
        all[1].write_by(Some(at(20)));
        dog.look(at(20));
        assert_eq!(late(&all), [true, true, false]);
        all[1].write_by(None);
        dog.look(at(21));
        assert_eq!(late(&all), [true, false, false]);
        drop(all);
        assert!(dog.0.borrow().is_empty());
    }
}
