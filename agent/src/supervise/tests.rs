//! `supervise` against a model world: it obeys each action, and in between does what it likes
//! (engines become ready, hang, die, take long to leave; desires change; the agent is told to stop).

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::engine::{Expected, Facts, KvCapacity};
use crate::random::Jitter;

const STEP: Duration = Duration::from_millis(100);

fn limits() -> Limits {
    Limits {
        probe_interval: Duration::from_secs(1),
        probe_failures_max: 3,
        start_attempts_max: 3,
        backoff_initial: Duration::from_secs(1),
        backoff_max: Duration::from_secs(60),
        backoff_reset_after: Duration::from_secs(300),
        drain_settle: Duration::from_secs(1),
        stop_grace: Duration::from_secs(5),
    }
}

fn spec(variant: u8) -> EngineSpec {
    EngineSpec {
        model: format!("m{variant}"),
        slots: 1,
        startup_timeout_s: 10,
        drain_timeout_s: 20,
        ..EngineSpec::default()
    }
}

fn id(replica: u32) -> ReplicaId {
    ReplicaId { deployment: "d".into(), replica }
}

/// A process of the model world.
#[derive(Clone, Debug)]
struct Engine {
    epoch: u64,
    /// Answers probes.
    up: bool,
    busy: u32,
    ignores_sigterm: bool,
    dying: bool,
}

#[derive(Default)]
struct World {
    desired: Desired,
    observed: Observed,
    now: Duration,
    engines: BTreeMap<ReplicaId, Engine>,
    probes: BTreeSet<(ReplicaId, u64)>,
    epoch: u64,
    /// Binaries and models are in place.
    startable: bool,
    spawns: Vec<(ReplicaId, Duration)>,
    sigterms: Vec<(ReplicaId, u32, Duration)>,
}

impl World {
    fn new() -> Self {
        World { startable: true, ..World::default() }
    }

    fn want(&mut self, replica: u32, variant: u8) {
        self.desired.engines.insert(id(replica), spec(variant));
    }

    /// Carries out all that is due, checks what must always hold, and moves the clock.
    fn step(&mut self) {
        for round in 0.. {
            assert!(round < 5, "decisions do not settle");
            let plan = supervise(&self.desired, &self.observed, &limits(), self.now);
            assert!(plan.wake_at.is_none_or(|at| at > self.now), "a wake-up in the past");
            if plan.actions.is_empty() {
                self.nothing_is_due_before(plan.wake_at);
                break;
            }
            for action in plan.actions {
                self.observed.begin(&action, self.now);
                self.obey(action);
            }
        }
        self.now += STEP;
    }

    /// The owner sleeps until `wake_at`; nothing may have to be done before.
    fn nothing_is_due_before(&self, wake_at: Option<Duration>) {
        let just_before = wake_at.map_or(self.now + Duration::from_secs(3600), |at| {
            at.saturating_sub(Duration::from_nanos(1))
        });
        let plan = supervise(&self.desired, &self.observed, &limits(), just_before);
        assert_eq!(plan.actions, [], "overslept");
    }

    fn obey(&mut self, action: Action) {
        match action {
            Action::Start { id, .. } => self.spawn(id),
            Action::Probe { id } => {
                let epoch = self.engines[&id].epoch;
                assert!(self.probes.insert((id, epoch)), "two probes of one process at once");
            }
            Action::Terminate { id } => {
                let engine = self.engines.get_mut(&id).expect("SIGTERM to a process");
                engine.dying |= !engine.ignores_sigterm;
                self.sigterms.push((id, engine.busy, self.now));
            }
            Action::Kill { id, .. } => {
                self.engines.get_mut(&id).expect("SIGKILL to a process").dying = true;
            }
            Action::Forget { id } => assert!(!self.engines.contains_key(&id), "forgot a process"),
            Action::Drain { .. } | Action::Resume { .. } => {}
        }
    }

    fn spawn(&mut self, id: ReplicaId) {
        assert!(!self.engines.contains_key(&id), "two processes for one replica");
        assert!(self.desired.ending.is_none(), "started while stopping");
        if !self.startable {
            self.tell(&id, Event::Refused("no binary".into()));
            return;
        }
        self.epoch += 1;
        self.spawns.push((id.clone(), self.now));
        let (epoch, ignores_sigterm) = (self.epoch, false);
        let engine = Engine { epoch, up: false, busy: 0, ignores_sigterm, dying: false };
        self.engines.insert(id.clone(), engine);
        let expected = Expected {
            kind: dataplane::wire::EngineKind::LlamaCpp,
            capabilities: vec![],
            slots: 1,
            kv: KvCapacity::Pool { tokens: 1 },
            model_files: None,
        };
        let run = Run {
            epoch,
            pid: 1,
            port: 1,
            expected,
            log_path: "e.log".into(),
            kv_block_tokens: None,
        };
        self.tell(&id, Event::Spawned(run));
    }

    fn tell(&mut self, id: &ReplicaId, event: Event) {
        let unit = Jitter::from_seed(self.epoch).unit();
        self.observed.apply(id, event, &limits(), self.now, unit);
    }

    /// Answers every open question; those about dead processes too.
    fn answer_probes(&mut self) {
        for (id, epoch) in std::mem::take(&mut self.probes) {
            let engine = self.engines.get(&id).filter(|engine| engine.epoch == epoch);
            let outcome = match engine {
                Some(Engine { up: true, busy, .. }) => ProbeOutcome::Up {
                    facts: Some(Facts { slots: 1, context_length_tokens: 1, kv_cache_tokens: 0 }),
                    in_flight: Some(InFlight { running: *busy, waiting: 0 }),
                },
                _ => ProbeOutcome::Down("silent".into()),
            };
            self.tell(&id, Event::Probed { epoch, outcome });
        }
    }

    fn die(&mut self, id: &ReplicaId) {
        if let Some(engine) = self.engines.remove(id) {
            let (how, log_line) = ("exited with status 1".into(), "bad tensor".into());
            self.tell(id, Event::Exited { epoch: engine.epoch, how, log_line });
        }
    }

    /// Those that were killed go.
    fn bury(&mut self) {
        let dying = self.engines.iter().filter(|(_, engine)| engine.dying);
        let dying: Vec<ReplicaId> = dying.map(|(id, _)| id.clone()).collect();
        dying.iter().for_each(|id| self.die(id));
    }

    /// `steps` in a world where everything answers and leaves at once.
    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
            self.answer_probes();
            self.bury();
        }
    }

    fn all_up(&mut self) {
        self.engines.values_mut().for_each(|engine| engine.up = true);
    }

    fn phase(&self, replica: u32) -> &Phase {
        &self.observed.replicas[&id(replica)].phase
    }
}

#[test]
fn an_engine_becomes_ready_and_comes_back_when_it_dies() {
    let mut world = World::new();
    world.want(0, 0);
    world.run(3);
    assert!(matches!(world.phase(0), Phase::Starting { .. }));
    world.all_up();
    world.run(5);
    assert!(matches!(world.phase(0), Phase::Ready { .. }));
    world.die(&id(0));
    assert!(matches!(world.phase(0), Phase::Backoff { .. }));
    let replica = &world.observed.replicas[&id(0)];
    assert_eq!(replica.message, "exited with status 1; last line: bad tensor; log: e.log");
    world.run(15);
    assert_eq!((world.spawns.len(), world.observed.replicas[&id(0)].restarts), (2, 1));
}

#[test]
fn an_engine_never_ready_is_given_up_and_nothing_is_left() {
    let mut world = World::new();
    world.want(0, 0);
    world.run(1000);
    assert_eq!(world.phase(0), &Phase::Failed { recheck_at: None });
    assert_eq!(world.spawns.len(), 3);
    assert!(world.engines.is_empty());
    let message = &world.observed.replicas[&id(0)].message;
    assert!(message.starts_with("given up after 3 attempts: not ready within 10 s"), "{message}");
    assert!(message.contains("last line: bad tensor; log: e.log"), "{message}");
    world.want(0, 1);
    world.run(2);
    assert_eq!(world.spawns.len(), 4, "a new spec is a new chance");
}

#[test]
fn what_was_refused_starts_once_the_cause_is_gone() {
    let mut world = World::new();
    world.startable = false;
    world.want(0, 0);
    world.run(200);
    assert!(matches!(world.phase(0), Phase::Failed { recheck_at: Some(_) }));
    world.startable = true;
    world.run(60);
    assert!(matches!(world.phase(0), Phase::Starting { .. }));
}

#[test]
fn a_hung_engine_is_killed_and_started_again() {
    let mut world = World::new();
    world.want(0, 0);
    world.run(1);
    world.all_up();
    world.run(5);
    world.engines.get_mut(&id(0)).unwrap().up = false;
    world.run(60);
    assert_eq!(world.spawns.len(), 2);
}

#[test]
fn draining_waits_for_the_last_request_but_not_for_ever() {
    for finishes in [true, false] {
        let mut world = World::new();
        world.want(0, 0);
        world.run(1);
        world.all_up();
        world.run(5);
        world.engines.get_mut(&id(0)).unwrap().busy = 2;
        world.desired.engines.clear();
        let asked = world.now;
        world.run(100);
        assert!(matches!(world.phase(0), Phase::Draining { .. }));
        if finishes {
            world.engines.get_mut(&id(0)).unwrap().busy = 0;
        }
        world.run(150);
        assert!(world.observed.replicas.is_empty() && world.engines.is_empty());
        let (_, busy, at) = &world.sigterms[0];
        assert_eq!(*busy, if finishes { 0 } else { 2 });
        assert!(finishes || *at >= asked + Duration::from_secs(20));
    }
}

#[test]
fn an_engine_wanted_again_while_it_drains_stays() {
    let mut world = World::new();
    world.want(0, 0);
    world.run(1);
    world.all_up();
    world.run(5);
    world.engines.get_mut(&id(0)).unwrap().busy = 1;
    world.desired.engines.clear();
    world.run(3);
    world.want(0, 0);
    world.run(300);
    assert!(matches!(world.phase(0), Phase::Ready { .. }));
    assert_eq!(world.spawns.len(), 1);
}

#[test]
fn stopping_cuts_drains_off_and_hurry_kills() {
    for (ending, steps) in
        [(Ending::Draining { until: Duration::from_secs(5) }, 110), (Ending::Hurried, 2)]
    {
        let mut world = World::new();
        world.want(0, 0);
        world.want(1, 0);
        world.run(1);
        world.all_up();
        world.run(5);
        for engine in world.engines.values_mut() {
            engine.busy = 1;
            engine.ignores_sigterm = true;
        }
        world.desired.ending = Some(ending);
        world.run(steps);
        assert!(world.observed.replicas.is_empty() && world.engines.is_empty());
    }
}

/// What the world may do between two steps.
#[derive(Clone, Debug)]
enum Whim {
    Want(u32, u8),
    Drop(u32),
    Up(u32, bool),
    Busy(u32, u32),
    Die(u32),
    Stubborn(u32),
    Answer,
    Bury,
    Startable(bool),
    Pass(u16),
}

fn whim() -> impl Strategy<Value = Whim> {
    let replica = 0u32..3;
    prop_oneof![
        2 => (replica.clone(), 0u8..2).prop_map(|(r, v)| Whim::Want(r, v)),
        1 => replica.clone().prop_map(Whim::Drop),
        3 => (replica.clone(), any::<bool>()).prop_map(|(r, up)| Whim::Up(r, up)),
        1 => (replica.clone(), 0u32..3).prop_map(|(r, busy)| Whim::Busy(r, busy)),
        1 => replica.clone().prop_map(Whim::Die),
        1 => replica.prop_map(Whim::Stubborn),
        4 => Just(Whim::Answer),
        2 => Just(Whim::Bury),
        1 => any::<bool>().prop_map(Whim::Startable),
        3 => (1u16..300).prop_map(Whim::Pass),
    ]
}

impl World {
    fn indulge(&mut self, whim: Whim) {
        let mut change = |replica, change: &dyn Fn(&mut Engine)| {
            self.engines.get_mut(&id(replica)).into_iter().for_each(change);
        };
        match whim {
            Whim::Want(replica, variant) => self.want(replica, variant),
            Whim::Drop(replica) => {
                self.desired.engines.remove(&id(replica));
            }
            Whim::Up(replica, up) => change(replica, &|engine| engine.up = up),
            Whim::Busy(replica, busy) => change(replica, &|engine| engine.busy = busy),
            Whim::Stubborn(replica) => change(replica, &|engine| engine.ignores_sigterm = true),
            Whim::Die(replica) => self.die(&id(replica)),
            Whim::Answer => self.answer_probes(),
            Whim::Bury => self.bury(),
            Whim::Startable(startable) => self.startable = startable,
            Whim::Pass(steps) => (0..steps).for_each(|_| self.step()),
        }
    }

    /// Starts of one replica between two changes of what is desired are spread by the backoff: after
    /// the n-th failure at least half of `initial * 2^(n-1)` passes.
    fn no_restart_storm(&self, since: Duration) {
        for replica in 0..3 {
            let times: Vec<Duration> = self
                .spawns
                .iter()
                .filter(|(of, at)| *of == id(replica) && *at >= since)
                .map(|(_, at)| *at)
                .collect();
            for pair in times.windows(2) {
                assert!(pair[1] - pair[0] >= limits().backoff_initial / 2, "{times:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happens_the_invariants_hold_and_the_end_is_clean(
        whims in prop::collection::vec(whim(), 1..60),
        end in prop_oneof![Just(None), Just(Some(5u64))],
    ) {
        // `step` and `obey` hold the rest: one process for each replica, one probe at a time, no
        // process forgotten, decisions settle, nothing overslept.
        let mut world = World::new();
        let mut desired_since = Duration::ZERO;
        for whim in whims {
            if matches!(whim, Whim::Want(..) | Whim::Drop(_)) {
                world.no_restart_storm(desired_since);
                desired_since = world.now;
            }
            world.indulge(whim);
            world.step();
        }
        world.no_restart_storm(desired_since);
        match end {
            None => world.desired.engines.clear(),
            Some(seconds) => {
                let until = world.now + Duration::from_secs(seconds);
                world.desired.ending = Some(Ending::Draining { until });
            }
        }
        // The longest drain and the grace, in which killed processes do leave.
        world.run(10 * (20 + 5 + 2));
        prop_assert!(world.engines.is_empty(), "{:?}", world.engines);
        prop_assert!(world.observed.replicas.is_empty(), "{:?}", world.observed.replicas);
    }
}
