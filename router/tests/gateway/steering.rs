//! What a request says of where it goes: rules by admins, sessions; and what the decision log says of it.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use dataplane::route::decision::{Decision, RulesFrom};
use dataplane::route::pick::{Because, Exclusion};

use super::client::{chat, post as bytes};
use super::engine::{Engine, json};
use super::gate::{Gate, content};
use super::process::{Router, worker};
use super::tenants::{CHAT, KeyFile, bearer, line, post, tenant, until};

const BY_LOAD: &str = "kv=0,load=1,power=0,capacity=0";

struct Log {
    folder: tempfile::TempDir,
}

impl Log {
    fn new() -> Log {
        Log { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("decisions.jsonl")
    }

    fn section(&self) -> String {
        section(&self.path())
    }

    /// What is there by now; what is being written is no line yet.
    fn decisions(&self) -> Vec<Decision> {
        let text = std::fs::read_to_string(self.path()).unwrap_or_default();
        let whole = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
        whole.lines().map(|line| Decision::from_line(line.as_bytes()).unwrap()).collect()
    }

    /// Those of one request, once there are so many.
    fn of(&self, id: &str, count: usize) -> Vec<Decision> {
        let found = || {
            let all = self.decisions().into_iter();
            all.filter(|one| one.request_id == id).collect::<Vec<_>>()
        };
        until("the decisions are written", || found().len() >= count);
        found()
    }
}

fn section(path: &Path) -> String {
    format!("[router.decision_log]\nfile = \"{}\"\nsample_ratio = 1.0\n", path.display())
}

fn workers(engines: &[Engine]) -> String {
    engines.iter().map(|engine| worker(engine, 4)).collect()
}

#[test]
fn admins_steer_their_requests_and_nobody_else_does() {
    let log = Log::new();
    let keys = KeyFile::with(&[
        line("root", "tenant=ops scopes=chat,admin"),
        line("user", "tenant=acme"),
        // The credential may, its tenant may not.
        line("half", "tenant=acme scopes=chat,admin"),
    ]);
    let tenants = tenant("ops", "admin = true") + &tenant("acme", "");
    let engines = [Engine::ok(), Engine::ok()];
    let sections = keys.section("required = true") + &log.section();
    let router = Router::start(&sections, &(workers(&engines) + &tenants));
    let weights = format!("X-Cgn-Score-Weights: {BY_LOAD}\r\n");
    let temperature = "x-cgn-temperature: 0.25\r\n".to_owned();
    for fields in [&weights, &temperature] {
        for key in ["user", "half"] {
            let answer = post(&router, &(bearer(key) + fields), &chat("x"));
            let error = answer.error();
            assert_eq!(answer.status, 403, "{}", answer.text());
            assert_eq!(error["code"], "insufficient_permissions");
            let message = error["message"].as_str().unwrap();
            assert!(message.starts_with("x-cgn-") && message.contains("admin"), "{message}");
        }
    }
    for wrong in [
        "x-cgn-score-weights: 0.5\r\n",
        "x-cgn-score-weights: kv=1,load=1,power=0,capacity=0\r\n",
        "x-cgn-score-weights:\r\n",
        "x-cgn-temperature: hot\r\n",
        "x-cgn-temperature: -0.1\r\n",
        "x-cgn-temperature: nan\r\n",
    ] {
        let answer = post(&router, &(bearer("root") + wrong), &chat("x"));
        assert_eq!((answer.status, answer.error()["code"].as_str()), (400, Some("invalid_header")));
        assert!(answer.text().contains("must be"), "{wrong}: {}", answer.text());
    }
    assert!(engines.iter().all(|engine| engine.asked().is_empty()));

    let fields = bearer("root") + "x-request-id: steered\r\n" + &weights + &temperature;
    assert_eq!(post(&router, &fields, &chat("x")).status, 200);
    let fields = bearer("user") + "x-request-id: plain\r\n";
    assert_eq!(post(&router, &fields, &chat("x")).status, 200);
    let asked: Vec<_> = engines.iter().flat_map(Engine::asked).collect();
    assert!(asked.iter().all(|asked| !asked.head.to_lowercase().contains("x-cgn")), "{asked:?}");
    let steered = &log.of("steered", 1)[0];
    assert_eq!(steered.rules_from, RulesFrom::Request);
    assert_eq!((steered.rules.weights.load, steered.rules.temperature), (1.0, 0.25));
    assert_eq!(steered.picked.unwrap().because, Because::Drawn, "{steered:?}");
    let plain = &log.of("plain", 1)[0];
    assert_eq!((plain.rules_from, plain.rules.temperature), (RulesFrom::Configuration, 0.0));
    let text = std::fs::read_to_string(log.path()).unwrap();
    assert!(!text.contains("root") && !text.contains("acme") && !text.contains("user"), "{text}");
}

#[test]
fn without_identity_whoever_is_on_loopback_is_an_admin() {
    let log = Log::new();
    let router = Router::start(&log.section(), &workers(&[Engine::ok(), Engine::ok()]));
    let fields = format!("x-request-id: a\r\nx-cgn-score-weights: {BY_LOAD}\r\n");
    assert_eq!(post(&router, &fields, &chat("x")).status, 200);
    assert_eq!(log.of("a", 1)[0].rules_from, RulesFrom::Request);
}

#[test]
fn a_retry_has_a_line_of_its_own_and_one_worker_is_decided_on_too() {
    let log = Log::new();
    let bad = Engine::start(|_, _| false);
    let good = Engine::ok();
    let both = worker(&bad, 4) + &worker(&good, 4);
    let alone = worker(&Engine::ok(), 1).replace("model = \"m\"", "model = \"alone\"");
    let router = Router::start(&log.section(), &(both + &alone));
    // Equal idle workers take turns, so one of two requests meets the bad one.
    for id in ["one", "two"] {
        let fields = format!("x-request-id: {id}\r\n");
        assert_eq!(post(&router, &fields, &chat("x")).status, 200);
    }
    let retried = if log.of("one", 1)[0].picked == log.of("two", 1)[0].picked {
        // Both went to the bad one first.
        "two"
    } else {
        let is_bad =
            |id: &str| log.of(id, 1)[0].worker(log.of(id, 1)[0].picked) != Some(&*id_of(&good));
        ["one", "two"].into_iter().find(|id| is_bad(id)).unwrap()
    };
    let [first, second] = &log.of(retried, 2)[..] else { panic!("not two lines") };
    assert_eq!((first.tried, second.tried), (0, 1));
    let bad_at = first.picked.unwrap().at;
    assert_eq!(second.candidates[bad_at].state.excluded, Some(Exclusion::Tried));
    assert_eq!(
        (second.worker(second.picked), second.picked.unwrap().because),
        (Some(&*id_of(&good)), Because::Only)
    );
    assert_ne!(first.seed, second.seed);

    let body = chat("x").replace("\"m\"", "\"alone\"");
    assert_eq!(post(&router, "x-request-id: alone\r\n", &body).status, 200);
    assert_eq!(log.of("alone", 1)[0].candidates.len(), 1);
}

fn id_of(engine: &Engine) -> String {
    format!("m@{}", engine.address)
}

#[test]
fn decisions_under_load_are_made_again_bit_for_bit() {
    const CLIENTS: usize = 6;
    const EACH: usize = 60;
    let log = Log::new();
    let engines = [Engine::ok(), Engine::ok(), Engine::ok()];
    let router = Router::start(&log.section(), &workers(&engines));
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let mut client = router.client();
            scope.spawn(move || {
                for i in 0..EACH {
                    let words: String = (0..200).map(|word| format!("{}-{word} ", i % 7)).collect();
                    let fields = match i % 3 {
                        0 => format!("x-session-id: {number}\r\n"),
                        1 => "x-cgn-temperature: 0.5\r\n".to_owned(),
                        _ => String::new(),
                    };
                    assert_eq!(client.post(CHAT, &fields, &chat(&words)).status, 200);
                }
            });
        }
    });
    let count = |result: &str| {
        router.metric(&format!("cgn_router_decision_lines_total{{result=\"{result}\"}}"))
    };
    until("all lines are counted", || count("written") >= (CLIENTS * EACH) as f64);
    let decisions = log.decisions();
    assert_eq!(decisions.len(), CLIENTS * EACH);
    assert_eq!(count("dropped") + count("failed"), 0.0);
    for decision in &decisions {
        assert!(decision.picked.is_some());
        assert_eq!(decision.again(None), decision.picked, "{decision:?}");
    }
    let because = |wanted| decisions.iter().any(|one| one.picked.unwrap().because == wanted);
    assert!(because(Because::Drawn) && because(Because::Session));
    assert!(
        decisions.iter().any(|one| one.candidates.iter().any(|seen| seen.state.held.total() > 0))
    );
    let seeds: BTreeSet<u64> = decisions.iter().map(|one| one.seed).collect();
    assert_eq!(seeds.len(), decisions.len());
}

#[test]
fn a_log_that_cannot_be_written_harms_no_request() {
    let engines = [Engine::ok(), Engine::ok()];
    let router = Router::start(&section(Path::new("/dev/full")), &workers(&engines));
    let mut client = router.client();
    for _ in 0..20 {
        assert_eq!(client.post(CHAT, "", &chat("x")).status, 200);
    }
    until("the lost lines are counted", || {
        router.metric("cgn_router_decision_lines_total{result=\"failed\"}") >= 20.0
    });
}

#[test]
fn a_session_stays_where_it_was_whatever_names_it() {
    for named_by in ["header", "prompt_cache_key", "user"] {
        let engines = [Engine::ok(), Engine::ok(), Engine::ok()];
        let router = Router::start("", &workers(&engines));
        let mut homes = BTreeSet::new();
        for session in 0..9 {
            let mut at = BTreeSet::new();
            for turn in 0..4 {
                let body = chat(&format!("{session} {turn}"));
                let (fields, body) = match named_by {
                    "header" => (format!("X-Session-Id: s{session}\r\n"), body),
                    key => (
                        String::new(),
                        body.replacen('{', &format!("{{\"{key}\":\"s{session}\","), 1),
                    ),
                };
                let answer = post(&router, &fields, &body);
                at.insert(answer.field("x-cgn-worker").unwrap().to_owned());
            }
            assert_eq!(at.len(), 1, "{named_by}: session {session} was at {at:?}");
            homes.extend(at);
        }
        assert_eq!(homes.len(), 3, "{named_by}: all sessions at {homes:?}");
        let asked = engines.iter().flat_map(Engine::asked).next().unwrap();
        assert_eq!(asked.field("x-session-id").is_some(), named_by == "header", "it passes");
    }
}

#[test]
fn sessions_are_not_followed_where_affinity_is_0_and_other_headers_may_name_them() {
    let at = |keys: &str, field: &str| {
        let engines = [Engine::ok(), Engine::ok(), Engine::ok()];
        let router = Router::start(&format!("[router.routing]\n{keys}\n"), &workers(&engines));
        let one = |turn| {
            let answer = post(&router, field, &chat(&format!("{turn}")));
            answer.field("x-cgn-worker").unwrap().to_owned()
        };
        (0..6).map(one).collect::<BTreeSet<_>>().len()
    };
    assert_eq!(at("session_affinity = 0.0", "x-session-id: s\r\n"), 3);
    assert_eq!(at("session_header = \"x-conversation\"", "X-Conversation: s\r\n"), 1);
    assert_eq!(at("session_header = \"x-conversation\"", "x-session-id: s\r\n"), 3);
    assert_eq!(at("session_header = \"\"", "x-session-id: s\r\n"), 3);
}

#[test]
fn a_session_leaves_a_worker_that_has_become_dear() {
    let gate = Gate::default();
    let engine = || {
        let gate = gate.clone();
        Engine::start(move |asked, stream| {
            if content(&asked.body) == "hold" {
                gate.pass();
            }
            stream.write_all(&json("{}")).is_ok()
        })
    };
    let engines = [engine(), engine()];
    let router = Router::start("", &workers(&engines));
    let session = "x-session-id: s\r\n";
    let home = post(&router, session, &chat("first")).field("x-cgn-worker").unwrap().to_owned();
    let held_by = || {
        let holds = |engine: &&Engine| engine.asked().iter().any(|a| content(&a.body) == "hold");
        engines.iter().find(holds).map(id_of)
    };
    let mut holding = router.client();
    // Long, so that the work it is believed to be is not over before the third comes.
    let hold = chat(&format!("hold {}", "word ".repeat(2_000)));
    holding.send(bytes(CHAT, session, &hold));
    until("it is held", || held_by().is_some());
    assert_eq!(held_by(), Some(home.clone()));
    let third = post(&router, session, &chat("third"));
    assert_ne!(third.field("x-cgn-worker"), Some(home.as_str()), "a request waits there");
    gate.open();
    assert_eq!(holding.answer().status, 200);
}
