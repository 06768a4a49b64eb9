//! A panic ends the process.
//!
//! A data plane runs one thread per core; a thread that died alone would leave a core that accepts
//! connections and never answers. Each `main` calls [`abort_on_panic`] first; the supervisor restarts.

/// Prints the panic with its place, then aborts the process (SIGABRT, so a core dump is possible).
pub fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}
