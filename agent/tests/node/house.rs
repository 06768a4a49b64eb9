//! A whole node in a folder and on ports of its own: `cgn-control`, `cgn-agent`, `cgn-router`, where it is
//! asked for `cgn-kvcached`, and `cgnctl` pointed at them.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{self, Answer};
use crate::process::{Process, binary, eventually};

/// Below the range the system takes ports for outgoing connections from: what has to come back to
/// its port after a crash must find it free.
const PORT_FIRST: u16 = 20_000;
const BLOCKS: u16 = 700;
/// Control, router, its metrics, the agent's metrics, engines, a second router and its metrics; the
/// last one claims the block.
const BLOCK_PORTS: u16 = 16;
const ENGINE_PORT: u16 = 4;
const CLAIM_PORT: u16 = BLOCK_PORTS - 1;
const SECOND_ROUTER_PORT: u16 = CLAIM_PORT - 2;
/// The KV daemon's metrics, and its RESP door before it: no house has a second router too.
const KVCACHED_PORT: u16 = SECOND_ROUTER_PORT + 1;

/// Everything a node needs, and the processes that run. They end in the order of the fields.
pub struct House {
    pub router: Option<Process>,
    pub agent: Option<Process>,
    pub control: Option<Process>,
    pub kvcached: Option<Process>,
    pub dir: TempDir,
    port: u16,
    /// Held so that no other test, of this process or another, takes the block.
    _claim: TcpListener,
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// stdout, which is one JSON object.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        let value: Value = serde_json::from_str(&self.stdout).unwrap();
        assert!(value.is_object(), "{value}");
        value
    }

    /// The one line that says what is wrong, of a command that failed.
    pub fn error(&self) -> &str {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{self:?}");
        let mut errors = self.stderr.lines().filter(|line| line.starts_with("error: "));
        let error = errors.next().unwrap_or_else(|| panic!("no error line: {self:?}"));
        assert_eq!(errors.next(), None);
        error
    }
}

impl House {
    /// Writes the configurations; `engines` are further lines of the agent's section of that name, `agent` of
    /// its own, `router` further sections of the router's.
    fn build(engines: &str, agent: &str, router: &str) -> House {
        let dir = tempfile::tempdir().unwrap();
        let (port, claim) = claim_block();
        let house = House {
            router: None,
            agent: None,
            control: None,
            kvcached: None,
            dir,
            port,
            _claim: claim,
        };
        let path = |name: &str| house.dir.path().join(name);
        std::fs::create_dir(path("recipes")).unwrap();
        let control = house.address(0);
        let text = format!(
            "[control]\nlisten = \"{control}\"\ndata_dir = {:?}\nsocket = {:?}\n",
            path("data"),
            path("control.sock"),
        );
        std::fs::write(path("cgn-control.toml"), text).unwrap();
        let text = format!(
            "[agent]\nnode_id = \"n\"\ncontrol = \"http://{control}\"\nmetrics_listen = \"{}\"\n\
             events_listen = \"unix:{}\"\nstate_dir = {:?}\nlog_dir = {:?}\nmodel_dir = {:?}\n\
             engine_port_min = {}\nengine_port_max = {}\nbackoff_initial_ms = 200\n\
             stop_grace_s = 2\nshutdown_timeout_s = 1\n{agent}\n[engines]\n{engines}\n",
            house.address(3),
            path("kv.sock").display(),
            path("state"),
            path("logs"),
            path("models"),
            house.port + ENGINE_PORT,
            house.port + SECOND_ROUTER_PORT - 1,
        );
        std::fs::write(path("cgn-agent.toml"), text).unwrap();
        let text = format!(
            "[router]\nlisten_http = \"{}\"\nlisten_admin = \"{}\"\ncores = 2\ncontrol_socket = {:?}\n{router}",
            house.http(),
            house.address(2),
            path("control.sock"),
        );
        std::fs::write(path("cgn-router.toml"), text).unwrap();
        house
    }

    /// Builds one and starts all three processes.
    pub fn start(engines: &str) -> House {
        House::start_with(engines, "")
    }

    /// The same with further sections of the router's file.
    pub fn start_with(engines: &str, router: &str) -> House {
        House::build(engines, "", router).started()
    }

    /// The same with a KV daemon, in which the agent keeps what engines computed.
    pub fn start_keeping(engines: &str) -> House {
        // Both limits are there so that a request goes on without; what is tried here is going on with it, on
        // a machine as busy as it may be.
        let patient = "[router.kv]\ntokenize_timeout_ms = 60000\nwarm_ms_max = 60000\n";
        let mut house = House::build(engines, "kv_socket = \"KVCACHED\"", patient);
        let folder = house.dir.path().to_owned();
        let socket = folder.join("kvcached.sock");
        let agent = folder.join("cgn-agent.toml");
        let text = std::fs::read_to_string(&agent).unwrap();
        std::fs::write(agent, text.replace("KVCACHED", socket.to_str().unwrap())).unwrap();
        let metrics = house.address(KVCACHED_PORT);
        let text = format!(
            "[kv]\nram_gib = 1.0\nuds = {socket:?}\nmetrics_listen = \"{metrics}\"\n\
             resp_listen = \"{}\"\nhuge_pages = \"never\"\n[kv.limits]\nblock_mib_max = 64\n",
            house.address(KVCACHED_PORT - 1),
        );
        std::fs::write(folder.join("cgn-kvcached.toml"), text).unwrap();
        let mut kvcached = house.process("cgn-kvcached");
        eventually("the KV daemon listens", || kvcached.is_alive() && socket.exists());
        house.kvcached = Some(kvcached);
        house.started()
    }

    /// Starts what a node has in any case.
    fn started(self) -> House {
        let mut house = self;
        house.start_control();
        let (mut agent, mut router) = (house.process("cgn-agent"), house.process("cgn-router"));
        let is_attached = |nodes: Value| nodes["nodes"][0]["attached"] == true;
        eventually("the agent is attached", || {
            agent.is_alive() && is_attached(house.ctl(&["cluster", "nodes"]))
        });
        eventually("the router listens", || router.is_alive() && house.get("/healthz").is_some());
        (house.agent, house.router) = (Some(agent), Some(router));
        house
    }

    /// Starts control and waits until it answers.
    pub fn start_control(&mut self) {
        let mut control = self.process("cgn-control");
        let answers = || self.cgnctl(&["cluster", "nodes"]).code == Some(0);
        eventually("control answers", || control.is_alive() && answers());
        self.control = Some(control);
    }

    /// Starts one of the three.
    pub fn process(&self, name: &'static str) -> Process {
        let folder = self.dir.path();
        Process::start(name, &folder.join(format!("{name}.toml")), folder)
    }

    /// Starts a second router that follows the same control, configured as the first; gives where
    /// its clients come in.
    pub fn second_router(&self) -> (Process, SocketAddr) {
        let folder = self.dir.path();
        let text = std::fs::read_to_string(folder.join("cgn-router.toml")).unwrap();
        let second = [self.address(SECOND_ROUTER_PORT), self.address(SECOND_ROUTER_PORT + 1)];
        let text = text.replace(&self.http().to_string(), &second[0].to_string());
        let text = text.replace(&self.address(2).to_string(), &second[1].to_string());
        let config = folder.join("second-router.toml");
        std::fs::write(&config, text).unwrap();
        (Process::start("cgn-router", &config, folder), second[0])
    }

    fn address(&self, index: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port + index))
    }

    /// Where clients come in.
    pub fn http(&self) -> SocketAddr {
        self.address(1)
    }

    /// Asks the router.
    pub fn get(&self, path: &str) -> Option<Answer> {
        client::get(self.http(), path)
    }

    /// Asks for a chat answer.
    pub fn chat(&self, body: &Value) -> Answer {
        client::post(self.http(), "/v1/chat/completions", body)
    }

    /// Waits until some worker can take requests.
    pub fn ready(&self) {
        let is_ready = || self.get("/readyz").is_some_and(|answer| answer.status == 200);
        eventually("the router is ready", is_ready);
    }

    /// Where the operators of the first router and of the second come in.
    pub fn admins(&self) -> [SocketAddr; 2] {
        [self.address(2), self.address(SECOND_ROUTER_PORT + 1)]
    }

    /// The sum of the router's metric lines that start with `name`.
    pub fn metric(&self, name: &str) -> f64 {
        sum_at(self.address(2), name)
    }

    /// The sum of the agent's metric lines that start with `name`.
    pub fn agent_metric(&self, name: &str) -> f64 {
        sum_at(self.address(3), name)
    }

    /// Puts a recipe into the tree.
    pub fn recipe(&self, name: &str, text: &str) {
        let path = self.recipes().join(format!("{name}.toml"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn recipes(&self) -> PathBuf {
        self.dir.path().join("recipes")
    }

    /// Runs `cgnctl`.
    pub fn cgnctl(&self, args: &[&str]) -> Ran {
        let output = Command::new(binary("cgnctl"))
            .args(args)
            .env("CGN_CONTROL", format!("http://{}", self.address(0)))
            .env("CGN_RECIPES_DIR", self.recipes())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs `cgnctl --output json`, which must succeed.
    pub fn ctl(&self, args: &[&str]) -> Value {
        self.cgnctl(&[&["--output", "json"], args].concat()).json()
    }

    /// All engines of the node as `cluster nodes` reports them.
    pub fn engines(&self) -> Vec<Engine> {
        let nodes = self.ctl(&["cluster", "nodes"]);
        nodes["nodes"][0]["engines"].as_array().unwrap().iter().map(Engine::of).collect()
    }
}

/// One engine as `cgnctl` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    pub worker: String,
    pub state: String,
    pub url: String,
    pub pid: u32,
    pub epoch: u64,
    pub restarts: u64,
}

impl Engine {
    pub fn of(value: &Value) -> Engine {
        let text = |key: &str| value[key].as_str().unwrap().to_owned();
        let number = |key: &str| value[key].as_u64().unwrap();
        Engine {
            worker: text("worker"),
            state: text("state"),
            url: text("url"),
            pid: u32::try_from(number("pid")).unwrap(),
            epoch: number("epoch"),
            restarts: number("restarts"),
        }
    }
}

fn sum_at(address: SocketAddr, name: &str) -> f64 {
    let text = client::get(address, "/metrics").expect("no metrics").body;
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// The first port of a block that nobody listens in, and what claims it.
fn claim_block() -> (u16, TcpListener) {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % u32::from(BLOCKS)).unwrap();
    for _ in 0..BLOCKS {
        let block = (start + NEXT.fetch_add(1, Relaxed)) % BLOCKS;
        let first = PORT_FIRST + block * BLOCK_PORTS;
        let bind = |port: u16| TcpListener::bind(("127.0.0.1", port));
        let Ok(claim) = bind(first + CLAIM_PORT) else { continue };
        if (first..first + CLAIM_PORT).all(|port| bind(port).is_ok()) {
            return (first, claim);
        }
    }
    panic!("no {BLOCK_PORTS} free ports in a row");
}
