//! Tasks on the real ring: woken from other threads, taking turns, and ended where they wait.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::mesh::{Inbox, reply};

#[test]
fn tasks_are_woken_by_any_thread_and_nothing_is_lost() {
    let inbox = Arc::new(Inbox::new(64));
    let senders: Vec<_> = (0..4u64)
        .map(|sender| {
            let inbox = inbox.clone();
            std::thread::spawn(move || {
                for number in 0..5_000 {
                    let mut thing = sender * 10_000 + number;
                    while let Err(back) = inbox.send(thing) {
                        thing = back;
                        std::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    let seen = Executor::new().unwrap().run(async move {
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 20_000 {
            assert!(seen.insert(inbox.receive().await));
        }
        seen.len()
    });
    assert_eq!(seen.unwrap(), 20_000);
    senders.into_iter().for_each(|sender| sender.join().unwrap());
}

#[test]
fn a_breath_lets_tasks_and_timers_go_on() {
    let turns = Executor::new().unwrap().run(async {
        let (turns, is_over) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let (other, end) = (turns.clone(), is_over.clone());
        let counting = spawn(async move {
            while !end.get() {
                other.set(other.get() + 1);
                breath().await;
            }
        });
        let rings = is_over.clone();
        let timer = spawn(async move {
            sleep(Duration::from_millis(5)).await;
            rings.set(true);
        });
        while !is_over.get() {
            breath().await;
        }
        timer.await;
        counting.await;
        turns.get()
    });
    assert!(turns.unwrap() > 1);
}

#[test]
fn the_end_drops_what_still_waits_and_late_wakers_do_no_harm() {
    struct Dropped(Rc<Cell<u32>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    let (answer, waiting) = reply::<u8>();
    let count = Executor::new()
        .unwrap()
        .run(async move {
            let count = Rc::new(Cell::new(0));
            let (one, two) = (Dropped(count.clone()), Dropped(count.clone()));
            let _detached = spawn(async move {
                let _one = one;
                waiting.answer().await
            });
            let _sleeping = spawn(async move {
                let _two = two;
                sleep(Duration::from_secs(3600)).await;
            });
            let begun = Instant::now();
            breath().await;
            assert!(begun.elapsed() < Duration::from_secs(3600));
            count
        })
        .unwrap();
    assert_eq!(count.get(), 2);
    answer.send(1);
}
