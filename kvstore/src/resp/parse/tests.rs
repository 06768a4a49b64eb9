//! What the parser makes of bytes, whole, split and broken.

use proptest::prelude::*;

use super::*;

/// An event with all a caller sees of it.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Command(Vec<Vec<u8>>),
    Value(Vec<u8>),
    TooLong,
    Broken(ProtocolError),
}

/// Feeds `pieces` one after another and takes the values off the wire as a connection does.
fn seen<'a>(parser: &mut Parser, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Seen> {
    let (mut seen, mut value, mut left) = (Vec::new(), Vec::new(), None);
    for mut piece in pieces {
        loop {
            if let Some(len) = left {
                let taken = piece.len().min(len);
                value.extend_from_slice(&piece[..taken]);
                piece = &piece[taken..];
                left = Some(len - taken);
                if len > taken {
                    break;
                }
                left = None;
                seen.push(Seen::Value(std::mem::take(&mut value)));
            }
            match parser.feed(piece) {
                Ok((used, event)) => {
                    piece = &piece[used..];
                    match event {
                        None => break,
                        Some(Event::Value { len }) => left = Some(len),
                        Some(Event::TooLong) => seen.push(Seen::TooLong),
                        Some(Event::Command) => {
                            let arguments = parser.arguments().from(0).map(<[u8]>::to_vec);
                            seen.push(Seen::Command(arguments.collect()));
                        }
                    }
                }
                Err(error) => {
                    seen.push(Seen::Broken(error));
                    return seen;
                }
            }
        }
    }
    seen
}

fn whole(bytes: &[u8]) -> Vec<Seen> {
    let mut parser = Parser::default();
    parser.set_logged_in(true);
    seen(&mut parser, std::iter::once(bytes))
}

fn broken(bytes: &[u8]) -> ProtocolError {
    match whole(bytes).pop() {
        Some(Seen::Broken(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn command(words: &[&str]) -> Seen {
    Seen::Command(words.iter().map(|word| word.as_bytes().to_vec()).collect())
}

/// The bytes of a command as a client sends them.
fn encoded(words: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).bytes());
        bytes.extend(word);
        bytes.extend(b"\r\n");
    }
    bytes
}

#[test]
fn a_value_is_handed_over_and_the_rest_kept() {
    let bytes = b"*4\r\n$3\r\nset\r\n$1\r\nk\r\n$3\r\na\r\n\r\n$2\r\nNX\r\n";
    let expected = [Seen::Value(b"a\r\n".to_vec()), command(&["set", "k", "", "NX"])];
    assert_eq!(whole(bytes), expected);
}

#[test]
fn every_second_argument_of_mset_is_a_value() {
    let words = ["MSET", "a", "1", "b", "22"].map(|word| word.as_bytes().to_vec());
    let expected = [
        Seen::Value(b"1".to_vec()),
        Seen::Value(b"22".to_vec()),
        command(&["MSET", "a", "", "b", ""]),
    ];
    assert_eq!(whole(&encoded(&words)), expected);
}

#[test]
fn lines_typed_by_hand_are_commands() {
    let cases: &[(&[u8], &[&str])] = &[
        (b"ping\r\n", &["ping"]),
        (b"  get \t a\n", &["get", "a"]),
        (b"set a \"x \\x41\\n\\\"\" nx\r\n", &["set", "a", "x A\n\"", "nx"]),
        (b"set a 'x \\n \\''\r\n", &["set", "a", "x \\n '"]),
        (b"get \"\"\r\n", &["get", ""]),
    ];
    for (bytes, words) in cases {
        assert_eq!(whole(bytes), [command(words)], "{}", bytes.escape_ascii());
    }
    assert_eq!(whole(b"\r\n \r\n*0\r\n*-1\r\n*-7\r\n"), []);
}

#[test]
fn what_is_no_resp_is_refused() {
    let cases: &[(&[u8], ProtocolError)] = &[
        (b"*x\r\n", ProtocolError::Count),
        (b"*1\n", ProtocolError::Count),
        (b"*1000000\r\n", ProtocolError::Count),
        (b"*99999999999999999999\r\n", ProtocolError::Count),
        (b"*1\r\n$-5\r\n", ProtocolError::Length),
        (b"*1\r\n$99999999999\r\n", ProtocolError::Length),
        (b"*1\r\n$536870913\r\n", ProtocolError::Length),
        (b"*1\r\n$+1\r\n", ProtocolError::Length),
        (b"*1\r\n$\r\n", ProtocolError::Length),
        (b"*1\r\n$0000000000000000000000000000", ProtocolError::Number),
        (b"*1\r\n:1\r\n", ProtocolError::Dollar(b':')),
        (b"*1\r\n$4\r\npingx\r\n", ProtocolError::Ending),
        (b"*1\r\n$4\r\nping\rx", ProtocolError::Ending),
        (b"get \"a\r\n", ProtocolError::Quotes),
        (b"get \"a\"b\r\n", ProtocolError::Quotes),
        (b"POST / HTTP/1.1\r\n", ProtocolError::Http),
        (b"Host: a\r\n", ProtocolError::Http),
    ];
    for (bytes, error) in cases {
        assert_eq!(broken(bytes), *error, "{}", bytes.escape_ascii());
    }
    assert_eq!(broken(&[b'a'; INLINE_BYTES_MAX + 1]), ProtocolError::Inline);
}

#[test]
fn a_command_too_long_is_read_over() {
    let long = vec![b'x'; ARGUMENT_BYTES_MAX + 1];
    let mut bytes = encoded(&[b"GET".to_vec(), long.clone()]);
    bytes.extend(encoded(&[b"SET".to_vec(), long, b"value".to_vec()]));
    bytes.extend(b"PING\r\n");
    assert_eq!(whole(&bytes), [Seen::TooLong, Seen::TooLong, command(&["PING"])]);
    let many = vec![vec![b'x'; 1024]; COMMAND_BYTES_MAX / 1024 + 1];
    assert_eq!(whole(&encoded(&many)), [Seen::TooLong]);
}

#[test]
fn a_stranger_may_send_little() {
    for (bytes, error) in [
        (&b"*11\r\n"[..], ProtocolError::LoginCount),
        (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$16385\r\n", ProtocolError::LoginLength),
    ] {
        let seen = seen(&mut Parser::default(), std::iter::once(bytes));
        assert_eq!(seen, [Seen::Broken(error)]);
        assert!(whole(bytes).iter().all(|seen| !matches!(seen, Seen::Broken(_))));
    }
}

fn words() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let name = prop_oneof![
        Just(b"SET".to_vec()),
        Just(b"mset".to_vec()),
        Just(b"GET".to_vec()),
        Just(vec![b'x'; ARGUMENT_BYTES_MAX + 1]),
        proptest::collection::vec(any::<u8>(), 0..9),
    ];
    let others = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..7);
    (name, others).prop_map(|(name, others)| [vec![name], others].concat())
}

/// Bytes that are partly commands, partly junk.
fn traffic() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => words().prop_map(|words| encoded(&words)),
        1 => Just(b"get \"a b\"\r\n".to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..12),
    ];
    proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

/// What `words` must be seen as, told without the parser.
fn expected(words: &[Vec<u8>]) -> Vec<Seen> {
    if words.iter().any(|word| word.len() > ARGUMENT_BYTES_MAX) {
        return vec![Seen::TooLong];
    }
    let name = words[0].to_ascii_uppercase();
    let is_value = |index: usize| match name.as_slice() {
        b"SET" | b"SETNX" => index == 2,
        b"MSET" => index >= 2 && index.is_multiple_of(2),
        _ => false,
    };
    let mut seen = Vec::new();
    let mut kept = words.to_vec();
    for (index, word) in kept.iter_mut().enumerate().filter(|(index, _)| is_value(*index)) {
        assert!(index > 0);
        seen.push(Seen::Value(std::mem::take(word)));
    }
    seen.push(Seen::Command(kept));
    seen
}

proptest! {
    #[test]
    fn any_split_of_the_bytes_gives_the_same_events(
        bytes in traffic(),
        is_logged_in: bool,
        cuts in proptest::collection::vec(1_usize..50, 1..40),
    ) {
        let mut cuts = cuts.into_iter().cycle();
        let mut rest = bytes.as_slice();
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        let (mut one, mut two) = (Parser::default(), Parser::default());
        one.set_logged_in(is_logged_in);
        two.set_logged_in(is_logged_in);
        let whole = seen(&mut one, std::iter::once(bytes.as_slice()));
        prop_assert_eq!(whole, seen(&mut two, pieces.into_iter()));
    }

    #[test]
    fn commands_are_seen_as_they_were_sent(commands in proptest::collection::vec(words(), 1..5)) {
        let bytes: Vec<u8> = commands.iter().flat_map(|words| encoded(words)).collect();
        let all: Vec<Seen> = commands.iter().flat_map(|words| expected(words)).collect();
        prop_assert_eq!(whole(&bytes), all);
    }

    #[test]
    fn a_line_of_plain_words_is_split_at_blanks(words in proptest::collection::vec("[a-z0-9]{1,8}", 1..6)) {
        let line = format!("{}\r\n", words.join("  "));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        prop_assume!(!["post", "host:"].contains(&words[0]));
        prop_assert_eq!(whole(line.as_bytes()), [command(&words)]);
    }
}
