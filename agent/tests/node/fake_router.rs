//! A router's end of the agent's feed that says what a test wants.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use dataplane::feed::{Decoder, Load, ToAgent, ToRouter, VERSION, encode};

use crate::house::House;
use crate::process::PATIENCE;

/// It hangs up when it is dropped.
pub struct FakeRouter {
    stream: UnixStream,
    decoder: Decoder,
}

impl FakeRouter {
    /// Dials the house's agent and says nothing yet.
    pub fn dial(house: &House) -> FakeRouter {
        let stream = UnixStream::connect(house.dir.path().join("kv.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        FakeRouter { stream, decoder: Decoder::default() }
    }

    /// Dials and says hello.
    pub fn greet(house: &House) -> FakeRouter {
        let mut router = FakeRouter::dial(house);
        let hello = ToAgent::Hello { version: VERSION, process: "test".to_owned() };
        router.say_bytes(&encode(&hello));
        router
    }

    /// Says what it gave a worker.
    pub fn tell(&mut self, worker: &str, load: Load) {
        self.say_bytes(&encode(&ToAgent::Load { worker: worker.to_owned(), load }));
    }

    pub fn say_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next frame; none once the agent has hung up.
    pub fn hear(&mut self) -> Option<ToRouter> {
        loop {
            if let Some(frame) = self.decoder.poll_message().unwrap() {
                return Some(frame);
            }
            let mut part = [0; 4096];
            match self.stream.read(&mut part) {
                Ok(read) if read > 0 => self.decoder.push(&part[..read]),
                Ok(_) => return None,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came within {PATIENCE:?}: {error}"),
            }
        }
    }

    /// Hears until the others gave `worker` just this.
    pub fn hears_of(&mut self, worker: &str, load: Load, routers: u32) {
        let wanted = ToRouter::Others { worker: worker.to_owned(), load, routers };
        loop {
            let heard = self.hear().expect("the agent hung up");
            let is_state = matches!(heard, ToRouter::State { .. });
            assert!(!is_state, "an engine without KV events has no state: {heard:?}");
            if heard == wanted {
                return;
            }
        }
    }
}
