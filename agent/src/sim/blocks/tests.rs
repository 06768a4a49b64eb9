//! The block cache against a naive model: plain vectors, everything searched, nothing clever.

use proptest::prelude::*;

use super::*;

/// A block named by its path from the first block, so parents are visible in the name.
fn digests(path: &[u8]) -> Vec<Digest> {
    let seed = Digest([0; 32]);
    let mut parent = seed;
    path.iter()
        .map(|step| {
            parent = dataplane::digest::chain(&parent, &[*step]);
            parent
        })
        .collect()
}

/// What a request holds, in cache and model alike.
#[derive(Clone, Debug)]
struct Holder {
    path: Vec<u8>,
    held: usize,
    private: usize,
}

/// The naive model: stored paths in the order they became idle; held ones are counted, not tracked.
#[derive(Default)]
struct Model {
    /// (path, last released); position in time is a plain counter.
    stored: Vec<(Vec<u8>, u64)>,
    now: u64,
}

impl Model {
    fn holders(holders: &[Holder], path: &[u8]) -> usize {
        holders.iter().filter(|h| h.held >= path.len() && h.path[..path.len()] == *path).count()
    }

    fn contains(&self, path: &[u8]) -> bool {
        self.stored.iter().any(|(stored, _)| stored == path)
    }

    /// The idle block released longest ago.
    fn remove_oldest(&mut self, holders: &[Holder]) -> Vec<u8> {
        let (at, _) = self
            .stored
            .iter()
            .enumerate()
            .filter(|(_, (path, _))| Self::holders(holders, path) == 0)
            .min_by_key(|(_, (_, released))| *released)
            .unwrap();
        self.stored.remove(at).0
    }

    fn release(&mut self, before: &Holder, after: &[Holder]) {
        for length in (1..=before.held).rev() {
            let path = &before.path[..length];
            if Self::holders(after, path) == 0 {
                self.now += 1;
                let now = self.now;
                self.stored.iter_mut().find(|(stored, _)| stored == path).unwrap().1 = now;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Action {
    /// A request with this path takes what matches and reserves the rest.
    Begin(Vec<u8>),
    /// The request at this index stores its next block.
    Store(prop::sample::Index),
    /// The request at this index ends.
    End(prop::sample::Index),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let path = prop::collection::vec(0u8..2, 1..6);
    prop::collection::vec(
        prop_oneof![
            path.prop_map(Action::Begin),
            any::<prop::sample::Index>().prop_map(Action::Store),
            any::<prop::sample::Index>().prop_map(Action::Store),
            any::<prop::sample::Index>().prop_map(Action::End),
        ],
        1..120,
    )
}

fn check(cache: &BlockCache, model: &Model, holders: &[Holder]) {
    let private: usize = holders.iter().map(|holder| holder.private).sum();
    assert!(private + cache.stored() <= cache.blocks_max(), "never over the limit");
    assert_eq!(cache.stored(), model.stored.len());
    let mut held = 0;
    for (path, _) in &model.stored {
        let all = digests(path);
        let stored = &cache.stored[all.last().unwrap()];
        assert_eq!(stored.holders, Model::holders(holders, path), "holders of {path:?}");
        held += usize::from(stored.holders > 0);
        assert_eq!(cache.match_prefix(&all), path.len(), "no child without its parent");
    }
    assert_eq!(cache.used(), held + private);
}

proptest! {
    #[test]
    fn the_cache_does_what_the_naive_model_does(limit in 1usize..10, actions in actions()) {
        let mut cache = BlockCache::new(limit);
        let mut model = Model::default();
        let mut holders: Vec<Holder> = Vec::new();
        for action in actions {
            match action {
                Action::Begin(path) => begin(&mut cache, &mut model, &mut holders, path),
                Action::Store(_) | Action::End(_) if holders.is_empty() => {}
                Action::Store(index) => {
                    let holder = index.get(&holders).clone();
                    if holder.private > 0 {
                        let all = digests(&holder.path);
                        let parent = holder.held.checked_sub(1).map(|at| all[at]);
                        let path = &holder.path[..holder.held + 1];
                        let is_new = cache.store(all[holder.held], parent);
                        prop_assert_eq!(is_new, !model.contains(path));
                        if is_new {
                            model.stored.push((path.to_vec(), 0));
                        }
                        let at = index.index(holders.len());
                        holders[at].held += 1;
                        holders[at].private -= 1;
                    }
                }
                Action::End(index) => {
                    let holder = holders.remove(index.index(holders.len()));
                    cache.release(&digests(&holder.path)[..holder.held], holder.private);
                    model.release(&holder, &holders);
                }
            }
            check(&cache, &model, &holders);
        }
    }
}

fn begin(cache: &mut BlockCache, model: &mut Model, holders: &mut Vec<Holder>, path: Vec<u8>) {
    let all = digests(&path);
    let matched = cache.match_prefix(&all);
    let expected = (0..path.len()).take_while(|&at| model.contains(&path[..=at])).count();
    assert_eq!(matched, expected);
    let missing = path.len() - matched;
    if !cache.has_room(&all[..matched], missing) {
        return;
    }
    cache.hold(&all[..matched]);
    holders.push(Holder { path, held: matched, private: 0 });
    let mut removed = Vec::new();
    assert!(cache.reserve(missing, &mut removed), "room was promised");
    for digest in removed {
        let oldest = model.remove_oldest(holders);
        assert_eq!(Some(&digest), digests(&oldest).last(), "least recently used first");
    }
    holders.last_mut().unwrap().private = missing;
}

#[test]
fn a_shortage_changes_nothing() {
    let mut cache = BlockCache::new(2);
    let mut removed = Vec::new();
    assert!(cache.reserve(2, &mut removed));
    assert!(!cache.reserve(1, &mut removed));
    assert_eq!((cache.used(), cache.available(), removed.len()), (2, 0, 0));
}

#[test]
fn clearing_waits_for_the_last_holder() {
    let mut cache = BlockCache::new(2);
    let path = digests(&[1]);
    assert!(cache.reserve(1, &mut Vec::new()));
    assert!(cache.store(path[0], None));
    assert!(!cache.clear());
    cache.release(&path, 0);
    assert!(cache.clear());
    assert_eq!(cache.match_prefix(&path), 0);
}
