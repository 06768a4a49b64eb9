//! The space against a model that keeps a list of blocks and a set of resident granules.
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4 << 10;
const HUGE: u64 = 2 << 20;

/// What a kernel and its user would see of the grants.
struct Model {
    space: Space,
    granule: u64,
    budget: u64,
    /// Offset and length of each block in use.
    blocks: Vec<(u64, u64)>,
    resident: BTreeSet<u64>,
}

impl Model {
    fn new(budget: u64, granule: u64, len_max: u64) -> Model {
        let space = Space::new(budget, granule, len_max);
        let budget = budget / granule;
        Model { space, granule, budget, blocks: Vec::new(), resident: BTreeSet::new() }
    }

    fn granules(&self, range: &Range<u64>) -> Range<u64> {
        assert!(range.start < range.end && range.end <= self.space.window_bytes(), "{range:?}");
        assert_eq!((range.start % self.granule, range.end % self.granule), (0, 0), "{range:?}");
        range.start / self.granule..range.end / self.granule
    }

    fn of_block(&self, offset: u64, len: u64) -> Range<u64> {
        offset / self.granule..(offset + len.max(1)).div_ceil(self.granule)
    }

    /// Granules in which a block lies.
    fn pinned(&self) -> BTreeSet<u64> {
        self.blocks.iter().flat_map(|&(offset, len)| self.of_block(offset, len)).collect()
    }

    fn alloc(&mut self, len: u64) -> Result<u64, SpaceError> {
        let pinned = self.pinned();
        let grant = match self.space.alloc(len) {
            Ok(grant) => grant,
            Err(SpaceError::Full) => {
                let wanted = len.max(1).div_ceil(self.granule);
                assert!(pinned.len() as u64 + wanted > self.budget, "not full: {len}");
                return Err(SpaceError::Full);
            }
            Err(other) => return Err(other),
        };
        for range in &grant.punch {
            for granule in self.granules(range) {
                assert!(!pinned.contains(&granule), "memory of a block is punched");
                assert!(self.resident.remove(&granule), "punched, but not resident");
            }
        }
        for granule in grant.fill.as_ref().map_or(0..0, |range| self.granules(range)) {
            assert!(self.resident.insert(granule), "filled, but resident");
        }
        assert_eq!(grant.offset % PAGE.max(self.granule.min(STRIDE_MIN_BYTES)), 0);
        let own = self.of_block(grant.offset, len);
        assert!(own.clone().all(|granule| self.resident.contains(&granule)), "not resident");
        for &(offset, other) in &self.blocks {
            let apart =
                offset + other.max(1) <= grant.offset || grant.offset + len.max(1) <= offset;
            assert!(apart, "overlaps");
        }
        assert!(self.space.capacity(grant.offset) >= len.next_multiple_of(PAGE));
        self.blocks.push((grant.offset, len));
        Ok(grant.offset)
    }

    fn free(&mut self, index: usize) {
        let (offset, _) = self.blocks.swap_remove(index);
        assert!(self.space.free(offset));
        assert!(!self.space.free(offset), "free once only");
        assert_eq!(self.space.capacity(offset), 0);
    }

    fn fail(&mut self, index: usize) {
        let (offset, _) = self.blocks.swap_remove(index);
        let Some(range) = self.space.fill_failed(offset) else { return };
        for granule in self.granules(&range) {
            self.resident.remove(&granule);
        }
    }

    fn check(&self) {
        assert!(self.resident.len() as u64 <= self.budget);
        assert_eq!(self.space.resident_bytes(), self.resident.len() as u64 * self.granule);
        assert_eq!(self.space.used_bytes(), self.pinned().len() as u64 * self.granule);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Alloc(u64),
    Free(usize),
    Fail(usize),
    /// A free of what is perhaps no block at all.
    Wrong(u64),
}

fn step(len_max: u64) -> impl Strategy<Value = Step> {
    let len = prop_oneof![
        0..=len_max,
        (0..=len_max.ilog2()).prop_map(|bits| 1_u64 << bits),
        (0..=len_max.ilog2()).prop_map(|bits| (1_u64 << bits) + 1),
        Just(192 << 10),
    ];
    prop_oneof![
        12 => len.prop_map(Step::Alloc),
        9 => any::<usize>().prop_map(Step::Free),
        1 => any::<usize>().prop_map(Step::Fail),
        1 => (0..=len_max * 64).prop_map(Step::Wrong),
    ]
}

fn history(granule: u64, len_max: u64) -> impl Strategy<Value = (u64, Vec<Step>)> {
    let budget = (len_max..len_max * 5).prop_map(move |bytes| bytes / granule * granule);
    (budget, prop::collection::vec(step(len_max), 1..250))
}

fn play(granule: u64, len_max: u64, budget: u64, steps: Vec<Step>) {
    let mut model = Model::new(budget, granule, len_max);
    for step in steps {
        match step {
            Step::Alloc(len) => _ = model.alloc(len),
            Step::Free(at) if !model.blocks.is_empty() => model.free(at % model.blocks.len()),
            Step::Fail(at) if !model.blocks.is_empty() => model.fail(at % model.blocks.len()),
            Step::Free(_) | Step::Fail(_) => {}
            Step::Wrong(offset) => {
                let known = model.blocks.iter().position(|&(start, _)| start == offset);
                assert_eq!(model.space.free(offset), known.is_some());
                known.map(|at| model.blocks.swap_remove(at));
            }
        }
        model.check();
    }
    while !model.blocks.is_empty() {
        model.free(0);
    }
    model.check();
    let largest = len_max.min(budget);
    for len in [largest, 1, largest / 3, STRIDE_MIN_BYTES, largest] {
        assert!(model.alloc(len).is_ok(), "{len} of {budget} after all was freed");
        model.check();
        model.free(0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_history_keeps_the_promises_with_pages(
        (budget, steps) in history(PAGE, 3 << 20)
    ) {
        play(PAGE, 3 << 20, budget, steps);
    }

    #[test]
    fn any_history_keeps_the_promises_with_huge_pages(
        (budget, steps) in history(HUGE, 24 << 20)
    ) {
        play(HUGE, 24 << 20, budget, steps);
    }

    #[test]
    fn the_whole_budget_holds_blocks_of_any_one_size(
        len in 1_u64..4 << 20, blocks in 1_u64..40
    ) {
        let bytes = len.next_multiple_of(PAGE);
        let mut model = Model::new(bytes * blocks, PAGE, 4 << 20);
        for _ in 0..blocks {
            prop_assert!(model.alloc(len).is_ok());
        }
        prop_assert_eq!(model.alloc(1), Err(SpaceError::Full));
        model.check();
    }
}

#[test]
fn a_steady_size_never_faults() {
    let mut model = Model::new(64 << 20, PAGE, 64 << 20);
    let len = (2 << 20) - 100;
    while model.alloc(len).is_ok() {}
    for round in 0..200 {
        model.free(round * 7 % model.blocks.len());
        let grant = model.space.alloc(len).unwrap();
        assert_eq!((grant.punch, grant.fill), (Vec::new(), None));
        model.blocks.push((grant.offset, len));
    }
    model.check();
}

#[test]
fn a_slot_grows_and_shrinks_in_place() {
    let mut space = Space::new(8 << 20, PAGE, 8 << 20);
    let first = space.alloc(1 << 20).unwrap();
    let at = first.offset;
    assert_eq!(first.fill, Some(at..at + (1 << 20)));
    assert!(space.free(at));
    let less = space.alloc((1 << 20) - 3 * PAGE).unwrap();
    let kept = at + (1 << 20) - 3 * PAGE;
    assert_eq!((less.offset, less.fill), (at, None));
    assert_eq!(less.punch.as_slice(), std::slice::from_ref(&(kept..at + (1 << 20))));
    assert!(space.free(at));
    let more = space.alloc(1 << 20).unwrap();
    assert_eq!(more, Grant { offset: at, punch: Vec::new(), fill: Some(kept..at + (1 << 20)) });
}

#[test]
fn warm_memory_goes_coldest_first_and_only_what_is_needed() {
    let mut space = Space::new(1 << 20, PAGE, 1 << 20);
    let [old, new] = [(); 2].map(|()| space.alloc(256 << 10).unwrap().offset);
    let kept = space.alloc(512 << 10).unwrap().offset;
    assert!(space.free(old) && space.free(new));
    let grant = space.alloc(100 << 10).unwrap();
    let tail = old + (156 << 10)..old + (256 << 10);
    assert_eq!(grant.punch.as_slice(), std::slice::from_ref(&tail), "the tail of the coldest");
    let next = space.alloc(300 << 10).unwrap();
    let punched: u64 = next.punch.iter().map(|range| range.end - range.start).sum();
    assert_eq!((punched, space.resident_bytes()), (300 << 10, 1 << 20));
    assert_eq!(space.capacity(kept), 512 << 10);
    assert_eq!(space.alloc(112 << 10).map(|_| ()), Ok(()));
    assert_eq!(space.alloc(1), Err(SpaceError::Full));
}

#[test]
fn small_blocks_share_a_huge_page() {
    let mut space = Space::new(4 * HUGE, HUGE, 8 << 20);
    let offsets: Vec<u64> = (0..64).map(|_| space.alloc(50_000).unwrap().offset).collect();
    assert_eq!(space.used_bytes(), 2 * HUGE);
    assert!(offsets.iter().skip(1).step_by(2).all(|&offset| space.free(offset)));
    assert_eq!(space.used_bytes(), 2 * HUGE, "each page still has a block");
    assert_eq!(space.alloc(5 << 20), Err(SpaceError::Full));
    assert!(offsets.iter().step_by(2).all(|&offset| space.free(offset)));
    assert_eq!((space.used_bytes(), space.resident_bytes()), (0, 2 * HUGE));
    assert_eq!(space.alloc(8 << 20).unwrap().punch.len(), 1, "two pages side by side go as one");
}

#[test]
fn what_can_never_fit_is_too_large() {
    let mut space = Space::new(10 << 20, HUGE, 16 << 20);
    let too_large = |len, max| Err(SpaceError::TooLarge { len, max });
    assert_eq!(space.alloc(11 << 20), too_large(11 << 20, 10 << 20));
    assert_eq!(space.alloc(u64::MAX), too_large(u64::MAX, 10 << 20));
    assert_eq!(Space::new(1 << 40, HUGE, 1 << 60).alloc(1 << 30), too_large(1 << 30, 512 << 20));
    assert_eq!(Space::new(0, PAGE, 1 << 20).alloc(1), too_large(1, 0));
    assert!(!space.free(0) && !space.free(u64::MAX) && space.fill_failed(7).is_none());
}

#[test]
fn a_terabyte_needs_less_window_than_a_process_can_map() {
    let window = Space::new(1 << 40, PAGE, LEN_MAX_BYTES).window_bytes();
    assert!(window < 1 << 46, "{window}");
    assert!(Space::new(u64::MAX, PAGE, LEN_MAX_BYTES).window_bytes() < 1 << 60);
}
