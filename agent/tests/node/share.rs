//! Two routers in front of the same engines: each knows what the other gave, as long as the other lives.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dataplane::feed::{Load, ToAgent, encode};

use crate::client::{self, Exchange};
use crate::fake_router::FakeRouter;
use crate::house::House;
use crate::process::{Process, eventually};
use crate::recipe::{FAST, REAL, ask, up, words};

/// Most of a minute at the speed of [`REAL`]; nobody waits for its end.
const LONG_TOKENS: u32 = 8_000;
const SHORTS: usize = 12;
const OFF_MAX: usize = 2;

/// A router that is not the house's own.
struct Second {
    process: Process,
    http: SocketAddr,
}

impl Second {
    fn start(house: &House) -> Second {
        let (process, http) = house.second_router();
        let second = Second { process, http };
        eventually("the second router is ready", || {
            client::get(http, "/readyz").is_some_and(|answer| answer.status == 200)
        });
        second
    }

    /// The sum of its metric lines that start with `name`.
    fn metric(&self, name: &str) -> f64 {
        let admin = SocketAddr::new(self.http.ip(), self.http.port() + 1);
        let text = client::get(admin, "/metrics").expect("no metrics").body;
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    fn others_inflight(&self, worker: &str) -> f64 {
        self.metric(&format!("cgn_router_worker_inflight_others_requests{{worker=\"{worker}\"}}"))
    }

    /// Where distinct short prompts went, one after the other.
    fn landed(&self, first: usize) -> BTreeMap<String, usize> {
        let mut landed = BTreeMap::new();
        for number in first..first + SHORTS {
            let body = ask(&format!("{number} is short"), 1);
            let answer = client::post(self.http, "/v1/chat/completions", &body);
            assert_eq!(answer.status, 200, "{answer:?}");
            *landed.entry(answer.worker().to_owned()).or_default() += 1;
        }
        landed
    }
}

/// A request that stays with its engine, and the engine.
fn long(house: &House, number: usize) -> (Exchange, String) {
    let before = picks(house);
    let mut body = ask(&words(number, 30), LONG_TOKENS);
    body["stream"] = true.into();
    let mut exchange =
        Exchange::begin(house.http(), "POST", "/v1/chat/completions", &body.to_string()).unwrap();
    exchange.streams();
    let after = picks(house);
    let grown = after.iter().find(|(worker, count)| before.get(*worker) != Some(count));
    (exchange, grown.unwrap().0.clone())
}

/// Requests given to each worker by the house's own router.
fn picks(house: &House) -> BTreeMap<String, u64> {
    let workers = house.engines().into_iter().map(|engine| engine.worker);
    let count =
        |worker: &str| house.metric(&format!("cgn_router_picks_total{{worker=\"{worker}\"}}"));
    workers.map(|worker| (worker.clone(), count(&worker) as u64)).collect()
}

#[test]
fn what_one_router_gave_counts_at_the_other_until_it_dies() {
    let (mut house, _) = up(2, 4, REAL);
    let second = Second::start(&house);
    eventually("they know of each other", || {
        second.metric("cgn_router_worker_other_routers{") == 2.0
            && house.metric("cgn_router_worker_other_routers{") == 2.0
    });
    let even = second.landed(0);
    println!("both idle: {even:?}");
    assert!(even.len() == 2, "{even:?}");

    let (_stream, busy) = long(&house, 1);
    eventually("the second hears of it", || second.others_inflight(&busy) == 1.0);
    assert_eq!(house.metric("cgn_router_worker_inflight_others_requests{"), 0.0);
    let landed = second.landed(100);
    println!("{busy} is busy: {landed:?}");
    assert!(landed.get(&busy).is_none_or(|count| *count <= OFF_MAX), "{busy} is busy: {landed:?}");

    // Killed, not asked to leave: the connection ends, and with it what it said.
    house.router.as_mut().unwrap().crash();
    eventually("the second hears no more of it", || {
        second.metric("cgn_router_worker_other_routers{") == 0.0
            && second.others_inflight(&busy) == 0.0
    });
    let landed = second.landed(200);
    println!("the first is dead: {landed:?}");
    assert!(landed.get(&busy).is_some_and(|count| *count > OFF_MAX), "{landed:?}");
    drop(second.process);
}

#[test]
fn an_agent_adds_up_what_routers_say_and_leaves_who_lies() {
    // An engine without KV events is shared as well. The house's own router is one more.
    let (house, engines) = up(1, 4, &format!("{FAST}, \"--mimic\", \"llama_cpp\""));
    let worker = engines[0].worker.as_str();
    let load = |inflight| Load { inflight, waiting: 1, queued_us: 9_000 };
    let (mut one, mut two) = (FakeRouter::greet(&house), FakeRouter::greet(&house));
    one.tell("n/nobody/0", load(7));
    one.tell(worker, load(3));
    two.hears_of(worker, load(3), 2);
    two.tell(worker, load(4));
    one.hears_of(worker, load(4), 2);
    let mut three = FakeRouter::greet(&house);
    three.hears_of(worker, Load { inflight: 7, waiting: 2, queued_us: 18_000 }, 3);
    eventually("the house's router hears of all of them", || {
        house.metric("cgn_router_worker_inflight_others_requests{") == 7.0
    });
    drop(three);

    // More wait than are there; and what it said before counts no more.
    let mut lie = encode(&ToAgent::Load { worker: worker.to_owned(), load: load(1) });
    let at = lie.len() - 3;
    assert_eq!(lie[at], 1);
    lie[at] = 2;
    one.say_bytes(&lie);
    while one.hear().is_some() {}
    two.hears_of(worker, Load::default(), 1);
    drop(two);

    let mut rude = FakeRouter::dial(&house);
    rude.tell(worker, load(3));
    assert_eq!(rude.hear(), None, "it said no hello");
    eventually("nobody else is left", || {
        house.metric("cgn_router_worker_other_routers{") == 0.0
            && house.metric("cgn_router_worker_inflight_others_requests{") == 0.0
    });
}

/// One request of a measured load.
struct Served {
    worker: String,
    began: Duration,
    ended: Duration,
}

const BURSTS: usize = 40;
const BURST: usize = 5;
/// Between two bursts, which come to the routers in turn.
const BETWEEN: Duration = Duration::from_millis(450);

/// The routers get bursts in turn; two of five requests are long.
fn bursts(routers: [SocketAddr; 2], run: usize) -> Vec<Served> {
    let begun = Instant::now();
    let one = |router: SocketAddr, number: usize| {
        let tokens = [160, 12, 12, 160, 12][number % BURST];
        let began = begun.elapsed();
        let body = ask(&words(run * 100_000 + number, 20), tokens);
        let answer = client::post(router, "/v1/chat/completions", &body);
        assert_eq!(answer.status, 200, "{answer:?}");
        Served { worker: answer.worker().to_owned(), began, ended: begun.elapsed() }
    };
    std::thread::scope(|scope| {
        let mut asked = Vec::new();
        for burst in 0..BURSTS {
            let due = BETWEEN * u32::try_from(burst).unwrap();
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
            let router = routers[burst % 2];
            let numbers = burst * BURST..(burst + 1) * BURST;
            asked.extend(numbers.map(|number| scope.spawn(move || one(router, number))));
        }
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    })
}

/// The busiest engine's requests by the mean, over the time in which there were as many as engines.
fn spread(served: &[Served], engines: usize) -> f64 {
    let mut steps: Vec<(Duration, &str, i32)> = served
        .iter()
        .flat_map(|one| [(one.began, &*one.worker, 1), (one.ended, &*one.worker, -1)])
        .collect();
    steps.sort();
    let (mut running, mut sum, mut time) = (BTreeMap::<&str, i32>::new(), 0.0, 0.0);
    for pair in steps.windows(2) {
        *running.entry(pair[0].1).or_default() += pair[0].2;
        let (total, most) = (running.values().sum::<i32>(), running.values().max().unwrap());
        let lasted = (pair[1].0 - pair[0].0).as_secs_f64();
        if total >= i32::try_from(engines).unwrap() {
            sum += lasted * f64::from(*most) * engines as f64 / f64::from(total);
            time += lasted;
        }
    }
    sum / time
}

/// The mean and the 99th percentile of how long requests took, in ms.
fn latency_ms(served: &[Served]) -> [f64; 2] {
    let mut took: Vec<f64> =
        served.iter().map(|one| (one.ended - one.began).as_secs_f64() * 1_000.0).collect();
    took.sort_by(f64::total_cmp);
    [took.iter().sum::<f64>() / took.len() as f64, took[took.len() * 99 / 100]]
}

#[test]
#[ignore = "measures for some minutes: cargo test --release --workspace --test node -- --ignored share"]
fn how_evenly_two_routers_spread_bursts_with_and_without_sharing() {
    const ENGINES: u32 = 4;
    // Without KV events, so that nothing differs but whether an agent listens.
    let (mut house, _) = up(ENGINES, 2, "\"--speedup-ratio\", \"1\", \"--mimic\", \"llama_cpp\"");
    let second = Second::start(&house);
    let (one, two) = ([house.http(); 2], [house.http(), second.http]);
    let config = house.dir.path().join("cgn-agent.toml");
    let shared = std::fs::read_to_string(&config).unwrap();
    let alone: String = shared
        .lines()
        .map(|line| if line.starts_with("events_listen") { "events_listen = \"\"" } else { line })
        .flat_map(|line| [line, "\n"])
        .collect();
    for round in 0..3 {
        let runs = [("one", &shared, 4.0), ("shared", &shared, 4.0), ("alone", &alone, 0.0)];
        for ((name, text, heard), routers) in runs.into_iter().zip([one, two, two]) {
            house.agent = None;
            std::fs::write(&config, text).unwrap();
            house.agent = Some(house.process("cgn-agent"));
            eventually("all are ready and as they are to be", || {
                [
                    &house.metric("cgn_router_worker_ready{"),
                    &second.metric("cgn_router_worker_ready{"),
                ]
                .into_iter()
                .all(|ready| *ready == f64::from(ENGINES))
                    && second.metric("cgn_router_worker_other_routers{") == heard
            });
            let served = bursts(routers, round);
            let [mean, p99] = latency_ms(&served);
            println!(
                "{name}: busiest by mean {:.3}, latency mean {mean:.0} ms, p99 {p99:.0} ms",
                spread(&served, ENGINES as usize)
            );
        }
    }
}
