//! HTTP/2 as RFC 9113 wants it, frame by frame, and its floods: what a conformance suite would ask, through
//! the router's own listener.

use std::io::{Read, Write};
use std::sync::mpsc;
use std::time::Duration;

use super::client::chat;
use super::engine::{Engine, STREAM_HEAD, chunk, json};
use super::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, Http2,
    INITIAL_WINDOW, PADDED, PING, PREFACE, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, frame, get_fields, post_fields,
};
use super::hostile::{in_silence, resident_bytes};
use super::process::{Router, worker};

const PATH: &str = "/v1/chat/completions";
const PATIENCE: Duration = Duration::from_secs(10);

// Error codes (RFC 9113 §7).
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;

/// Answers with the body it got.
fn echo() -> Engine {
    Engine::start(|asked, stream| {
        stream.write_all(&json(std::str::from_utf8(&asked.body).unwrap())).is_ok()
    })
}

#[test]
fn settings_pings_and_unknown_frames_are_handled_as_they_must() {
    let router = Router::start("", &worker(&Engine::ok(), 1));
    let mut client = Http2::connect(router.http);
    client.send(0xbe, 0xff, 0, b"nobody knows this frame");
    client.send(0xbe, 0xff, 7, b"nor this");
    client.send(SETTINGS, 0, 0, &[0xfa, 0xce, 0, 0, 0, 1]);
    client.send(PRIORITY, 0, 9, &[0, 0, 0, 0, 16]);
    client.send(PING, 0, 0, b"8 bytes!");
    assert_eq!(client.next_of(SETTINGS).flags, ACK);
    let pong = client.next_of(PING);
    assert_eq!((pong.flags, &pong.payload[..]), (ACK, &b"8 bytes!"[..]));
    client.get(1, "/healthz");
    assert_eq!(client.answer(1), (200, b"ok\n".to_vec()));
}

#[test]
fn a_request_in_frames_is_the_same_request() {
    let engine = echo();
    let router = Router::start("", &worker(&engine, 1));
    let mut client = Http2::connect(router.http);
    let body = chat(&"long ".repeat(100_000));
    client.post_within_windows(1, PATH, body.as_bytes());
    assert_eq!(client.answer(1), (200, body.clone().into_bytes()));
    // Padding, priority, a block in three parts, cut anywhere.
    let (fields, body) = (block(&post_fields(PATH)), chat("padded"));
    let mut padded = vec![3];
    padded.extend(&fields[..20]);
    padded.extend([0; 3]);
    client.send(HEADERS, PADDED, 3, &padded);
    client.send(CONTINUATION, 0, 3, &fields[20..21]);
    client.send(CONTINUATION, 0, 3, &[]);
    client.send(CONTINUATION, END_HEADERS, 3, &fields[21..]);
    let mut padded = vec![200];
    padded.extend(body.bytes());
    padded.extend([0; 200]);
    client.send(DATA, PADDED, 3, &padded);
    client.send(DATA, END_STREAM, 3, &[]);
    assert_eq!(client.answer(3), (200, body.into_bytes()));
    assert_eq!(engine.asked()[1].line(), format!("POST {PATH} HTTP/1.1"));
}

/// What a connection is told that sends `bytes` behind its handshake.
fn goaway(router: &Router, bytes: &[u8]) -> Option<u32> {
    let mut client = Http2::connect(router.http);
    client.raw(bytes);
    let goaway = std::iter::from_fn(|| client.try_next()).find(|frame| frame.kind == GOAWAY)?;
    while client.try_next().is_some() {}
    Some(goaway.code())
}

fn settings(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
}

#[test]
fn frames_against_the_rules_end_the_connection_with_their_code() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    let get =
        |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&get_fields("/healthz")));
    let open = |stream| frame(HEADERS, 0, stream, &block(&get_fields("/healthz")));
    let post = |stream| frame(HEADERS, END_HEADERS, stream, &block(&post_fields(PATH)));
    let window = |stream, bytes: u32| frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
    let cases: &[(&str, Vec<u8>, &[u32])] = &[
        ("a short ping", frame(PING, 0, 0, &[0; 7]), &[FRAME_SIZE_ERROR]),
        ("a ping on a stream", frame(PING, 0, 1, &[0; 8]), &[PROTOCOL_ERROR]),
        ("settings cut off", frame(SETTINGS, 0, 0, &[0; 5]), &[FRAME_SIZE_ERROR]),
        ("settings acknowledged with more", frame(SETTINGS, ACK, 0, &[0; 6]), &[FRAME_SIZE_ERROR]),
        ("settings on a stream", frame(SETTINGS, 0, 1, &[]), &[PROTOCOL_ERROR]),
        ("push neither on nor off", settings(2, 2), &[PROTOCOL_ERROR]),
        ("a window too large", settings(4, 1 << 31), &[FLOW_CONTROL_ERROR]),
        ("frames too small", settings(5, 100), &[PROTOCOL_ERROR]),
        ("frames too large", settings(5, 1 << 24), &[PROTOCOL_ERROR]),
        ("data on no stream", frame(DATA, 0, 0, b"x"), &[PROTOCOL_ERROR]),
        ("data on an idle stream", frame(DATA, 0, 1, b"x"), &[PROTOCOL_ERROR]),
        ("headers on no stream", get(0), &[PROTOCOL_ERROR]),
        ("an even stream", get(2), &[PROTOCOL_ERROR]),
        ("streams going down", [get(5), get(3)].concat(), &[PROTOCOL_ERROR, STREAM_CLOSED]),
        ("no window", window(0, 0), &[PROTOCOL_ERROR]),
        ("window over its end", window(0, 0x7fff_ffff), &[FLOW_CONTROL_ERROR]),
        ("a short window", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), &[FRAME_SIZE_ERROR]),
        ("a window of an idle stream", window(7, 1), &[PROTOCOL_ERROR]),
        (
            "a short reset",
            [post(1), frame(RST_STREAM, 0, 1, &[0; 3])].concat(),
            &[FRAME_SIZE_ERROR],
        ),
        ("a reset of no stream", frame(RST_STREAM, 0, 0, &[0; 4]), &[PROTOCOL_ERROR]),
        ("a reset of an idle stream", frame(RST_STREAM, 0, 1, &[0; 4]), &[PROTOCOL_ERROR]),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &[]), &[PROTOCOL_ERROR]),
        ("a block interrupted", [open(1), frame(PING, 0, 0, &[0; 8])].concat(), &[PROTOCOL_ERROR]),
        (
            "a block of another stream",
            [open(1), frame(CONTINUATION, END_HEADERS, 3, &[])].concat(),
            &[PROTOCOL_ERROR],
        ),
        (
            "a promise from a client",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 8]),
            &[PROTOCOL_ERROR],
        ),
        ("no block of fields", frame(HEADERS, END_HEADERS, 1, &[0xff; 9]), &[COMPRESSION_ERROR]),
        ("a field from nowhere", frame(HEADERS, END_HEADERS, 1, &[0xfe]), &[COMPRESSION_ERROR]),
        ("a frame too long", frame(DATA, 0, 1, &[0; 16_385]), &[FRAME_SIZE_ERROR]),
        (
            "more padding than frame",
            frame(HEADERS, PADDED | END_HEADERS, 1, &[9, 0]),
            &[PROTOCOL_ERROR],
        ),
        ("a short goaway", frame(GOAWAY, 0, 0, &[0; 7]), &[FRAME_SIZE_ERROR]),
    ];
    for (name, bytes, codes) in cases {
        // The library gives the general code where it could say more; the end is what counts.
        let said = goaway(&router, bytes);
        let is_expected = |code| code == PROTOCOL_ERROR || codes.contains(&code);
        assert!(said.is_some_and(is_expected), "{name}: {said:?}");
    }
    assert!(engine.asked().is_empty());
}

#[test]
fn what_is_no_preface_is_no_http2() {
    let router = Router::start("", &worker(&Engine::ok(), 1));
    let mut client = router.client();
    client.send("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n");
    assert_eq!(client.answer().status, 400);
    // Byte by byte it is one.
    let mut client = router.client();
    for byte in [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat() {
        client.send([byte]);
    }
    let mut first = [0; 9];
    client.stream.read_exact(&mut first).unwrap();
    assert_eq!((first[3], &first[5..]), (SETTINGS, &[0; 4][..]));
}

/// How the stream ends that carries this request: a status of ours, or a code for it or (RFC 9113 §5.4.1
/// leaves that open) for its connection.
fn stream_error(client: &mut Http2<std::net::TcpStream>, stream: u32) -> Result<u32, u16> {
    loop {
        let frame = client.next();
        match frame.kind {
            RST_STREAM | GOAWAY if frame.kind == GOAWAY || frame.stream == stream => {
                return Ok(frame.code());
            }
            HEADERS if frame.stream == stream => return Err(frame.status()),
            _ => {}
        }
    }
}

#[test]
fn malformed_requests_are_refused_and_reach_no_engine() {
    let engine = Engine::ok();
    let router = Router::start("", &worker(&engine, 1));
    let good = || post_fields(PATH);
    let with = |name, value| [good(), vec![(name, value)]].concat();
    let without = |name| good().into_iter().filter(|field| field.0 != name).collect::<Vec<_>>();
    let cases = [
        ("upper case", with("X-Upper", "1")),
        ("a blank in a name", with("x y", "1")),
        ("a line end in a value", with("x", "1\r\ny: 2")),
        ("a NUL in a value", with("x", "1\0")),
        ("no method", without(":method")),
        ("no path", without(":path")),
        ("no scheme", without(":scheme")),
        ("two paths", [vec![(":path", "/")], good()].concat()),
        ("a status", [vec![(":status", "200")], good()].concat()),
        ("an unknown pseudo field", [vec![(":unknown", "1")], good()].concat()),
        ("a pseudo field behind the others", with(":path", "/")),
        ("connection", with("connection", "close")),
        ("keep-alive", with("keep-alive", "1")),
        ("upgrade", with("upgrade", "h2c")),
        ("proxy-connection", with("proxy-connection", "close")),
        ("transfer-encoding", with("transfer-encoding", "chunked")),
        ("te", with("te", "gzip")),
        ("more than announced", with("content-length", "1")),
        ("less than announced", with("content-length", "9999")),
        ("no length", with("content-length", "+5")),
    ];
    for (name, fields) in &cases {
        let mut client = Http2::connect(router.http);
        client.send(HEADERS, END_HEADERS, 1, &block(fields));
        client.send(DATA, END_STREAM, 1, chat("x").as_bytes());
        let ended = stream_error(&mut client, 1);
        assert!(matches!(ended, Ok(PROTOCOL_ERROR) | Err(400)), "{name}: {ended:?}");
    }
    assert!(engine.asked().is_empty());
    // Trailers are allowed, and belong to nobody.
    let mut client = Http2::connect(router.http);
    client.send(HEADERS, END_HEADERS, 1, &block(&good()));
    client.send(DATA, 0, 1, chat("x").as_bytes());
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("x-trailer", "1")]));
    assert_eq!(client.answer(1).0, 200);
    // Without authority, the field stands in.
    let host = [without(":authority"), vec![("host", "elsewhere")]].concat();
    client.send(HEADERS, END_HEADERS, 3, &block(&host));
    client.send(DATA, END_STREAM, 3, chat("x").as_bytes());
    assert_eq!(client.answer(3).0, 200);
    assert!(engine.asked().iter().all(|asked| asked.field("x-trailer").is_none()));
    assert_eq!(engine.asked().len(), 2);
}

#[test]
fn a_window_of_a_stream_that_cannot_be_ends_it() {
    let engine = Engine::start(|_, stream| in_silence(stream));
    let router = Router::start("", &worker(&engine, 4));
    for (bytes, code) in [(0_u32, PROTOCOL_ERROR), (0x7fff_ffff, FLOW_CONTROL_ERROR)] {
        let mut client = Http2::connect(router.http);
        client.post(1, PATH, chat("x").as_bytes());
        client.send(WINDOW_UPDATE, 0, 1, &bytes.to_be_bytes());
        assert_eq!(stream_error(&mut client, 1), Ok(code));
    }
    assert_eq!(router.client().get("/healthz").status, 200);
}

#[test]
fn no_byte_is_sent_beyond_the_windows() {
    let text = format!("\"{}\"", "y".repeat(300_000));
    let length = text.len();
    let router = Router::start("", &worker(&Engine::fixed(json(&text)), 1));
    let mut client = Http2::connect_with(router.http, &[(INITIAL_WINDOW, 10)]);
    client.post(1, PATH, chat("x").as_bytes());
    assert_eq!(client.next_of(HEADERS).status(), 200);
    // Stream by stream's window, and then by the connection's 65,535.
    let (mut got, mut granted) = (0, 10);
    let mut windows = [7_u32, 1, 0, 1_000, 100_000].into_iter();
    while got < 65_535 {
        let frame = client.next_of(DATA);
        got += frame.payload.len();
        assert!(got <= granted.min(65_535), "{got} of {granted}");
        if got == granted {
            // Whatever was sent too much would come before the answer to a ping.
            client.send(PING, 0, 0, b"and more");
            let next = client.next();
            assert_eq!(next.kind, PING, "{next:?}");
            match windows.next() {
                // A smaller first window takes back, and may leave less than nothing.
                Some(0) => {
                    client.raw(&settings(INITIAL_WINDOW, 0));
                    client.send(WINDOW_UPDATE, 0, 1, &15_u32.to_be_bytes());
                    granted += 5;
                }
                Some(more) => {
                    client.send(WINDOW_UPDATE, 0, 1, &more.to_be_bytes());
                    granted += more as usize;
                }
                None => panic!("{got} bytes, and the connection has room"),
            }
        }
    }
    assert_eq!(got, 65_535);
    client.send(PING, 0, 0, b"and more");
    assert_eq!(client.next().kind, PING);
    client.open_window(1, 1 << 20);
    while got < length {
        got += client.next_of(DATA).payload.len();
    }
    assert_eq!(got, length);
}

#[test]
fn a_reset_in_a_stream_cancels_the_engine_and_only_that() {
    let (ended, saw_end) = mpsc::channel();
    let engine = Engine::start(move |asked, stream| {
        stream.write_all(format!("{STREAM_HEAD}{}", chunk("data: 1\n\n")).as_bytes()).unwrap();
        let is_first = asked.body.windows(5).any(|part| part == b"first");
        let _ = ended.send((is_first, in_silence(stream)));
        false
    });
    let router = Router::start("", &worker(&engine, 4));
    let mut client = Http2::connect(router.http);
    client.post(1, PATH, chat("first").as_bytes());
    client.post(3, PATH, chat("second").as_bytes());
    for _ in 0..2 {
        client.next_of(DATA);
    }
    client.send(RST_STREAM, 0, 1, &8_u32.to_be_bytes());
    assert_eq!(saw_end.recv_timeout(PATIENCE), Ok((true, false)));
    assert!(client.is_alive());
    assert!(saw_end.try_recv().is_err(), "the other stream goes on");
    // A connection that goes takes all of its streams along.
    drop(client);
    assert_eq!(saw_end.recv_timeout(PATIENCE), Ok((false, false)));
}

#[test]
fn a_hundred_streams_at_once_are_each_answered_with_their_own() {
    let router = Router::start("", &worker(&echo(), 100));
    let mut client = Http2::connect(router.http);
    let streams: Vec<u32> = (0..100).map(|at| 1 + 2 * at).collect();
    for stream in &streams {
        client.post(*stream, PATH, chat(&format!("number {stream}")).as_bytes());
    }
    let mut bodies = std::collections::BTreeMap::<u32, Vec<u8>>::new();
    let mut open = streams.len();
    while open > 0 {
        let frame = client.next();
        assert_ne!(frame.kind, RST_STREAM);
        if frame.kind == DATA {
            bodies.entry(frame.stream).or_default().extend(&frame.payload);
        }
        open -= usize::from(frame.ends_stream());
    }
    for stream in streams {
        assert_eq!(bodies[&stream], chat(&format!("number {stream}")).into_bytes());
    }
}

#[test]
fn streams_over_the_limit_are_refused_and_those_within_go_on() {
    let engine = Engine::start(|_, stream| in_silence(stream));
    let router = Router::start("[router.limits]\nhttp2_streams_max = 4\n", &worker(&engine, 8));
    let mut client = Http2::connect(router.http);
    for stream in [1, 3, 5, 7, 9] {
        client.post(stream, PATH, chat("x").as_bytes());
    }
    let refused = client.next_of(RST_STREAM);
    assert_eq!((refused.stream, refused.code()), (9, REFUSED_STREAM));
    client.send(RST_STREAM, 0, 1, &8_u32.to_be_bytes());
    client.get(11, "/healthz");
    assert_eq!(client.answer(11).0, 200);
}

#[test]
fn too_many_and_too_long_fields_are_a_431_or_the_end() {
    let engine = Engine::ok();
    let router = Router::start(
        "[router.limits]\nhead_bytes_max = 4096\nbody_bytes_max = 1000\n",
        &worker(&engine, 1),
    );
    let mut client = Http2::connect(router.http);
    let long = "y".repeat(6_000);
    let fields = [post_fields(PATH), vec![("x", long.as_str())]].concat();
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
    assert_eq!(stream_error(&mut client, 1), Err(431));
    let many: Vec<_> = [post_fields(PATH), vec![("x", "y"); 101]].concat();
    client.send(HEADERS, END_HEADERS | END_STREAM, 3, &block(&many));
    assert_eq!(stream_error(&mut client, 3), Err(431));
    client.post(5, PATH, chat(&long).as_bytes());
    assert_eq!(client.answer(5).0, 413);
    assert!(client.is_alive());
    assert!(engine.asked().is_empty());
}

#[test]
fn an_answer_to_head_has_no_data() {
    let router = Router::start("", &worker(&Engine::ok(), 1));
    let mut client = Http2::connect(router.http);
    let mut fields = get_fields("/v1/models");
    fields[0].1 = "HEAD";
    client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields));
    assert!(client.answer(1).1.is_empty());
}

#[test]
fn an_engine_that_fails_in_a_stream_ends_it_with_an_error_event() {
    let engine = Engine::start(|_, stream| {
        stream.write_all(format!("{STREAM_HEAD}{}", chunk("data: 1\n\n")).as_bytes()).unwrap();
        false
    });
    let router = Router::start("", &worker(&engine, 1));
    let mut client = Http2::connect(router.http);
    client.post(1, PATH, chat("x").as_bytes());
    let (status, body) = client.answer(1);
    let text = String::from_utf8(body).unwrap();
    assert_eq!(status, 200);
    assert!(text.starts_with("data: 1\n\ndata: {\"error\""), "{text}");
}

#[test]
fn a_stream_whose_body_never_ends_is_given_up() {
    let keys = "[router.limits]\nclient_stall_s_max = 1\n";
    let router = Router::start(keys, &worker(&Engine::ok(), 1));
    let mut client = Http2::connect(router.http);
    client.io.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    client.send(HEADERS, END_HEADERS, 1, &block(&post_fields(PATH)));
    client.send(HEADERS, END_HEADERS, 3, &block(&post_fields(PATH)));
    let mut streams = 2.0;
    // One sends nothing, the other a byte now and then.
    for _ in 0..200 {
        let _ = client.io.write_all(&frame(DATA, 0, 3, b" "));
        std::thread::sleep(Duration::from_millis(50));
        streams = router.metric("cgn_router_http2_streams");
        if streams == 0.0 {
            break;
        }
    }
    assert_eq!(streams, 0.0);
}

/// Sends `flood` again and again, reading or not, until it had its turn or the router hangs up.
fn flood(router: &Router, first: &[u8], again: impl Fn(u32) -> Vec<u8>, is_reading: bool) {
    let mut client = Http2::connect(router.http);
    let mut reader = client.io.try_clone().unwrap();
    client.raw(first);
    client.io.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let reading = is_reading
        .then(|| std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink())));
    for part in 0..100 {
        let frames: Vec<u8> = (part * 200..(part + 1) * 200).flat_map(&again).collect();
        if client.io.write_all(&frames).is_err() {
            break;
        }
    }
    assert!(Http2::connect(router.http).is_alive());
    let _ = client.io.shutdown(std::net::Shutdown::Both);
    if let Some(reading) = reading {
        let _ = reading.join().unwrap();
    }
}

#[test]
fn floods_cost_neither_memory_nor_the_others() {
    let engine = Engine::start(|_, stream| in_silence(stream));
    let router = Router::start("", &worker(&engine, 64));
    let before = resident_bytes(&router);
    let get =
        |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&get_fields("/healthz")));
    let post = |stream| frame(HEADERS, END_HEADERS, stream, &block(&post_fields(PATH)));
    let cancel = |stream| frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    for is_reading in [true, false] {
        flood(&router, &[], |_| frame(PING, 0, 0, &[0; 8]), is_reading);
        flood(&router, &[], |_| settings(INITIAL_WINDOW, 1_000), is_reading);
        flood(&router, &[], |at| [get(1 + 2 * at), cancel(1 + 2 * at)].concat(), is_reading);
        flood(&router, &[], |at| [post(1 + 2 * at), cancel(1 + 2 * at)].concat(), is_reading);
        flood(&router, &[], |at| get(1 + 2 * at), is_reading);
        flood(&router, &post(1), |_| frame(DATA, 0, 1, &[]), is_reading);
        flood(&router, &post(1), |_| frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes()), is_reading);
        flood(&router, &post(1), |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]), is_reading);
        flood(&router, &[], |_| frame(0xbe, 0, 0, &[0; 100]), is_reading);
        let open = frame(HEADERS, 0, 1, &block(&post_fields(PATH)));
        flood(&router, &open, |_| frame(CONTINUATION, 0, 1, &block(&[("x", "y")])), is_reading);
        flood(&router, &open, |_| frame(CONTINUATION, 0, 1, &[]), is_reading);
    }
    let grown = resident_bytes(&router).saturating_sub(before);
    assert!(grown < 48 << 20, "{} KiB", grown >> 10);
    assert_eq!(router.client().get("/healthz").status, 200);
}

#[test]
fn a_client_that_says_goodbye_gets_what_it_asked_for() {
    let engine = Engine::start(|_, stream| {
        stream.write_all(STREAM_HEAD.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        stream.write_all(format!("{}0\r\n\r\n", chunk("data: 1\n\n")).as_bytes()).is_ok()
    });
    let router = Router::start("", &worker(&engine, 1));
    let mut client = Http2::connect(router.http);
    client.post(1, PATH, chat("x").as_bytes());
    client.send(GOAWAY, 0, 0, &[0; 8]);
    assert_eq!(client.answer(1), (200, b"data: 1\n\n".to_vec()));
}

#[test]
fn sigterm_says_goodbye_and_lets_streams_finish() {
    let engine = Engine::start(|_, stream| {
        stream.write_all(format!("{STREAM_HEAD}{}", chunk("data: 1\n\n")).as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(1_000));
        stream.write_all(format!("{}0\r\n\r\n", chunk("data: [DONE]\n\n")).as_bytes()).is_ok()
    });
    let keys = "[router.limits]\ndrain_idle_ms_max = 500\n";
    let mut router = Router::start(keys, &worker(&engine, 1));
    let mut client = Http2::connect(router.http);
    client.post(1, PATH, chat("x").as_bytes());
    let mut body = client.next_of(DATA).payload;
    router.terminate();
    let mut goodbyes = 0;
    while let Some(frame) = client.try_next() {
        client.serve(&frame);
        match frame {
            Frame { kind: GOAWAY, .. } => {
                assert_eq!(frame.code(), 0);
                goodbyes += 1;
            }
            Frame { kind: DATA, payload, .. } => body.extend(payload),
            _ => {}
        }
    }
    assert!(goodbyes > 0);
    assert_eq!(String::from_utf8(body).unwrap(), "data: 1\n\ndata: [DONE]\n\n");
    assert_eq!(router.wait(), Some(0));
}
