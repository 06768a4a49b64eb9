//! The translator against a model that knows no digests of its own but computes everything anew.

use std::collections::{BTreeMap, BTreeSet};

use dataplane::digest::of_tokens;
use proptest::prelude::*;

use super::*;

const SIZE: usize = 2;
const GPU: Medium = Medium::Local(Level::Gpu);
const HOST: Medium = Medium::Local(Level::Host);
const DISK: Medium = Medium::Local(Level::Disk);

fn rules() -> Rules {
    Rules {
        model: "m".into(),
        are_copies_counted: true,
        blocks_max: RANK_BLOCKS_MAX,
        pending_max: PENDING_BLOCKS_MAX,
    }
}

fn translator() -> Translator {
    Translator::new(rules())
}

fn seed(salt: &str) -> Digest {
    digest::seed(Unit::Tokens, "m", "", salt)
}

/// Blocks `hashes` in a row behind `parent`. A block's tokens are a function of its hash.
fn stored(parent: Option<u32>, hashes: &[u32], medium: Medium) -> Stored {
    Stored {
        hashes: hashes.iter().map(|hash| EngineHash((*hash).into())).collect(),
        parent: parent.map(|hash| EngineHash(hash.into())),
        tokens: hashes.iter().flat_map(|hash| tokens(*hash)).collect(),
        block_tokens: SIZE as u32,
        medium,
        adapter: String::new(),
        extra: vec![Extra::None],
        group: None,
        attention: Attention::Unsaid,
    }
}

fn tokens(hash: u32) -> [u32; SIZE] {
    [hash, hash + 1000]
}

fn store(parent: Option<u32>, hashes: &[u32], medium: Medium) -> Event {
    Event::Stored(stored(parent, hashes, medium))
}

fn announce(hashes: &[u32], medium: Medium) -> Event {
    let placeholder = Stored { tokens: vec![], block_tokens: 0, ..stored(None, hashes, medium) };
    Event::Stored(placeholder)
}

fn remove(hashes: &[u32], medium: Medium) -> Event {
    let hashes = hashes.iter().map(|hash| EngineHash((*hash).into())).collect();
    Event::Removed { hashes, medium, group: None }
}

/// The digest of a prompt that is these blocks.
fn prefix(hashes: &[u32]) -> u128 {
    let tokens: Vec<u32> = hashes.iter().flat_map(|hash| tokens(*hash)).collect();
    of_tokens(&seed(""), &tokens, SIZE).last().unwrap().short()
}

type Told = BTreeMap<u128, Level>;

fn follow(told: &mut Told, changes: &[Change]) {
    for change in changes {
        assert_eq!(told.get(&change.digest).copied(), change.old, "a change knows what was told");
        match change.new {
            Some(level) => drop(told.insert(change.digest, level)),
            None => drop(told.remove(&change.digest)),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Info {
    /// What it follows, once that was told.
    parent: Option<Option<u32>>,
    held: [u16; 3],
}

/// What is held by engine hash, and nothing else.
#[derive(Default)]
struct Model {
    blocks: BTreeMap<u32, Info>,
}

#[derive(Clone, Debug)]
enum Deed {
    /// The path from the root to this block; the first `from` blocks of it are not told.
    Store(u32, usize, usize),
    Announce(u32, usize),
    Remove(u32, usize),
    Clear,
}

/// Blocks form a tree of three children each: block n follows (n - 1) / 3.
fn path(block: u32) -> Vec<u32> {
    let mut path = vec![block];
    while let Some(up) = path.last().and_then(|last| last.checked_sub(1)) {
        path.push(up / 3);
    }
    path.pop();
    path.reverse();
    path
}

const MEDIA: [Medium; 3] = [GPU, HOST, DISK];

impl Model {
    fn apply(&mut self, deed: &Deed) -> Event {
        match *deed {
            Deed::Store(block, from, level) => {
                let path = path(block);
                let from = from.min(path.len() - 1);
                let parent = from.checked_sub(1).map(|before| path[before]);
                if let Some(parent) = parent {
                    self.blocks.entry(parent).or_default();
                }
                let mut before = parent;
                for block in &path[from..] {
                    let info = self.blocks.entry(*block).or_default();
                    info.parent = Some(before);
                    hold(info, level);
                    before = Some(*block);
                }
                store(parent, &path[from..], MEDIA[level])
            }
            Deed::Announce(block, level) => {
                if let Some(info) = self.blocks.get_mut(&block) {
                    hold(info, level);
                }
                announce(&[block], MEDIA[level])
            }
            Deed::Remove(block, level) => {
                if let Some(info) = self.blocks.get_mut(&block) {
                    info.held[level] = info.held[level].saturating_sub(1);
                }
                remove(&[block], MEDIA[level])
            }
            Deed::Clear => {
                self.blocks.clear();
                Event::Cleared
            }
        }
    }

    /// What is not held is forgotten unless something that is there follows it.
    fn finish(&mut self) {
        let mut needed = BTreeSet::new();
        for (block, info) in &self.blocks {
            let mut at = (info.held != [0; 3]).then_some(*block);
            while let Some(block) = at {
                needed.insert(block);
                at = self.blocks.get(&block).and_then(|info| info.parent).flatten();
            }
        }
        self.blocks.retain(|block, _| needed.contains(block));
    }

    fn level(&self, block: u32) -> Option<Level> {
        let info = self.blocks.get(&block)?;
        let own = Level::ALL.into_iter().find(|level| info.held[*level as usize] > 0)?;
        match info.parent? {
            None => Some(own),
            Some(parent) => Some(own.max(self.level(parent)?)),
        }
    }

    fn told(&self) -> Told {
        let level = |block: &u32| Some((prefix(&path(*block)), self.level(*block)?));
        self.blocks.keys().filter_map(level).collect()
    }
}

fn hold(info: &mut Info, level: usize) {
    info.held[level] = if level == 0 { 1 } else { info.held[level] + 1 };
}

fn deed() -> impl Strategy<Value = Deed> {
    let block = || 1u32..60;
    prop_oneof![
        20 => (block(), 0usize..4, 0usize..3).prop_map(|(b, from, level)| Deed::Store(b, from, level)),
        4 => (block(), 1usize..3).prop_map(|(b, level)| Deed::Announce(b, level)),
        20 => (block(), 0usize..3).prop_map(|(b, level)| Deed::Remove(b, level)),
        1 => Just(Deed::Clear),
    ]
}

fn is_closed(told: &Told) {
    for block in 1..60 {
        let path = path(block);
        let Some(level) = told.get(&prefix(&path)) else { continue };
        for length in 1..path.len() {
            let before = told.get(&prefix(&path[..length]));
            assert!(before.is_some_and(|before| before <= level), "closed under prefixes");
        }
    }
}

proptest! {
    #[test]
    fn what_is_told_is_what_a_naive_model_computes(
        batches in prop::collection::vec(prop::collection::vec(deed(), 1..6), 1..40),
    ) {
        let (mut translator, mut model, mut told) = (translator(), Model::default(), Told::new());
        for batch in batches {
            let events = batch.iter().map(|deed| model.apply(deed)).collect();
            model.finish();
            follow(&mut told, &translator.apply(events));
            prop_assert_eq!(&told, &model.told());
            is_closed(&told);
            let mut visited = Vec::new();
            translator.visit(|digest| visited.push(digest));
            let unique: BTreeSet<_> = visited.iter().copied().collect();
            prop_assert_eq!(visited.len(), unique.len());
            prop_assert_eq!(unique, told.keys().copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(translator.blocks(), model.blocks.len());
        }
    }

    /// Whatever is evicted for want of room, closure and the bounds hold, and nothing false is told.
    #[test]
    fn too_many_blocks_cost_the_oldest_ends(
        batches in prop::collection::vec(prop::collection::vec(deed(), 1..6), 1..40),
        blocks_max in 1usize..20,
        pending_max in 0usize..5,
    ) {
        let mut translator = Translator::new(Rules { blocks_max, pending_max, ..rules() });
        let (mut model, mut told) = (Model::default(), Told::new());
        for batch in batches {
            let events = batch.iter().map(|deed| model.apply(deed)).collect();
            follow(&mut told, &translator.apply(events));
            is_closed(&told);
            prop_assert!(translator.blocks() <= blocks_max);
            prop_assert!(translator.pending <= pending_max);
            model.finish();
            let truth = model.told();
            for (digest, level) in &told {
                prop_assert!(truth.get(digest).is_some_and(|true_level| true_level <= level));
            }
        }
    }

    #[test]
    fn arbitrary_links_are_survived(
        events in prop::collection::vec((prop::option::of(0u32..8), prop::collection::vec(0u32..8, 1..4), 0usize..3, any::<bool>()), 0..40),
    ) {
        let (mut translator, mut told) = (translator(), Told::new());
        for (parent, hashes, level, is_store) in events {
            let medium = MEDIA[level];
            let event = if is_store { store(parent, &hashes, medium) } else { remove(&hashes, medium) };
            let changes = translator.apply(vec![event]);
            // Two blocks may share a digest here, so only the sum is checked.
            for change in changes {
                if let Some(new) = change.new {
                    told.insert(change.digest, new);
                }
            }
            prop_assert!(translator.blocks() <= 8);
        }
        translator.clear();
        prop_assert_eq!((translator.blocks(), translator.pending), (0, 0));
    }
}

fn told_after(events: Vec<Event>) -> (Told, Dropped) {
    let (mut translator, mut told) = (translator(), Told::new());
    follow(&mut told, &translator.apply(events));
    (told, translator.take_dropped())
}

fn count(dropped: &Dropped, reason: Reason) -> u64 {
    dropped[Reason::ALL.iter().position(|each| *each == reason).unwrap()]
}

#[test]
fn digests_are_those_of_the_router() {
    let (told, _) = told_after(vec![store(None, &[1, 2], GPU)]);
    assert_eq!(told, Told::from([(prefix(&[1]), Level::Gpu), (prefix(&[1, 2]), Level::Gpu)]));
    let mut salted = stored(None, &[1], GPU);
    salted.extra = vec![Extra::Salt("s".into())];
    let (told, _) = told_after(vec![Event::Stored(salted)]);
    let expected = of_tokens(&seed("s"), &tokens(1), SIZE)[0].short();
    assert_eq!(told.into_keys().collect::<Vec<_>>(), [expected]);
    let adapted = Stored { adapter: "l".into(), ..stored(None, &[1], GPU) };
    let (told, _) = told_after(vec![Event::Stored(adapted)]);
    let seed = digest::seed(Unit::Tokens, "m", "l", "");
    assert_eq!(told.into_keys().next(), Some(of_tokens(&seed, &tokens(1), SIZE)[0].short()));
}

#[test]
fn what_comes_and_goes_in_one_batch_is_not_told() {
    let mut translator = translator();
    let changes = translator.apply(vec![store(None, &[1, 2], GPU), remove(&[2, 1], GPU)]);
    assert_eq!(changes, []);
    translator.apply(vec![store(None, &[1], GPU)]);
    let again = translator.apply(vec![remove(&[1], GPU), store(None, &[1], GPU)]);
    assert_eq!(again, []);
    assert_eq!(translator.apply(vec![store(None, &[1], GPU)]), [], "told again, nothing is new");
}

#[test]
fn a_block_whose_start_is_gone_comes_back_with_it() {
    let (mut translator, mut told) = (translator(), Told::new());
    follow(&mut told, &translator.apply(vec![store(None, &[1, 2, 3], GPU)]));
    follow(&mut told, &translator.apply(vec![remove(&[1], GPU)]));
    assert!(told.is_empty());
    follow(&mut told, &translator.apply(vec![store(None, &[1], HOST)]));
    assert_eq!(told.values().collect::<Vec<_>>(), [&Level::Host; 3], "as slow as their start");
    follow(&mut told, &translator.apply(vec![announce(&[3], DISK), remove(&[3], GPU)]));
    assert_eq!(told[&prefix(&[1, 2, 3])], Level::Disk);
}

#[test]
fn copies_off_the_gpu_are_counted_where_the_engine_repeats_them() {
    for (are_copies_counted, is_left) in [(true, true), (false, false)] {
        let mut translator = Translator::new(Rules { are_copies_counted, ..rules() });
        let mut told = Told::new();
        let twice = vec![store(None, &[1], HOST), announce(&[1], HOST), remove(&[1], HOST)];
        follow(&mut told, &translator.apply(twice));
        assert_eq!(!told.is_empty(), is_left);
    }
}

#[test]
fn an_engine_that_lies_about_sizes_is_not_believed() {
    let wrong = |change: fn(&mut Stored)| {
        let mut stored = stored(None, &[5, 6], GPU);
        change(&mut stored);
        Event::Stored(stored)
    };
    for event in [
        wrong(|stored| stored.block_tokens = 3),
        wrong(|stored| stored.block_tokens = 0),
        wrong(|stored| stored.block_tokens = u32::MAX),
        wrong(|stored| stored.tokens.truncate(3)),
        // Adds up, but it was 2 before.
        wrong(|stored| {
            stored.block_tokens = 4;
            stored.tokens = vec![1; 8];
        }),
    ] {
        let (told, dropped) = told_after(vec![store(None, &[1], GPU), event]);
        assert_eq!(told.into_keys().collect::<Vec<_>>(), [prefix(&[1])]);
        assert_eq!(count(&dropped, Reason::BlockSize), 2);
    }
}

#[test]
fn what_cannot_be_indexed_is_counted_by_reason() {
    let with = |change: fn(&mut Stored)| {
        let mut stored = stored(None, &[1, 2], GPU);
        change(&mut stored);
        Event::Stored(stored)
    };
    for (event, reason) in [
        (with(|stored| stored.medium = Medium::Remote), Reason::Remote),
        (with(|stored| stored.medium = Medium::Unknown), Reason::Medium),
        (with(|stored| stored.group = Some(1)), Reason::Group),
        (with(|stored| stored.attention = Attention::Partial), Reason::Group),
        (with(|stored| stored.extra = vec![Extra::Opaque]), Reason::Opaque),
        (store(Some(9), &[1, 2], GPU), Reason::Parent),
        (announce(&[1, 2], HOST), Reason::Placeholder),
    ] {
        let (told, dropped) = told_after(vec![event.clone()]);
        assert!(told.is_empty(), "{event:?}");
        assert_eq!(count(&dropped, reason), 2, "{event:?}");
    }
}

#[test]
fn behind_an_image_nothing_is_named() {
    let mut with_image = stored(None, &[1, 2, 3], GPU);
    with_image.extra = vec![Extra::None, Extra::Opaque];
    let (told, dropped) = told_after(vec![Event::Stored(with_image), store(Some(3), &[4], GPU)]);
    assert_eq!(told.into_keys().collect::<Vec<_>>(), [prefix(&[1])]);
    assert_eq!(count(&dropped, Reason::Opaque), 3);
}

#[test]
fn a_name_that_stands_for_something_else_is_a_conflict() {
    let mut other = stored(None, &[1], GPU);
    other.tokens = vec![7, 7];
    for event in [
        Event::Stored(other),
        store(Some(2), &[1], GPU),
        store(None, &[2], GPU),
        store(Some(2), &[2], GPU),
    ] {
        let (told, dropped) = told_after(vec![store(None, &[1, 2], GPU), event]);
        assert_eq!((told.len(), count(&dropped, Reason::Conflict)), (2, 1));
    }
    let (told, dropped) = told_after(vec![store(Some(5), &[6], GPU), store(Some(6), &[5], GPU)]);
    assert_eq!((told.len(), count(&dropped, Reason::Conflict)), (0, 1), "a ring");
}

#[test]
fn of_several_groups_the_full_one_counts() {
    let of = |hash, group, attention| {
        Event::Stored(Stored { group: Some(group), attention, ..stored(None, &[hash], GPU) })
    };
    let (told, _) = told_after(vec![
        of(1, 0, Attention::Partial),
        of(1, 1, Attention::Full),
        of(2, 2, Attention::Full),
        Event::Removed { hashes: vec![EngineHash(1)], medium: GPU, group: Some(0) },
    ]);
    assert_eq!(told.into_keys().collect::<Vec<_>>(), [prefix(&[1])]);
}

#[test]
fn a_removal_that_names_no_level_is_of_all() {
    let events = vec![store(None, &[1], GPU), announce(&[1], HOST), remove(&[1], Medium::All)];
    assert!(told_after(events).0.is_empty());
}
