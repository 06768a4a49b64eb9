//! One `cgn-control` on a free port in a folder of its own, and `cgnctl` pointed at it.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use control::api::ListNodesRequest;
use control::api::control_client::ControlClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tonic::transport::Channel;

/// Long enough for the slowest machine; nothing waits for it when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A folder with a configuration, and perhaps a process in it.
pub(crate) struct House {
    pub(crate) dir: TempDir,
    pub(crate) address: String,
    control: Option<Child>,
}

impl House {
    /// Writes a configuration with `extra` lines and starts nothing.
    pub(crate) fn build(extra: &str) -> House {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let house = House { dir, address: format!("http://127.0.0.1:{port}"), control: None };
        let text = format!(
            "[control]\nlisten = \"127.0.0.1:{port}\"\ndata_dir = {:?}\nsocket = {:?}\n{extra}\n",
            house.dir.path().join("data"),
            house.socket()
        );
        std::fs::write(house.config(), text).unwrap();
        house
    }

    /// Builds one and starts its control.
    pub(crate) async fn start(extra: &str) -> House {
        let mut house = House::build(extra);
        house.start_control().await;
        house
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("control.toml")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    /// Starts control and waits until it answers.
    pub(crate) async fn start_control(&mut self) {
        let mut child = control_command(&self.config()).spawn().unwrap();
        let up = async {
            while !answers(&self.address).await {
                assert!(child.try_wait().unwrap().is_none(), "cgn-control ended at once");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, up).await.expect("cgn-control does not answer");
        self.control = Some(child);
    }

    /// As a crash or a power cut ends it.
    pub(crate) async fn crash_control(&mut self) {
        self.control.take().unwrap().kill().await.unwrap();
    }

    /// As an operator ends it; gives whether it ended well.
    pub(crate) async fn stop_control(&mut self) -> bool {
        let mut child = self.control.take().unwrap();
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
        ended.expect("it does not stop").unwrap().success()
    }

    pub(crate) async fn client(&self) -> ControlClient<Channel> {
        ControlClient::connect(self.address.clone()).await.unwrap()
    }

    /// Runs `cgnctl` with the shipped recipes.
    pub(crate) async fn cgnctl(&self, args: &[&str]) -> Ran {
        self.cgnctl_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes"), args).await
    }

    /// Runs `cgnctl` with the recipes in `recipes`.
    pub(crate) async fn cgnctl_in(&self, recipes: &Path, args: &[&str]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_cgnctl"))
            .args(args)
            .env("CGN_CONTROL", &self.address)
            .env("CGN_RECIPES_DIR", recipes)
            .stdin(Stdio::null())
            .output();
        let output = tokio::time::timeout(PATIENCE, output).await.expect("cgnctl does not end");
        Ran::new(output.unwrap())
    }
}

/// A connection alone says nothing: the port is taken before the store is open.
async fn answers(address: &str) -> bool {
    match ControlClient::connect(address.to_owned()).await {
        Ok(mut client) => client.list_nodes(ListNodesRequest {}).await.is_ok(),
        Err(_) => false,
    }
}

/// `cgn-control` of that configuration, killed with the test.
pub(crate) fn control_command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cgn-control"));
    command.arg("--config").arg(config).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a `cgn-control` that is expected to end by itself.
pub(crate) async fn control_ends(config: &Path) -> Ran {
    let output = control_command(config).output();
    Ran::new(tokio::time::timeout(PATIENCE, output).await.expect("it stays").unwrap())
}

/// How a command ended and what it said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    fn new(output: Output) -> Ran {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// stdout, which is one JSON object and nothing else.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        let value: Value = serde_json::from_str(&self.stdout).unwrap();
        assert!(value.is_object());
        value
    }

    /// The one line that says what is wrong.
    pub(crate) fn error(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.stdout, "");
        let mut errors = self.stderr.lines().filter(|line| line.starts_with("error: "));
        let error = errors.next().unwrap();
        assert_eq!(errors.next(), None);
        error
    }
}

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
