//! Some futures at once, their results in order. Bounded: what waits for a tier, waits a few at a time.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

/// Runs what `next` makes, at most `at_once` at a time, and gives the results in the order of making.
/// What is ready at once costs no turn of the executor.
pub async fn gather<F: Future>(
    mut next: impl Iterator<Item = F>,
    at_once: usize,
) -> Vec<F::Output> {
    let mut done: Vec<Option<F::Output>> = Vec::with_capacity(next.size_hint().0);
    let mut running: Vec<(usize, Pin<Box<F>>)> = Vec::new();
    let mut is_over = false;
    poll_fn(|context| {
        running.retain_mut(|(at, future)| match future.as_mut().poll(context) {
            Poll::Ready(output) => {
                done[*at] = Some(output);
                false
            }
            Poll::Pending => true,
        });
        while !is_over && running.len() < at_once.max(1) {
            let Some(future) = next.next() else {
                is_over = true;
                break;
            };
            let mut future = Box::pin(future);
            match future.as_mut().poll(context) {
                Poll::Ready(output) => done.push(Some(output)),
                Poll::Pending => {
                    running.push((done.len(), future));
                    done.push(None);
                }
            }
        }
        if is_over && running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    // Every place was filled before the last future was let go.
    done.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_lite::future::{block_on, yield_now};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn results_are_in_order_and_few_run_at_once(
            turns in prop::collection::vec(0usize..5, 0..60),
            at_once in 1usize..7,
        ) {
            let (running, most) = (Cell::new(0usize), Cell::new(0usize));
            let work = |(at, turns): (usize, &usize)| {
                let (turns, running, most) = (*turns, &running, &most);
                async move {
                    running.set(running.get() + 1);
                    most.set(most.get().max(running.get()));
                    for _ in 0..turns {
                        yield_now().await;
                    }
                    running.set(running.get() - 1);
                    at
                }
            };
            let results = block_on(gather(turns.iter().enumerate().map(work), at_once));
            prop_assert_eq!(results, (0..turns.len()).collect::<Vec<_>>());
            prop_assert!(most.get() <= at_once);
        }
    }
}
