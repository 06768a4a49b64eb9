//! The specification's own cases, and what must hold for any bytes.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn parse(text: &str) -> Option<TraceContext> {
    TraceContext::parse(text.as_bytes())
}

#[test]
fn the_specifications_example_is_read() {
    let context = parse(GOOD).unwrap();
    assert_eq!(context.trace_id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(context.span_id.to_string(), "00f067aa0ba902b7");
    assert!(context.sampled);
    assert_eq!(&context.traceparent(), GOOD.as_bytes());
}

#[test]
fn valid_fields_are_taken() {
    const TRACE: &str = "12345678901234567890123456789012-1234567890123456";
    for (version, flags, rest, sampled) in [
        ("00", "00", "", false),
        ("00", "01", "", true),
        // Unknown flags are ignored.
        ("00", "02", "", false),
        ("00", "03", "", true),
        ("00", "fe", "", false),
        ("00", "ff", "", true),
        // Unknown versions are read by their prefix.
        ("01", "01", "", true),
        ("cc", "01", "", true),
        ("cc", "01", "-", true),
        ("cc", "01", "-what-the-future-will-be-like", true),
        ("fe", "00", "-\u{e9}", false),
    ] {
        let field = format!("{version}-{TRACE}-{flags}{rest}");
        assert_eq!(parse(&field).map(|c| c.sampled), Some(sampled), "{field}");
    }
}

#[test]
fn invalid_fields_are_absent() {
    for bad in [
        "",
        "00",
        // Version.
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ".0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "FE-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        // Version 00 has nothing behind its flags.
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.x",
        // A later one only after a dash.
        "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.x",
        // All-zero ids.
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        // Lengths.
        "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e47360-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b70-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-001",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        // Characters.
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-.bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00F067AA0BA902B7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-.0f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-+1",
        "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7_01",
        " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        // Two fields made one by the list rule.
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01,00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ] {
        assert_eq!(parse(bad), None, "{bad}");
    }
}

#[test]
fn a_callers_trace_and_flag_are_kept() {
    let ids = Ids::new([1, 2]);
    for (ratio, flag) in [(1.0, "00"), (0.0, "01")] {
        let field = GOOD.replace("-01", &format!("-{flag}"));
        let begun = Begun::of(Some(field.as_bytes()), Sampler::new(ratio), &ids);
        assert_eq!(begun.context.trace_id, parse(GOOD).unwrap().trace_id);
        assert_eq!(begun.context.sampled, flag == "01");
        assert_eq!(begun.parent, Some(parse(GOOD).unwrap().span_id));
        assert_ne!(begun.context.span_id, parse(GOOD).unwrap().span_id);
    }
}

#[test]
fn a_bad_traceparent_begins_a_trace() {
    let ids = Ids::new([1, 2]);
    let begun = Begun::of(Some(b"00-nonsense"), Sampler::new(1.0), &ids);
    assert_eq!(begun.parent, None);
    assert!(begun.context.sampled);
    let next = Begun::of(None, Sampler::new(0.0), &ids);
    assert!(!next.context.sampled);
    assert_ne!(next.context.trace_id, begun.context.trace_id);
}

#[test]
fn the_ratio_decides_by_the_low_bits() {
    let quarter = Sampler::new(0.25);
    assert!(quarter.takes(TraceId(u128::from(u64::MAX) << 64 | 0x3fff_ffff_ffff_ffff)));
    assert!(!quarter.takes(TraceId(0x4000_0000_0000_0000)));
    let ids = Ids::new([7, 8]);
    let taken = (0..10_000).filter(|_| quarter.takes(ids.next().0)).count();
    assert!((2_300..2_700).contains(&taken), "{taken}");
    assert!((0..1_000).all(|_| Sampler::new(1.0).takes(ids.next().0)));
    assert!(!(0..1_000).any(|_| Sampler::new(0.0).takes(ids.next().0)));
    assert!(Sampler::new(1.0).takes(TraceId(u128::MAX)));
    assert!(!Sampler::new(f64::NAN).takes(TraceId(1)));
}

#[test]
fn ids_differ_between_cores_requests_and_children() {
    let cores = [Ids::new([1, 2]), Ids::new([1, 3]), Ids::new([2, 2])];
    let traces: HashSet<TraceId> =
        cores.iter().flat_map(|ids| (0..1_000).map(|_| ids.next().0)).collect();
    assert_eq!(traces.len(), 3_000);
    let root = cores[0].next().1;
    let children: HashSet<SpanId> = (0..1_000).map(|n| root.child(n)).collect();
    assert_eq!(children.len(), 1_000);
    assert!(!children.contains(&root));
}

#[test]
fn a_tracestate_passes_unchanged_or_not_at_all() {
    assert_eq!(
        tracestate(b"congo=t61rcWkgMzE,rojo=00f067aa"),
        Some("congo=t61rcWkgMzE,rojo=00f067aa")
    );
    let longest = vec![b'a'; TRACESTATE_BYTES_MAX];
    assert!(tracestate(&longest).is_some());
    assert_eq!(tracestate(&[longest.as_slice(), b"a"].concat()), None);
    for bad in [&b""[..], b"a=\r\nb: c", b"a=\xff", "a=é".as_bytes(), b"a=\0"] {
        assert_eq!(tracestate(bad), None);
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(trace in 1_u128.., span in 1_u64.., sampled: bool) {
        let context = TraceContext { trace_id: TraceId(trace), span_id: SpanId(span), sampled };
        prop_assert_eq!(TraceContext::parse(&context.traceparent()), Some(context));
    }

    #[test]
    fn hostile_bytes_are_read_as_the_grammar_says(
        bytes in prop::collection::vec(prop::sample::select(&b"0123456789abcdefABF-. \xff\0"[..]), 0..80),
    ) {
        // Random bytes are hardly ever a field; what is found must at least be in them.
        if let Some(context) = TraceContext::parse(&bytes) {
            prop_assert_eq!(&context.traceparent()[3..52], &bytes[3..52]);
        }
    }

    #[test]
    fn one_changed_byte_is_seen(at in 0_usize..55, byte: u8) {
        let mut field = GOOD.as_bytes().to_vec();
        field[at] = byte;
        let is_hex = matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let valid = match at {
            2 | 35 | 52 => byte == b'-',
            _ => is_hex,
        };
        prop_assert_eq!(TraceContext::parse(&field).is_some(), valid);
        let _ = tracestate(&field);
    }
}
