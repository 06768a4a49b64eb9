//! Frames of the feed, read. Every length is checked before it is believed; a payload must end where
//! its fields end.

use super::encode::{kind, op};
use super::{
    DIGESTS_MAX, Digest, FORMAT, Known, Level, Load, NAME_BYTES_MAX, OPS_MAX, Op, ToAgent,
    ToRouter, WARM_DIGESTS_MAX, Warm,
};
use crate::frame::{Cutter, Fields, FrameError, Take};

/// Bytes of a varint of 64 bits.
const NUMBER_BYTES_MAX: usize = 10;

/// Cuts a byte stream into messages: a [`Cutter`] of this wire.
#[derive(Debug, Default)]
pub struct Decoder(Cutter);

impl Decoder {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.push(bytes);
    }

    /// The next whole message, or `None` until more bytes come.
    ///
    /// # Errors
    /// Any [`FrameError`]; drop the connection, there is no way back into step.
    pub fn poll_message<M: Take>(&mut self) -> Result<Option<M>, FrameError> {
        self.poll_payload()?.map(M::take).transpose()
    }

    /// The payload of the next whole frame, or `None` until more bytes come.
    ///
    /// # Errors
    /// As [`Cutter::poll_frame`].
    pub fn poll_payload(&mut self) -> Result<Option<&[u8]>, FrameError> {
        Ok(self.0.poll_frame(&FORMAT)?.map(|frame| frame.payload))
    }
}

impl Take for ToAgent {
    fn take(payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields(payload);
        let message = match fields.byte()? {
            kind::HELLO => ToAgent::Hello { version: fields.number()?, process: fields.name()? },
            kind::WANT => ToAgent::Want { worker: fields.name()? },
            kind::LOAD => ToAgent::Load { worker: fields.name()?, load: fields.load()? },
            kind::WARM => ToAgent::Warm(Warm {
                worker: fields.name()?,
                ticket: fields.number()?,
                deadline_ms: fields.number_32("deadline_ms")?,
                blocks_min: fields.number_32("blocks_min")?,
                digests: fields.digests()?,
            }),
            other => return Err(FrameError::Kind(other)),
        };
        fields.end(message)
    }
}

impl Take for ToRouter {
    fn take(payload: &[u8]) -> Result<Self, FrameError> {
        let mut fields = Fields(payload);
        let message = match fields.byte()? {
            kind::HELLO => ToRouter::Hello { version: fields.number()?, process: fields.name()? },
            kind::STATE => ToRouter::State {
                worker: fields.name()?,
                epoch: fields.number()?,
                seq: fields.number()?,
                known: fields.known()?,
                block_tokens: fields.number_32("block_tokens")?,
            },
            kind::BATCH => ToRouter::Batch {
                worker: fields.name()?,
                epoch: fields.number()?,
                seq: fields.number()?,
                ops: fields.ops()?,
            },
            kind::SNAPSHOT => ToRouter::Snapshot {
                worker: fields.name()?,
                epoch: fields.number()?,
                seq: fields.number()?,
                part: fields.number_32("part")?,
                last: fields.flag()?,
                sets: fields.sets()?,
            },
            kind::GONE => ToRouter::Gone { worker: fields.name()?, epoch: fields.number()? },
            kind::OTHERS => ToRouter::Others {
                worker: fields.name()?,
                load: fields.load()?,
                routers: fields.number_32("routers")?,
            },
            kind::WARMABLE => ToRouter::Warmable {
                worker: fields.name()?,
                block_tokens: fields.number_32("block_tokens")?,
            },
            kind::WARMED => ToRouter::Warmed {
                worker: fields.name()?,
                ticket: fields.number()?,
                tokens: fields.number_32("tokens")?,
            },
            other => return Err(FrameError::Kind(other)),
        };
        fields.end(message)
    }
}

impl Fields<'_> {
    /// Only the shortest form is taken, so that a message has one encoding.
    fn number(&mut self) -> Result<u64, FrameError> {
        let mut number = 0u64;
        for index in 0..NUMBER_BYTES_MAX {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * index as u32;
            if (bits << shift) >> shift != bits || (byte == 0 && index > 0) {
                return Err(FrameError::Value("a number"));
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(FrameError::Value("a number"))
    }

    fn number_32(&mut self, what: &'static str) -> Result<u32, FrameError> {
        u32::try_from(self.number()?).map_err(|_| FrameError::Value(what))
    }

    /// A length or count of at most `max`.
    fn number_up_to(&mut self, what: &'static str, max: usize) -> Result<usize, FrameError> {
        match usize::try_from(self.number()?) {
            Ok(length) if length <= max => Ok(length),
            _ => Err(FrameError::Limit(what)),
        }
    }

    fn name(&mut self) -> Result<String, FrameError> {
        let length = self.number_up_to("a name", NAME_BYTES_MAX)?;
        self.utf8("a name", length)
    }

    fn known(&mut self) -> Result<Known, FrameError> {
        match self.byte()? {
            0 => Ok(Known::None),
            1 => Ok(Known::Partial),
            2 => Ok(Known::Whole),
            _ => Err(FrameError::Value("known")),
        }
    }

    /// Out of bounds is refused: an honest side keeps to them.
    fn load(&mut self) -> Result<Load, FrameError> {
        let load = Load {
            inflight: self.number_32("inflight")?,
            waiting: self.number_32("waiting")?,
            queued_us: self.number()?,
        };
        if load == load.bounded() { Ok(load) } else { Err(FrameError::Value("a load")) }
    }

    /// Whole digests, as a prompt's blocks are asked for.
    fn digests(&mut self) -> Result<Vec<Digest>, FrameError> {
        let length = self.number_up_to("the digests of a prompt", WARM_DIGESTS_MAX)?;
        let (chunks, _) = self.slice(length * 32)?.as_chunks::<32>();
        Ok(chunks.iter().map(|chunk| Digest(*chunk)).collect())
    }

    fn ops(&mut self) -> Result<Vec<Op>, FrameError> {
        let count = self.number_up_to("the list of changes", OPS_MAX)?;
        let mut ops = Vec::with_capacity(count);
        let mut digests_left = DIGESTS_MAX;
        for _ in 0..count {
            let tag = self.byte()?;
            let length = self.number_up_to("the digests of a frame", digests_left)?;
            digests_left -= length;
            let (chunks, _) = self.slice(length * 16)?.as_chunks::<16>();
            let digests = chunks.iter().map(|chunk| u128::from_le_bytes(*chunk)).collect();
            ops.push(match tag {
                op::SET_GPU => Op::Set { level: Level::Gpu, digests },
                op::SET_HOST => Op::Set { level: Level::Host, digests },
                op::SET_DISK => Op::Set { level: Level::Disk, digests },
                op::REMOVE => Op::Remove { digests },
                op::CLEAR if digests.is_empty() => Op::Clear,
                _ => return Err(FrameError::Value("a change")),
            });
        }
        Ok(ops)
    }

    fn sets(&mut self) -> Result<Vec<Op>, FrameError> {
        let ops = self.ops()?;
        match ops.iter().all(|op| matches!(op, Op::Set { .. })) {
            true => Ok(ops),
            false => Err(FrameError::Value("a part of a snapshot")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{FRAME_HEAD_BYTES, VERSION, decode, encode};
    use super::*;

    fn digests() -> impl Strategy<Value = Vec<u128>> {
        prop::collection::vec(any::<u128>(), 0..6)
    }

    fn set() -> impl Strategy<Value = Op> {
        (prop::sample::select(Level::ALL.to_vec()), digests())
            .prop_map(|(level, digests)| Op::Set { level, digests })
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            set(),
            digests().prop_map(|digests| Op::Remove { digests }),
            Just(Op::Clear)
        ];
        prop::collection::vec(op, 0..5)
    }

    fn message() -> impl Strategy<Value = ToRouter> {
        let known = prop::sample::select(vec![Known::None, Known::Partial, Known::Whole]);
        let head = || (".{0,20}", any::<u64>(), any::<u64>());
        prop_oneof![
            (any::<u64>(), ".{0,20}")
                .prop_map(|(version, process)| ToRouter::Hello { version, process }),
            (head(), known, any::<u32>()).prop_map(
                |((worker, epoch, seq), known, block_tokens)| ToRouter::State {
                    worker,
                    epoch,
                    seq,
                    known,
                    block_tokens
                }
            ),
            (head(), ops()).prop_map(|((worker, epoch, seq), ops)| ToRouter::Batch {
                worker,
                epoch,
                seq,
                ops
            }),
            (head(), any::<u32>(), any::<bool>(), prop::collection::vec(set(), 0..5)).prop_map(
                |((worker, epoch, seq), part, last, sets)| ToRouter::Snapshot {
                    worker,
                    epoch,
                    seq,
                    part,
                    last,
                    sets
                }
            ),
            head().prop_map(|(worker, epoch, _)| ToRouter::Gone { worker, epoch }),
            (".{0,20}", load(), any::<u32>())
                .prop_map(|(worker, load, routers)| ToRouter::Others { worker, load, routers }),
            (".{0,20}", any::<u32>())
                .prop_map(|(worker, block_tokens)| ToRouter::Warmable { worker, block_tokens }),
            (".{0,20}", any::<u64>(), any::<u32>())
                .prop_map(|(worker, ticket, tokens)| ToRouter::Warmed { worker, ticket, tokens }),
        ]
    }

    fn load() -> impl Strategy<Value = Load> {
        (any::<u32>(), any::<u32>(), any::<u64>()).prop_map(|(inflight, waiting, queued_us)| {
            Load { inflight, waiting, queued_us }.bounded()
        })
    }

    proptest! {
        #[test]
        fn any_cut_of_the_stream_gives_the_same_messages(
            messages in prop::collection::vec(message(), 0..6),
            cuts in prop::collection::vec(1usize..60, 1..20),
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(encode).collect();
            let (mut decoder, mut got, mut at) = (Decoder::default(), Vec::new(), 0);
            let mut cuts = cuts.into_iter().cycle();
            while at < stream.len() {
                let end = (at + cuts.next().unwrap()).min(stream.len());
                decoder.push(&stream[at..end]);
                at = end;
                while let Some(message) = decoder.poll_message::<ToRouter>().unwrap() {
                    got.push(message);
                }
            }
            prop_assert_eq!(got, messages);
        }

        #[test]
        fn what_is_understood_has_one_encoding(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(message) = decode::<ToRouter>(&bytes) {
                prop_assert_eq!(&encode(&message)[FRAME_HEAD_BYTES..], &bytes);
            }
            if let Ok(message) = decode::<ToAgent>(&bytes) {
                prop_assert_eq!(&encode(&message)[FRAME_HEAD_BYTES..], &bytes);
            }
        }

        #[test]
        fn a_torn_frame_is_refused(message in message(), cut in any::<prop::sample::Index>()) {
            let frame = encode(&message);
            let payload = &frame[FRAME_HEAD_BYTES..];
            prop_assert!(decode::<ToRouter>(&payload[..cut.index(payload.len())]).is_err());
        }
    }

    #[test]
    fn what_a_router_says_comes_back() {
        for message in [
            ToAgent::Hello { version: VERSION, process: "cgn-router".into() },
            ToAgent::Want { worker: "n/d/0".into() },
            ToAgent::Load {
                worker: "n/d/0".into(),
                load: Load { inflight: 3, waiting: 2, queued_us: 1_500 },
            },
            ToAgent::Warm(warm(0)),
            ToAgent::Warm(warm(WARM_DIGESTS_MAX)),
        ] {
            let mut decoder = Decoder::default();
            decoder.push(&encode(&message));
            assert_eq!(decoder.poll_message::<ToAgent>(), Ok(Some(message)));
            assert_eq!(decoder.poll_message::<ToAgent>(), Ok(None));
        }
    }

    fn warm(blocks: usize) -> Warm {
        let digests = (0..blocks).map(|at| Digest([at as u8; 32])).collect();
        Warm { worker: "n/d/0".into(), ticket: 300, deadline_ms: 500, blocks_min: 16, digests }
    }

    #[test]
    fn a_wish_to_warm_has_these_bytes_and_a_limit() {
        let said = encode(&ToAgent::Warm(warm(2)));
        let head = b"CGF1\x4d\0\0\0\x08\x05n/d/0\xac\x02\xf4\x03\x10\x02";
        assert_eq!(said, [&head[..], &[0; 32], &[1; 32]].concat());
        let told = encode(&ToRouter::Warmed { worker: "n/d/0".into(), ticket: 300, tokens: 48 });
        assert_eq!(told, b"CGF1\x0a\0\0\0\x0a\x05n/d/0\xac\x02\x30");
        let told = encode(&ToRouter::Warmable { worker: "n/d/0".into(), block_tokens: 16 });
        assert_eq!(told, b"CGF1\x08\0\0\0\x09\x05n/d/0\x10");
        let over = encode(&ToAgent::Warm(warm(WARM_DIGESTS_MAX + 1)));
        let heard = decode::<ToAgent>(&over[FRAME_HEAD_BYTES..]);
        assert_eq!(heard, Err(FrameError::Limit("the digests of a prompt")));
    }

    #[test]
    fn a_load_has_these_bytes() {
        let load = Load { inflight: 300, waiting: 2, queued_us: 70_000 };
        let said = encode(&ToAgent::Load { worker: "n/d/0".into(), load });
        assert_eq!(said, b"CGF1\x0d\0\0\0\x06\x05n/d/0\xac\x02\x02\xf0\xa2\x04");
        let told = encode(&ToRouter::Others { worker: "n/d/0".into(), load, routers: 2 });
        assert_eq!(told, b"CGF1\x0e\0\0\0\x07\x05n/d/0\xac\x02\x02\xf0\xa2\x04\x02");
    }

    #[test]
    fn a_load_out_of_bounds_is_cut_where_it_is_said_and_refused_where_it_is_heard() {
        let load = Load { inflight: u32::MAX, waiting: u32::MAX, queued_us: u64::MAX };
        let frame = encode(&ToAgent::Load { worker: "w".into(), load });
        let heard = decode::<ToAgent>(&frame[FRAME_HEAD_BYTES..]);
        assert_eq!(heard, Ok(ToAgent::Load { worker: "w".into(), load: load.bounded() }));
        for fields in [[1, 2, 0], [0x80, 0x80, 0x80]] {
            let payload = [&[kind::LOAD, 1, b'w'], fields.as_slice()].concat();
            assert!(decode::<ToAgent>(&payload).is_err(), "{fields:?}");
        }
        let many = [kind::LOAD, 1, b'w', 0x81, 0x80, 0x40, 0, 0];
        assert_eq!(decode::<ToAgent>(&many), Err(FrameError::Value("a load")));
    }

    #[test]
    fn the_largest_frame_made_is_taken() {
        let message = ToRouter::Batch {
            worker: "w".repeat(NAME_BYTES_MAX),
            epoch: u64::MAX,
            seq: u64::MAX,
            ops: vec![Op::Remove { digests: vec![7; DIGESTS_MAX] }],
        };
        let mut decoder = Decoder::default();
        decoder.push(&encode(&message));
        assert_eq!(decoder.poll_message::<ToRouter>(), Ok(Some(message)));
    }

    #[test]
    fn lengths_are_refused_before_they_are_waited_for() {
        let mut decoder = Decoder::default();
        decoder.push(b"CGF1\xff\xff\xff\xff");
        assert!(matches!(decoder.poll_payload(), Err(FrameError::TooLong { .. })));
        let mut decoder = Decoder::default();
        decoder.push(b"CGN1\0\0\0\0");
        assert!(matches!(decoder.poll_payload(), Err(FrameError::Magic { .. })));
        let mut long = vec![kind::BATCH, 0, 0, 0, 1, op::SET_GPU];
        long.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert_eq!(decode::<ToRouter>(&long), Err(FrameError::Limit("the digests of a frame")));
    }
}
