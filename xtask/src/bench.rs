//! `cargo xtask bench`: the router against nginx, one core each, before the same engine.

use crate::cache::Cache;
use crate::failure::Failure;
use crate::{build, packages};

/// Installs what the benchmark needs and runs it; it prints its own table.
pub fn run(cache: &Cache) -> Result<(), Failure> {
    packages::ensure(cache, packages::NODE)?;
    let installed = packages::ensure(cache, packages::BENCH)?;
    if installed.contains(&"nginx") && packages::program("systemctl").is_some() {
        // Debian starts a web server with the package; the benchmark starts its own.
        let mut stop = packages::as_root(&["systemctl", "disable", "--now", "nginx"])?;
        if !stop.status().is_ok_and(|status| status.success()) {
            eprintln!("nginx was installed; its service could not be stopped: see systemctl");
        }
    }
    let mut command = cache.cargo();
    build::stage(command.args(["bench", "--locked", "-p", "router", "--bench", "proxy"]))
}
