//! What each fuzz target does with its bytes, and what must hold whatever they are. Used by the
//! targets (`cargo +nightly fuzz run TARGET`) and by `tests/corpus.rs`, which replays the corpus.

use kvstore::disk::record::{PAGE_BYTES, Record, seal};
use kvstore::disk::segment::{FirstPage, parse_first, parse_head};
use kvstore::peer::wire::{self, ANSWER_HEAD_BYTES, Frame, Request};
use kvstore::resp::parse::{COMMAND_BYTES_MAX, Event, Parser, ProtocolError, VALUE_BYTES_MAX};

/// A page of a disk, as it is and sealed: what is read can be written again and means the same.
pub fn record(bytes: &[u8]) {
    let secret = [7; 32];
    let mut page = [0; PAGE_BYTES];
    let len = bytes.len().min(PAGE_BYTES);
    page[..len].copy_from_slice(&bytes[..len]);
    for is_sealed in [false, true] {
        if is_sealed {
            seal(&secret, &mut page);
        }
        if let FirstPage::Ours(layout) = parse_first(&page) {
            assert_eq!(parse_first(&layout.encode()), FirstPage::Ours(layout));
        }
        let _ = parse_head(&secret, 0, &page);
        if let Ok(record) = Record::parse(&secret, &page) {
            assert!(is_sealed, "nobody can guess a seal");
            let mut again = [0; PAGE_BYTES];
            record.encode(&secret, &mut again).expect("what was read can be written");
            assert_eq!(Record::parse(&secret, &again), Ok(record));
        }
    }
}

/// Requests, answers and gossip of a peer: what is understood has one encoding, and no length is believed
/// that the bytes do not have.
pub fn peer(bytes: &[u8]) {
    if let Ok(request) = Request::decode(bytes) {
        assert_eq!(request.encode(), bytes);
    }
    if let Ok(frame) = Frame::decode(bytes) {
        assert_eq!(&frame.encode()[4..], bytes);
    }
    let Some((first, rest)) = bytes.split_first_chunk::<ANSWER_HEAD_BYTES>() else { return };
    let Ok(answer) = wire::decode_answer(first) else { return };
    let Some(rest) = rest.get(..answer.rest_bytes()) else { return };
    if let Ok(head) = wire::decode_block_head(&answer, rest) {
        assert!(head.len <= wire::VALUE_BYTES_MAX);
        let again = wire::encode_block_head(&head, answer.load);
        let (first, rest) = again.split_first_chunk::<ANSWER_HEAD_BYTES>().expect("a head");
        let answer = wire::decode_answer(first).expect("what was written can be read");
        assert_eq!(wire::decode_block_head(&answer, rest), Ok(head));
    }
}

/// Events of the RESP door, with what a connection sees of each.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Command(Vec<Vec<u8>>),
    Value(usize),
    TooLong,
    Refused(ProtocolError),
}

/// Bytes of a RESP client: whole and byte by byte they are the same commands, and what is kept of them
/// is bounded. The first byte says whether the client is logged in.
pub fn resp(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let is_logged_in = first.is_multiple_of(2);
    let whole = events(bytes, bytes.len().max(1), is_logged_in);
    assert_eq!(whole, events(bytes, 1, is_logged_in));
}

fn events(bytes: &[u8], piece: usize, is_logged_in: bool) -> Vec<Seen> {
    let mut parser = Parser::default();
    parser.set_logged_in(is_logged_in);
    let (mut seen, mut value_left) = (Vec::new(), 0);
    for mut piece in bytes.chunks(piece) {
        while !piece.is_empty() {
            let taken = piece.len().min(value_left);
            (piece, value_left) = (&piece[taken..], value_left - taken);
            let (used, event) = match parser.feed(piece) {
                Ok(fed) => fed,
                Err(error) => {
                    seen.push(Seen::Refused(error));
                    return seen;
                }
            };
            assert!(used <= piece.len() && (used > 0 || piece.is_empty()));
            piece = &piece[used..];
            let arguments: Vec<Vec<u8>> = parser.arguments().from(0).map(<[u8]>::to_vec).collect();
            assert!(arguments.iter().map(Vec::len).sum::<usize>() <= COMMAND_BYTES_MAX);
            match event {
                None => assert!(piece.is_empty()),
                Some(Event::Command) => seen.push(Seen::Command(arguments)),
                Some(Event::TooLong) => seen.push(Seen::TooLong),
                Some(Event::Value { len }) => {
                    assert!(len <= VALUE_BYTES_MAX && arguments.last().is_some_and(Vec::is_empty));
                    seen.push(Seen::Value(len));
                    value_left = len;
                }
            }
        }
    }
    seen
}
