//! Routing, the pure part: what the router decides with, and the simulator in `control` too.
//!
//! * [`backlog`]: the prefill work in front of a worker.
//! * [`holders`]: who holds one block, and since when.
//! * [`index`]: which worker holds which block, as the engines' events say.
//! * [`predictions`]: what was routed a moment ago and is not in its engine's events yet.
//! * [`share`]: what the routers in front of one worker know of each other.
//! * [`speeds`]: what tokens cost in milliseconds, computed or fetched.
//! * [`pick`]: the decision, and the table of its terms.
//! * [`decision`]: all of one decision as a line of the decision log, to be made again from it.
//! * [`worker_cache`]: how much of one worker's cache is believed to be full.
//! * [`exact`]: floats in JSON that come back bit for bit.
//!
//! No I/O and no clock: candidates, time and randomness come in as arguments.

pub mod backlog;
pub mod decision;
pub mod exact;
pub mod holders;
pub mod index;
pub mod pick;
pub mod predictions;
pub mod share;
pub mod speeds;
pub mod worker_cache;
