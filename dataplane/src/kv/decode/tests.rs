//! What is written is read again; what is hostile is an error or a wait.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::kv::{FRAME_BYTES_MAX, FRAME_HEAD_BYTES, Put, VERSION, decode, encode};

fn name() -> impl Strategy<Value = Name> {
    any::<Name>()
}

fn place() -> impl Strategy<Value = Place> {
    any::<([u8; 16], Name)>()
}

fn fault() -> impl Strategy<Value = Fault> {
    prop::sample::select(Fault::ALL.to_vec())
}

fn tier() -> impl Strategy<Value = Tier> {
    prop_oneof![Just(Tier::Ram), Just(Tier::Disk)]
}

fn staged() -> impl Strategy<Value = Staged> {
    (name(), option::of(name()), any::<u64>(), any::<u64>(), vec(any::<u8>(), 0..20))
        .prop_map(|(name, parent, offset, len, label)| Staged { name, parent, offset, len, label })
}

fn listed() -> impl Strategy<Value = Listed> {
    let label = vec(any::<u8>(), 0..20);
    (place(), tier(), any::<bool>(), any::<u64>(), label)
        .prop_map(|(place, tier, pinned, len, label)| Listed { place, tier, pinned, len, label })
}

fn request() -> impl Strategy<Value = Request> {
    let names = || vec(name(), 0..9);
    prop_oneof![
        (any::<u32>(), "[a-z/é]{0,20}", "[a-z]{0,9}", any::<u64>(), any::<bool>()).prop_map(
            |(version, namespace, client, staging_bytes, ring)| Request::Hello {
                version,
                namespace,
                client,
                staging_bytes,
                ring
            }
        ),
        names().prop_map(|names| Request::Lookup { names }),
        (names(), any::<u32>())
            .prop_map(|(names, deadline_ms)| Request::Get { names, deadline_ms }),
        vec(any::<u64>(), 0..9).prop_map(|leases| Request::Release { leases }),
        (any::<bool>(), vec(staged(), 0..5))
            .prop_map(|(durable, blocks)| Request::Put { durable, blocks }),
        (names(), any::<bool>()).prop_map(|(names, pinned)| Request::Pin { names, pinned }),
        (names(), any::<u32>())
            .prop_map(|(names, deadline_ms)| Request::Prefetch { names, deadline_ms }),
        names().prop_map(|names| Request::Remove { names }),
        Just(Request::Stats),
        any::<(bool, u64, u32)>().prop_map(|(everywhere, cursor, blocks_max)| Request::List {
            everywhere,
            cursor,
            blocks_max
        }),
        any::<(bool, u64, u32)>().prop_map(|(everywhere, cursor, blocks_max)| Request::Verify {
            everywhere,
            cursor,
            blocks_max
        }),
        any::<(bool, u64, u32)>().prop_map(|(everywhere, cursor, blocks_max)| Request::Evict {
            everywhere,
            cursor,
            blocks_max
        }),
        Just(Request::Drain),
        Just(Request::Wake),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    let got = prop_oneof![
        Just(Got::Missing),
        fault().prop_map(Got::Failed),
        any::<(u64, u64, u64)>().prop_map(|(lease, offset, len)| Got::Leased {
            lease,
            offset,
            len
        }),
    ];
    let result = prop_oneof![any::<bool>().prop_map(Ok), fault().prop_map(Err)];
    prop_oneof![
        any::<(u32, u64, u64, u32, u32, u64)>().prop_map(
            |(version, arena_bytes, block_bytes_max, leases_max, requests_max, ring_bytes)| {
                Answer::Hello {
                    version,
                    arena_bytes,
                    block_bytes_max,
                    leases_max,
                    requests_max,
                    ring_bytes,
                }
            }
        ),
        vec(tier(), 0..9).prop_map(|tiers| Answer::Lookup { tiers }),
        vec(got, 0..9).prop_map(|blocks| Answer::Get { blocks }),
        vec(result, 0..9).prop_map(|results| Answer::Blocks { results }),
        any::<u64>().prop_map(|blocks| Answer::Count { blocks }),
        vec(("[a-z_]{0,9}", any::<u64>()), 0..9).prop_map(|lines| Answer::Stats { lines }),
        (vec(listed(), 0..5), any::<u64>())
            .prop_map(|(blocks, next)| Answer::List { blocks, next }),
        any::<(u64, u64, u64)>().prop_map(|(seen, dropped, next)| Answer::Swept {
            seen,
            dropped,
            next
        }),
        Just(Answer::Draining),
        (fault(), "[a-z ]{0,20}").prop_map(|(fault, text)| Answer::Refused { fault, text }),
    ]
}

/// The only frame of a stream.
fn read<M: Take>(bytes: &[u8]) -> (u64, Result<M, FrameError>) {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    let (id, payload) = decoder.poll_frame().unwrap().unwrap();
    let message = (id, decode(payload));
    assert_eq!(decoder.held_bytes(), 0);
    message
}

fn written(id: u64, message: &impl Put) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(id, message, &mut bytes);
    bytes
}

proptest! {
    #[test]
    fn requests_are_read_as_written(id: u64, request in request()) {
        prop_assert_eq!(read(&written(id, &request)), (id, Ok(request)));
    }

    #[test]
    fn answers_are_read_as_written(id: u64, answer in answer()) {
        prop_assert_eq!(read(&written(id, &answer)), (id, Ok(answer)));
    }

    #[test]
    fn a_part_of_a_payload_is_no_payload(request in request(), answer in answer()) {
        let (request_bytes, answer_bytes) = (written(0, &request), written(0, &answer));
        for end in FRAME_HEAD_BYTES..request_bytes.len() {
            prop_assert!(decode::<Request>(&request_bytes[FRAME_HEAD_BYTES..end]).is_err());
        }
        for end in FRAME_HEAD_BYTES..answer_bytes.len() {
            prop_assert!(decode::<Answer>(&answer_bytes[FRAME_HEAD_BYTES..end]).is_err());
        }
    }

    #[test]
    fn any_cut_of_the_stream_gives_the_same_frames(
        requests in vec(request(), 1..6),
        cuts in vec(1usize..40, 1..30),
    ) {
        let mut stream = Vec::new();
        for (id, request) in requests.iter().enumerate() {
            encode(id as u64, request, &mut stream);
        }
        let mut decoder = Decoder::default();
        let (mut at, mut got, mut cuts) = (0, Vec::new(), cuts.into_iter().cycle());
        while at < stream.len() {
            let end = (at + cuts.next().unwrap()).min(stream.len());
            decoder.push(&stream[at..end]);
            at = end;
            while let Some((id, payload)) = decoder.poll_frame().unwrap() {
                prop_assert_eq!(id, got.len() as u64);
                got.push(decode::<Request>(payload).unwrap());
            }
        }
        prop_assert_eq!(got, requests);
    }

    #[test]
    fn hostile_bytes_are_an_error_or_the_same_bytes(
        kind in prop_oneof![0u8..14, 64u8..68, Just(255u8)],
        rest in vec(prop_oneof![Just(0u8), Just(1), Just(2), any::<u8>()], 0..80),
    ) {
        let mut payload = vec![kind];
        payload.extend(rest);
        if let Ok(request) = decode::<Request>(&payload) {
            prop_assert_eq!(&written(0, &request)[FRAME_HEAD_BYTES..], &payload);
        }
        if let Ok(answer) = decode::<Answer>(&payload) {
            prop_assert_eq!(&written(0, &answer)[FRAME_HEAD_BYTES..], &payload);
        }
    }
}

#[test]
fn foreign_bytes_are_refused_at_once() {
    let mut decoder = Decoder::default();
    decoder.push(b"CG");
    assert_eq!(decoder.poll_frame(), Ok(None));
    decoder.push(b"N1");
    assert!(matches!(decoder.poll_frame(), Err(FrameError::Magic { .. })));
    let mut decoder = Decoder::default();
    decoder.push(b"G");
    assert!(matches!(decoder.poll_frame(), Err(FrameError::Magic { .. })));
    let mut decoder = Decoder::default();
    decoder.push(b"CGK1\xff\xff\xff\xff01234567");
    assert!(matches!(decoder.poll_frame(), Err(FrameError::TooLong { .. })));
}

#[test]
fn limits_hold_and_what_is_within_them_fits() {
    let block = Staged {
        name: [1; 32],
        parent: Some([2; 32]),
        offset: u64::MAX,
        len: u64::MAX,
        label: vec![3; 170],
    };
    let put = |count| Request::Put { durable: true, blocks: vec![block.clone(); count] };
    let bytes = written(7, &put(BATCH_MAX));
    assert!(bytes.len() <= FRAME_BYTES_MAX);
    let line = Listed {
        place: ([1; 16], [2; 32]),
        tier: Tier::Ram,
        pinned: true,
        len: u64::MAX,
        label: vec![3; LABEL_BYTES_MAX],
    };
    let list = Answer::List { blocks: vec![line; crate::kv::LIST_MAX], next: u64::MAX };
    assert_eq!(read(&written(8, &list)), (8, Ok(list)));
    assert_eq!(read(&bytes), (7, Ok(put(BATCH_MAX))));
    let bytes = written(7, &put(BATCH_MAX + 1));
    assert_eq!(read::<Request>(&bytes).1, Err(FrameError::Limit("blocks")));
    let bytes = written(7, &Request::Lookup { names: vec![[0; 32]; BATCH_MAX + 1] });
    assert_eq!(read::<Request>(&bytes).1, Err(FrameError::Limit("names")));
    let mut long = block.clone();
    long.label = vec![0; LABEL_BYTES_MAX + 1];
    let bytes = written(7, &Request::Put { durable: false, blocks: vec![long] });
    assert_eq!(read::<Request>(&bytes).1, Err(FrameError::Limit("a label")));
}

#[test]
fn a_count_is_not_believed() {
    let mut payload = vec![kind::RELEASE];
    payload.extend_from_slice(&4096u32.to_le_bytes());
    assert_eq!(decode::<Request>(&payload), Err(FrameError::Torn));
    let hello = Request::Hello {
        version: VERSION,
        namespace: "m".into(),
        client: "c".into(),
        staging_bytes: 1,
        ring: false,
    };
    let mut bytes = written(0, &hello);
    bytes.push(0);
    assert_eq!(decode::<Request>(&bytes[FRAME_HEAD_BYTES..]), Err(FrameError::Trailing));
}
