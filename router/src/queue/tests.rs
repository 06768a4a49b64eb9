//! The waiting room against a naive one that visits tenant by tenant and sorts each time.

use std::collections::HashMap;

use proptest::prelude::*;

use super::tenant::{OVERDUE_EVERY, rank_us};
use super::*;

const AGE_DOUBLES_MS: u64 = 2_000;
const PATIENCE_MS: u64 = 500;

fn config(entries_max: usize) -> QueueConfig {
    QueueConfig {
        entries_max,
        tenant_free_factor: 1e9,
        age_doubles_ms: AGE_DOUBLES_MS,
        patience_ms: PATIENCE_MS,
    }
}

fn entry(id: u64, tenant: &str, tokens: u64) -> Waiting {
    Waiting {
        id,
        tenant: tenant.into(),
        weight: 1,
        priority: 0.0,
        deadline_ms: None,
        uncached_tokens: tokens,
        arrived_ms: 0,
        core: 0,
    }
}

/// One tenant of the naive room.
struct Account {
    name: Arc<str>,
    weight: u64,
    deficit: u64,
    since_overdue: u32,
}

/// Deficit round robin as it is told: one visit after the other, one quantum a visit.
#[derive(Default)]
struct Naive {
    ring: Vec<Account>,
    cursor: usize,
    visiting: bool,
    entries: Vec<(Waiting, usize)>,
    pushed: usize,
}

impl Naive {
    fn push(&mut self, entry: &Waiting) {
        let weight = u64::from(entry.weight.max(1));
        match self.ring.iter_mut().find(|account| account.name == entry.tenant) {
            Some(account) => account.weight = weight,
            None => {
                let name = Arc::clone(&entry.tenant);
                let account = Account { name, weight, deficit: 0, since_overdue: 99 };
                self.ring.insert(self.cursor, account);
                self.cursor += usize::from(self.ring.len() > 1);
            }
        }
        self.pushed += 1;
        self.entries.push((entry.clone(), self.pushed));
    }

    fn head(&self, account: &Account, now: u64) -> Option<(Waiting, bool)> {
        let own = || self.entries.iter().filter(|(entry, _)| entry.tenant == account.name);
        let plain = || own().filter(|(entry, _)| entry.deadline_ms.is_none());
        if account.since_overdue + 1 >= OVERDUE_EVERY {
            let overdue = plain().filter(|(entry, _)| now >= entry.arrived_ms + PATIENCE_MS);
            if let Some((entry, _)) = overdue.min_by_key(|(e, number)| (e.arrived_ms, *number)) {
                return Some((entry.clone(), true));
            }
        }
        let first = own()
            .filter(|(entry, _)| entry.deadline_ms.is_some_and(|deadline| deadline >= now))
            .min_by_key(|(e, number)| (e.deadline_ms, e.arrived_ms, *number))
            .or_else(|| {
                plain().min_by_key(|(e, n)| (rank_us(e, AGE_DOUBLES_MS), e.arrived_ms, *n))
            });
        first.map(|(entry, _)| (entry.clone(), false))
    }

    fn next(&mut self, now: u64) -> Option<Waiting> {
        if !self.ring.iter().any(|account| self.head(account, now).is_some()) {
            return None;
        }
        loop {
            let head = self.head(&self.ring[self.cursor], now);
            let account = &mut self.ring[self.cursor];
            if let Some((entry, overdue)) = head {
                if !self.visiting {
                    account.deficit += account.weight;
                    self.visiting = true;
                }
                if account.deficit >= entry.cost_tokens() {
                    account.deficit -= entry.cost_tokens();
                    account.since_overdue = if overdue { 0 } else { account.since_overdue + 1 };
                    self.remove(entry.id);
                    return Some(entry);
                }
            }
            self.cursor = (self.cursor + 1) % self.ring.len();
            self.visiting = false;
        }
    }

    fn remove(&mut self, id: u64) -> bool {
        let Some(at) = self.entries.iter().position(|(entry, _)| entry.id == id) else {
            return false;
        };
        let (entry, _) = self.entries.remove(at);
        if self.entries.iter().any(|(other, _)| other.tenant == entry.tenant) {
            return true;
        }
        let at = self.ring.iter().position(|account| account.name == entry.tenant).unwrap();
        self.ring.remove(at);
        if at < self.cursor {
            self.cursor -= 1;
        } else if at == self.cursor {
            self.visiting = false;
        }
        if self.cursor >= self.ring.len() {
            self.cursor = 0;
        }
        true
    }

    fn expire(&mut self, now: u64) -> Vec<u64> {
        let late = |entry: &Waiting| entry.deadline_ms.filter(|deadline| *deadline < now);
        let mut expired: Vec<(u64, u64)> =
            self.entries.iter().filter_map(|(e, _)| Some((late(e)?, e.id))).collect();
        expired.sort_unstable();
        expired.into_iter().filter(|(_, id)| self.remove(*id)).map(|(_, id)| id).collect()
    }
}

/// What may happen to a room.
#[derive(Clone, Debug)]
enum Step {
    Push { tenant: u8, weight: u32, priority: f64, within_ms: Option<u64>, tokens: u64 },
    Next,
    Remove(u64),
    Expire,
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let push = (0u8..5, 0u32..5, -1.0f64..4.0, prop::option::of(0u64..900), 0u64..60).prop_map(
        |(tenant, weight, priority, within_ms, tokens)| Step::Push {
            tenant,
            weight,
            priority,
            within_ms,
            tokens,
        },
    );
    prop_oneof![
        6 => push,
        4 => Just(Step::Next),
        1 => (0u64..150).prop_map(Step::Remove),
        1 => Just(Step::Expire),
        2 => (0u64..400).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn it_does_what_the_naive_room_does_and_loses_nobody(
        steps in prop::collection::vec(any_step(), 1..200),
    ) {
        let mut room = WaitingRoom::new(config(24));
        let mut naive = Naive::default();
        let (mut now, mut pushed, mut out) = (1_000, 0u64, Vec::new());
        for step in steps {
            match step {
                Step::Push { tenant, weight, priority, within_ms, tokens } => {
                    let deadline_ms = within_ms.map(|ms| now + ms);
                    let entry = Waiting {
                        weight, priority, deadline_ms, arrived_ms: now,
                        ..entry(pushed, &tenant.to_string(), tokens)
                    };
                    if naive.entries.len() == 24 {
                        prop_assert_eq!(room.push(entry), Err(Full::Room));
                    } else {
                        naive.push(&entry);
                        prop_assert_eq!(room.push(entry), Ok(()));
                        pushed += 1;
                    }
                }
                Step::Next => {
                    let next = room.next(now);
                    prop_assert_eq!(&next, &naive.next(now));
                    out.extend(next.map(|entry| entry.id));
                }
                Step::Remove(id) => {
                    let removed = room.remove(id);
                    prop_assert_eq!(removed, naive.remove(id));
                    out.extend(removed.then_some(id));
                }
                Step::Expire => {
                    let expired: Vec<u64> = room.expire(now).iter().map(|e| e.id).collect();
                    prop_assert_eq!(&expired, &naive.expire(now));
                    out.extend(expired);
                }
                Step::Wait(ms) => now += ms,
            }
            prop_assert_eq!(room.len(), naive.entries.len());
            prop_assert_eq!(room.tenants(), naive.ring.len());
            prop_assert_eq!(
                room.tokens(), naive.entries.iter().map(|(e, _)| e.cost_tokens()).sum::<u64>());
            prop_assert_eq!(
                room.deadline_ms(), naive.entries.iter().filter_map(|(e, _)| e.deadline_ms).min());
        }
        while let Some(entry) = room.next(now) {
            out.push(entry.id);
        }
        out.extend(room.expire(u64::MAX).iter().map(|entry| entry.id));
        prop_assert!(room.is_empty() && room.tenants() == 0);
        out.sort_unstable();
        prop_assert_eq!(out, (0..pushed).collect::<Vec<_>>(), "each comes out exactly once");
    }

    #[test]
    fn saturated_tenants_are_served_by_weight_within_one_cost_each(
        weights in prop::collection::vec(1u32..9, 2..6),
        costs in prop::collection::vec(1u64..2_000, 1..40),
    ) {
        let mut room = WaitingRoom::new(config(1_000));
        let name = |at: usize| -> Arc<str> { at.to_string().into() };
        let mut pushed = 0u64;
        let mut push = |room: &mut WaitingRoom, at: usize| {
            let tokens = costs[pushed as usize % costs.len()];
            let entry = Waiting { weight: weights[at], ..entry(pushed, &name(at), tokens) };
            room.push(entry).unwrap();
            pushed += 1;
        };
        for at in 0..weights.len() {
            (0..3).for_each(|_| push(&mut room, at));
        }
        let cost_max = *costs.iter().max().unwrap() as f64;
        let mut served: HashMap<Arc<str>, u64> = HashMap::new();
        for _ in 0..600 {
            let entry = room.next(0).unwrap();
            *served.entry(Arc::clone(&entry.tenant)).or_default() += entry.cost_tokens();
            push(&mut room, entry.tenant.parse().unwrap());
            for a in 0..weights.len() {
                for b in 0..a {
                    let per_weight = |at: usize| {
                        *served.get(&name(at)).unwrap_or(&0) as f64 / f64::from(weights[at])
                    };
                    let bound = cost_max / f64::from(weights[a]) + cost_max / f64::from(weights[b]);
                    let apart = (per_weight(a) - per_weight(b)).abs();
                    prop_assert!(apart <= bound + 1.0, "{apart} > {bound}");
                }
            }
        }
    }

    #[test]
    fn ranks_compare_like_the_formula_at_any_time(
        a in (1u64..200_000, 0f64..8.0, 0u64..60_000),
        b in (1u64..200_000, 0f64..8.0, 0u64..60_000),
        later in 0u64..60_000,
    ) {
        let waiting = |(tokens, priority, arrived_ms)| {
            Waiting { priority, arrived_ms, ..entry(0, "t", tokens) }
        };
        let (a, b) = (waiting(a), waiting(b));
        let now = a.arrived_ms.max(b.arrived_ms) + later;
        let rank = |e: &Waiting| {
            let age = (now - e.arrived_ms) as f64 / AGE_DOUBLES_MS as f64;
            (1.0 + e.priority) / e.uncached_tokens as f64 * age.exp2()
        };
        let ratio = rank(&a) / rank(&b);
        prop_assume!((ratio - 1.0).abs() > 1e-5);
        let (key_a, key_b) = (rank_us(&a, AGE_DOUBLES_MS), rank_us(&b, AGE_DOUBLES_MS));
        prop_assert_eq!(ratio > 1.0, key_a < key_b);
    }

    #[test]
    fn a_long_request_waits_no_longer_than_stated_for_short_ones(
        tokens in 1_000u64..500_000, short in 1u64..100, every_ms in 1u64..400,
    ) {
        // Patience without end: the bound is that of the rank alone.
        let mut room = WaitingRoom::new(QueueConfig { patience_ms: u64::MAX, ..config(100_000) });
        room.push(entry(0, "t", tokens)).unwrap();
        let bound_ms = AGE_DOUBLES_MS as f64 * (tokens as f64 / short as f64).log2();
        let mut now = 0;
        for id in 1.. {
            // One short request comes for each turn, for ever.
            room.push(Waiting { arrived_ms: now, ..entry(id, "t", short) }).unwrap();
            if room.next(now).unwrap().id == 0 {
                break;
            }
            prop_assert!(now as f64 <= bound_ms + 1.0, "overtaken at {now}, bound {bound_ms}");
            now += every_ms;
        }
    }

    #[test]
    fn with_one_tenant_the_tokens_ahead_are_those_that_go_before(
        steps in prop::collection::vec((prop::option::of(0u64..400), 0u64..300, 0f64..4.0), 0..30),
        late in prop::option::of(0u64..400), tokens in 0u64..300,
    ) {
        let mut room = WaitingRoom::new(config(100));
        for (at, (deadline_ms, tokens, priority)) in steps.into_iter().enumerate() {
            let entry = Waiting { deadline_ms, priority, ..entry(at as u64, "t", tokens) };
            room.push(entry).unwrap();
        }
        let probe = Waiting { deadline_ms: late, ..entry(999, "t", tokens) };
        let told = room.tokens_ahead_of(&probe);
        room.push(probe).unwrap();
        let before: u64 = std::iter::from_fn(|| room.next(0))
            .take_while(|entry| entry.id != 999)
            .map(|entry| entry.cost_tokens())
            .sum();
        prop_assert_eq!(told, before);
    }

    #[test]
    fn with_many_tenants_the_tokens_ahead_are_off_by_a_turn_of_each(
        entries in prop::collection::vec((0usize..5, 1u64..500), 0..80), tokens in 1u64..500,
        weights in prop::collection::vec(1u32..5, 5..6), turns in 0usize..20,
    ) {
        let mut room = WaitingRoom::new(config(100));
        for (id, (tenant, tokens)) in entries.into_iter().enumerate() {
            let entry = entry(id as u64, &tenant.to_string(), tokens);
            room.push(Waiting { weight: weights[tenant], ..entry }).unwrap();
        }
        (0..turns).for_each(|_| drop(room.next(0)));
        let probe = Waiting { weight: weights[0], ..entry(999, "0", tokens) };
        let told = room.tokens_ahead_of(&probe);
        room.push(probe).unwrap();
        let before: u64 = std::iter::from_fn(|| room.next(0))
            .take_while(|entry| entry.id != 999)
            .map(|entry| entry.cost_tokens())
            .sum();
        let own = f64::from(weights[0]);
        let slack: f64 = weights[1..]
            .iter()
            .map(|&weight| 500.0 * (1.0 + f64::from(weight) / own) + f64::from(weight))
            .sum();
        prop_assert!((told as f64 - before as f64).abs() <= slack, "{told} {before} {slack}");
    }
}

#[test]
fn a_flood_of_deadlines_leaves_one_turn_of_four_to_the_overdue() {
    let mut room = WaitingRoom::new(config(100));
    room.push(entry(0, "t", 9_000)).unwrap();
    room.push(entry(1, "t", 9_000)).unwrap();
    let mut turns = Vec::new();
    for id in 2..12 {
        let now = PATIENCE_MS + id;
        let urgent = Waiting { deadline_ms: Some(now), arrived_ms: now, ..entry(id, "t", 1) };
        room.push(urgent).unwrap();
        turns.push(room.next(now).unwrap().id);
        room.expire(now + 1);
    }
    assert_eq!(turns.iter().position(|&id| id == 0), Some(0));
    assert_eq!(turns.iter().position(|&id| id == 1), Some(OVERDUE_EVERY as usize));
}

#[test]
fn a_tenant_that_floods_leaves_room_for_the_next() {
    let defaults = QueueConfig { entries_max: 100, ..QueueConfig::default() };
    let mut room = WaitingRoom::new(defaults);
    let fill = |room: &mut WaitingRoom, tenant: &str, from: u64| {
        (from..from + 200).take_while(|&id| room.push(entry(id, tenant, 1)).is_ok()).count()
    };
    assert_eq!(fill(&mut room, "flood", 0), 80);
    assert_eq!(room.push(entry(900, "flood", 1)), Err(Full::Tenant));
    assert_eq!(fill(&mut room, "second", 1_000), 16);
    assert_eq!(fill(&mut room, "third", 2_000), 4);
    assert_eq!(room.push(entry(901, "fourth", 1)), Err(Full::Room));
    assert!(room.remove(0) && !room.remove(0));
    assert_eq!(room.push(entry(1_000, "fourth", 1)), Err(Full::Duplicate));
    assert_eq!(room.push(entry(901, "fourth", 1)), Ok(()));
}

#[test]
fn senseless_numbers_neither_panic_nor_jump_the_queue() {
    let mut room = WaitingRoom::new(QueueConfig { tenant_free_factor: f64::NAN, ..config(9) });
    let odd = [(f64::NAN, 1), (f64::INFINITY, u64::MAX), (f64::NEG_INFINITY, 0), (-7.0, u64::MAX)];
    for (id, (priority, tokens)) in odd.into_iter().enumerate() {
        let arrived_ms = if id == 3 { u64::MAX } else { 5 };
        let entry = entry(id as u64, "t", tokens);
        room.push(Waiting { priority, arrived_ms, weight: u32::MAX, ..entry }).unwrap();
    }
    let deadline = Waiting { deadline_ms: Some(u64::MAX), ..entry(8, "t", 7) };
    room.push(deadline).unwrap();
    let order: Vec<u64> = std::iter::from_fn(|| room.next(5)).map(|entry| entry.id).collect();
    assert_eq!(order, [8, 0, 2, 1, 3]);
}

#[test]
fn the_configuration_says_what_is_wrong_with_it() {
    assert_eq!(QueueConfig::default().invalid(), None);
    let wrong = QueueConfig { age_doubles_ms: 0, ..QueueConfig::default() };
    assert_eq!(wrong.invalid().unwrap().0, "age_doubles_ms");
    let wrong = QueueConfig { tenant_free_factor: f64::NAN, ..QueueConfig::default() };
    assert_eq!(wrong.invalid().unwrap().0, "tenant_free_factor");
}
