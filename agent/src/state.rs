//! What the agent keeps over its own restarts, in `state_dir`.
//!
//! | file | content |
//! |---|---|
//! | `desired.pb` | the last `DesiredState`, as it came (protobuf) |
//! | `epoch` | the highest epoch given out, in decimal |
//! | `lock` | locked while an agent runs |
//!
//! Files are replaced whole by rename. An unreadable file is as good as none: control says it all
//! again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use control::api::DesiredState;
use nix::fcntl::{Flock, FlockArg};
use prost::Message;

/// The folder, held by this process alone.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    epoch: u64,
    _lock: Flock<File>,
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be made or written.
    #[error("state_dir {}: {source}; set [agent] state_dir to a folder this user can write", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another agent runs with it.
    #[error("state_dir {} is in use by another cgn-agent; stop that one first, or give this one its own", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
}

impl StateDir {
    /// Makes the folder if need be, and locks it.
    ///
    /// # Errors
    /// Any [`StateError`].
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::Io { path: path.to_owned(), source };
        let absolute = std::path::absolute(path).map_err(failed)?;
        std::fs::create_dir_all(path).map_err(failed)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(failed)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
            if error == nix::errno::Errno::EWOULDBLOCK {
                StateError::InUse { path: path.to_owned() }
            } else {
                failed(error.into())
            }
        })?;
        let text = std::fs::read_to_string(path.join("epoch")).unwrap_or_default();
        let epoch = text.trim().parse().unwrap_or(0);
        Ok(StateDir { path: absolute, epoch, _lock: lock })
    }

    /// The folder, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What control last said, if it ever did.
    pub fn desired(&self) -> Option<DesiredState> {
        let path = self.path.join("desired.pb");
        let bytes = std::fs::read(&path).ok()?;
        match DesiredState::decode(bytes.as_slice()) {
            Ok(desired) => Some(desired),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the saved desired state is unreadable; waiting for control");
                None
            }
        }
    }

    /// Keeps what control said.
    ///
    /// # Errors
    /// When the folder cannot be written. Then the agent goes on without.
    pub fn save_desired(&self, desired: &DesiredState) -> io::Result<()> {
        self.replace("desired.pb", &desired.encode_to_vec())
    }

    /// An epoch no process of this node had before.
    pub fn next_epoch(&mut self) -> u64 {
        self.epoch += 1;
        if let Err(error) = self.replace("epoch", self.epoch.to_string().as_bytes()) {
            tracing::warn!(%error, "cannot keep the epoch; epochs may repeat after a restart");
        }
        self.epoch
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let new = self.path.join(format!("{name}.new"));
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        std::fs::rename(new, self.path.join(name))
    }
}

#[cfg(test)]
mod tests {
    use control::api::{DesiredEngine, EngineSpec};

    use super::*;

    #[test]
    fn desired_state_and_epochs_outlive_the_agent() {
        let directory = tempfile::tempdir().unwrap();
        let spec = EngineSpec { model: "m".into(), ..EngineSpec::default() };
        let engine = DesiredEngine { deployment: "d".into(), replica: 1, spec: Some(spec) };
        let desired = DesiredState { version: 7, engines: vec![engine] };
        {
            let mut state = StateDir::open(directory.path()).unwrap();
            assert!(state.desired().is_none());
            state.save_desired(&desired).unwrap();
            assert_eq!((state.next_epoch(), state.next_epoch()), (1, 2));
        }
        let mut state = StateDir::open(directory.path()).unwrap();
        assert_eq!(state.desired(), Some(desired));
        assert_eq!(state.next_epoch(), 3);
    }

    #[test]
    fn one_agent_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let _held = StateDir::open(directory.path()).unwrap();
        let error = StateDir::open(directory.path()).unwrap_err();
        assert!(matches!(error, StateError::InUse { .. }), "{error}");
    }

    #[test]
    fn damaged_files_are_as_good_as_none() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("desired.pb"), [0xff; 9]).unwrap();
        std::fs::write(directory.path().join("epoch"), "many").unwrap();
        let mut state = StateDir::open(directory.path()).unwrap();
        assert!(state.desired().is_none());
        assert_eq!(state.next_epoch(), 1);
    }
}
