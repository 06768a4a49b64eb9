//! The admin page in headless Chromium, before the shipped router and two tiny engines.
//!
//! The suite is `router/tests/page`; it starts router and engines itself and gets the paths of router
//! and browser in `CGN_ROUTER` and `CGN_CHROMIUM`. Its one npm package lies in the cache folder.

use std::process::Command;

use super::{Tally, count, sdk, tally};
use crate::cache::Cache;
use crate::failure::Failure;
use crate::packages;

/// The browser's suite, and what the page computes without one.
pub fn run(cache: &Cache) -> Result<Tally, Failure> {
    packages::ensure(cache, packages::PAGE)?;
    let chromium = packages::program("chromium")
        .ok_or_else(|| Failure::new("no chromium on PATH; install it and run this again"))?;
    let suite = cache.repository.join("router/tests/page");
    let (node, modules) = sdk::node_modules(cache, &suite, "page")?;
    let mut command = Command::new(node);
    command.args(["--test", "--test-concurrency=1", "--test-reporter=spec"]);
    command.args(["measure.test.cjs", "figures.test.cjs", "page.test.cjs"]);
    command.current_dir(&suite).env("NODE_PATH", modules).env("CGN_CHROMIUM", chromium);
    command.env("CGN_ROUTER", cache.binary("cgn-router"));
    count(&mut command, tally::node_line)
}
