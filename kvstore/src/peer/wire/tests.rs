//! What is written reads back the same; what reads at all is written back the same; nothing panics.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn any_key() -> impl Strategy<Value = Key> {
    (any::<[u8; 16]>(), any::<[u8; 32]>())
        .prop_map(|(namespace, name)| Key { namespace: NamespaceId(namespace), name: Name(name) })
}

fn any_head() -> impl Strategy<Value = BlockHead> {
    let label = vec(any::<u8>(), 0..80);
    (
        0..=VALUE_BYTES_MAX,
        any::<[u8; 32]>(),
        proptest::option::of(any_key()),
        "[a-zé/]{1,40}",
        label,
    )
        .prop_map(|(len, hash, parent, namespace, label)| BlockHead {
            len,
            hash,
            parent,
            namespace,
            label: label.into(),
        })
}

fn any_frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        "[a-z.:0-9]{0,60}".prop_map(Frame::Hello),
        vec(any::<u64>(), 0..40).prop_map(Frame::Added),
        vec(any::<u64>(), 0..40).prop_map(Frame::Removed),
        vec((any_key(), 0..=VALUE_BYTES_MAX), 0..=HOT_BLOCKS_MAX).prop_map(|blocks| {
            Frame::Hot(blocks.into_iter().map(|(key, bytes)| Offered { key, bytes }).collect())
        }),
        vec("[a-z.:0-9]{0,30}", 0..20).prop_map(Frame::Known),
    ]
}

proptest! {
    #[test]
    fn a_request_reads_as_it_was_written(deadline_ms: u32, keys in vec(any_key(), 1..60)) {
        let request = Request { deadline_ms, keys };
        prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
    }

    #[test]
    fn a_block_head_reads_as_it_was_written(head in any_head(), load: u16) {
        let bytes = encode_block_head(&head, load);
        let (first, rest) = bytes.split_first_chunk::<ANSWER_HEAD_BYTES>().unwrap();
        let answer = decode_answer(first).unwrap();
        prop_assert_eq!(answer.load, load);
        prop_assert_eq!(answer.rest_bytes(), rest.len());
        prop_assert_eq!(decode_block_head(&answer, rest), Ok(head));
        prop_assert_eq!(decode_block_head(&answer, &rest[1..]), Err(WireError::Length));
    }

    #[test]
    fn a_frame_reads_as_it_was_written(frame in any_frame()) {
        let bytes = frame.encode();
        let (len, body) = bytes.split_first_chunk::<4>().unwrap();
        prop_assert_eq!(u32::from_le_bytes(*len) as usize, body.len());
        prop_assert_eq!(Frame::decode(body), Ok(frame));
    }

    #[test]
    fn what_reads_at_all_is_written_back_the_same(bytes in vec(prop_oneof![0u8..6, any::<u8>()], 0..200)) {
        if let Ok(request) = Request::decode(&bytes) {
            prop_assert_eq!(request.encode(), bytes.clone());
        }
        if let Ok(frame) = Frame::decode(&bytes) {
            prop_assert_eq!(&frame.encode()[4..], &bytes[..]);
        }
        if let Some((first, rest)) = bytes.split_first_chunk::<ANSWER_HEAD_BYTES>()
            && let Ok(answer) = decode_answer(first)
            && let Some(rest) = rest.get(..answer.rest_bytes())
        {
            let _ = decode_block_head(&answer, rest);
        }
    }
}

#[test]
fn lengths_beyond_their_limits_are_refused() {
    let mut request = vec![1, 0, 0xff, 0xff, 0, 0, 0, 0];
    assert_eq!(Request::decode(&request), Err(WireError::TooLong));
    request[2..4].copy_from_slice(&2u16.to_le_bytes());
    request.extend_from_slice(&[7; KEY_BYTES]);
    assert_eq!(Request::decode(&request), Err(WireError::Length));
    assert_eq!(Request::decode(&[9; 56]), Err(WireError::Kind));
    assert_eq!(decode_answer(&[1, 0, 0, 0, 1, 1, 0, 0]).map(|_| ()), Err(WireError::TooLong));
    assert_eq!(decode_answer(&[1, 0, 0, 0, 0, 0, 1, 4]).map(|_| ()), Err(WireError::TooLong));
    assert_eq!(decode_answer(&[4, 0, 0, 0, 0, 0, 0, 0]).map(|_| ()), Err(WireError::Kind));
    assert_eq!(Frame::decode(&[2, 0]), Err(WireError::Length));
    assert_eq!(Frame::decode(&vec![2; FRAME_BYTES_MAX + 1]), Err(WireError::TooLong));
    assert_eq!(Frame::decode(&[1, 2, b'a', b'\n']), Err(WireError::Text));
    let mut hot = vec![4; 1 + OFFERED_BYTES];
    assert_eq!(Frame::decode(&hot), Err(WireError::TooLong), "a block beyond any limit");
    hot[1 + KEY_BYTES..].fill(0);
    assert!(matches!(Frame::decode(&hot), Ok(Frame::Hot(blocks)) if blocks[0].bytes == 0));
    assert_eq!(Frame::decode(&hot[..OFFERED_BYTES]), Err(WireError::Length));
    hot.resize(1 + (HOT_BLOCKS_MAX + 1) * OFFERED_BYTES, 0);
    assert_eq!(Frame::decode(&hot), Err(WireError::TooLong));
    let huge = BlockHead {
        len: VALUE_BYTES_MAX + 1,
        hash: [0; 32],
        parent: None,
        namespace: "n".to_owned(),
        label: [].into(),
    };
    let bytes = encode_block_head(&huge, 0);
    let (first, rest) = bytes.split_first_chunk::<ANSWER_HEAD_BYTES>().unwrap();
    assert_eq!(decode_block_head(&decode_answer(first).unwrap(), rest), Err(WireError::TooLong));
}
