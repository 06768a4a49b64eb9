//! Whose build output lies in the target directory.
//!
//! Cargo names the artefacts of workspace members by their path within the workspace and judges
//! freshness by file times. Two clones that share a target directory therefore share names, and the
//! older clone could be served the newer one's binaries. Before a build, the directory is claimed:
//! where another clone used it last, the artefacts of our own packages are removed. Those of the
//! dependencies, which are the slow part, stay.

use std::fs;

use crate::cache::{Cache, make};
use crate::failure::Failure;
use crate::step;

/// Every member of the workspace that is built into the cache folder.
const PACKAGES: &[&str] =
    &["agent", "control", "dataplane", "kvclient", "kvstore", "rdma", "router", "tuning"];

/// Makes sure that nothing of another clone's is taken for ours.
pub fn claim(cache: &Cache) -> Result<(), Failure> {
    make(&cache.target)?;
    let marker = cache.target.join(".checkout");
    let ours = cache.repository.display().to_string();
    if fs::read_to_string(&marker).is_ok_and(|last| last == ours) {
        return Ok(());
    }
    let mut clean = cache.cargo();
    clean.args(["clean", "--release", "--quiet"]);
    for package in PACKAGES.iter().chain(&["xtask"]) {
        clean.args(["--package", package]);
    }
    if step::output(&mut clean).is_none() {
        return Err(Failure::new(format!(
            "cannot clear another clone's output in {}; remove the folder or set CARGO_TARGET_DIR",
            cache.target.display()
        )));
    }
    fs::write(&marker, ours).map_err(|error| Failure::at(&marker, "write", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_of_the_workspace_is_cleared() {
        let manifest = include_str!("../../Cargo.toml");
        let members = manifest.lines().find(|line| line.starts_with("members = ")).unwrap();
        let folders = members.split('"').skip(1).step_by(2);
        let mut named: Vec<String> = folders.map(name).collect();
        named.retain(|name| name != "xtask");
        named.sort_unstable();
        assert_eq!(named, PACKAGES);
    }

    /// The name of the package in a folder of the workspace.
    fn name(folder: &str) -> String {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let manifest = fs::read_to_string(format!("{root}/{folder}/Cargo.toml")).unwrap();
        let line = manifest.lines().find(|line| line.starts_with("name = ")).unwrap();
        line.split('"').nth(1).unwrap().to_owned()
    }
}
