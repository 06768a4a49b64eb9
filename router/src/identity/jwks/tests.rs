//! Tests of the key set: what is taken from it, and when it is asked for.

use Algorithm::{ES256, ES384, EdDSA, HS256, PS256, RS256, RS512};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::identity::issuer::{self, Issuer};

const SCHEDULE: Schedule =
    Schedule { refresh_s: 600, unknown_kid_pause_s: 30, stale_s_max: 86_400 };

fn with_keys(issuers: &[&Issuer], now_s: u64) -> Jwks {
    let mut keys = Jwks::new(SCHEDULE);
    assert!(keys.begin_fetch(now_s));
    keys.fetched(now_s, &issuer::set(issuers)).unwrap();
    keys
}

fn has(keys: &mut Jwks, kid: Option<&str>, algorithm: Algorithm, now_s: u64) -> bool {
    matches!(keys.find(kid, algorithm, now_s), Found::Key(_))
}

fn wants_for_unknown(keys: &mut Jwks, now_s: u64) -> bool {
    match keys.find(Some("unknown"), RS256, now_s) {
        Found::Key(key) => panic!("{key:?}"),
        Found::Unknown { fetch_wanted } => fetch_wanted,
    }
}

#[test]
fn a_key_verifies_only_what_its_type_and_alg_allow() {
    let (rsa, ec, ed) = (Issuer::rsa("r", RS256), Issuer::ec("e", ES384), Issuer::ed("d"));
    let mut only_ps = Issuer::rsa("p", PS256);
    only_ps.jwk["alg"] = json!("PS256");
    let mut keys = with_keys(&[&rsa, &ec, &ed, &only_ps], 0);
    for (kid, good, bad) in [
        ("r", RS512, ES256),
        ("e", ES384, ES256),
        ("d", EdDSA, RS256),
        ("p", PS256, RS256),
        ("r", RS256, HS256),
    ] {
        assert!(has(&mut keys, Some(kid), good, 1), "{kid}");
        assert!(!has(&mut keys, Some(kid), bad, 1), "{kid}");
    }
    // Without a name only where there is no doubt.
    assert!(has(&mut keys, None, EdDSA, 1) && has(&mut keys, None, RS256, 1));
    assert!(!has(&mut keys, None, PS256, 1));
}

#[test]
fn what_is_no_signing_key_of_ours_is_left_out() {
    let good = Issuer::ed("good");
    let mut set = json!({"keys": [
        {"kty": "oct", "kid": "hmac", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "EC", "crv": "P-521", "kid": "521", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "kid": "short", "x": "AA", "y": "AA"},
        {"kty": "RSA", "kid": "weak", "n": "AQAB", "e": "AQAB"},
        {"kty": "RSA", "kid": 7},
        "nonsense", null, [],
        {"kty": "OKP", "crv": "Ed25519", "kid": "k".repeat(300), "x": "A".repeat(43)},
        {"kty": "OKP", "crv": "Ed25519", "kid": "bad base64", "x": "!".repeat(43)},
    ]});
    let mut encryption = Issuer::rsa("enc", RS256).jwk;
    encryption["use"] = json!("enc");
    set["keys"].as_array_mut().unwrap().extend([encryption, good.jwk]);
    let mut keys = Jwks::new(SCHEDULE);
    assert_eq!(keys.fetched(0, set.to_string().as_bytes()), Ok(1));
    assert!(has(&mut keys, Some("good"), EdDSA, 0));
}

#[test]
fn bad_sets_are_refused_and_the_old_keys_stay() {
    let ed = Issuer::ed("d");
    let mut keys = with_keys(&[&ed], 0);
    let many = json!({"keys": vec![ed.jwk.clone(); JWKS_KEYS_MAX + 1]}).to_string();
    let deep = format!("{{\"keys\":{}1{}}}", "[".repeat(20_000), "]".repeat(20_000));
    for (bytes, message) in [
        (b"<html>".to_vec(), "is jwks_url the address of the key set itself?"),
        (b"{\"issuer\":\"x\"}".to_vec(), "missing field `keys`"),
        (b"{\"keys\":[]}".to_vec(), "none of the 0 keys can be used"),
        (b"{\"keys\":[{}]}".to_vec(), "none of the 1 keys can be used"),
        (vec![b' '; JWKS_BYTES_MAX + 1], "at most 262144"),
        (many.into_bytes(), "65 keys; at most 64"),
        (deep.into_bytes(), "recursion limit"),
    ] {
        let error = keys.fetched(1, &bytes).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert!(has(&mut keys, Some("d"), EdDSA, 1));
    }
}

#[test]
fn a_fetch_is_due_at_once_then_every_refresh() {
    let mut keys = Jwks::new(SCHEDULE);
    assert!(keys.wants_fetch(5) && !keys.is_fresh(5) && keys.is_empty());
    // One core gets it.
    assert!(keys.begin_fetch(5) && !keys.begin_fetch(5));
    keys.fetched(6, &issuer::set(&[&Issuer::ed("d")])).unwrap();
    assert_eq!(keys.len(), 1);
    assert!(!keys.wants_fetch(605));
    assert!(keys.wants_fetch(606));
}

#[test]
fn a_fetch_that_nobody_reports_on_is_given_up() {
    let mut keys = Jwks::new(SCHEDULE);
    assert!(keys.begin_fetch(100) && !keys.begin_fetch(100 + FETCH_S_MAX - 1));
    assert!(keys.begin_fetch(100 + FETCH_S_MAX));
}

#[test]
fn failures_are_retried_with_growing_pauses() {
    let mut keys = Jwks::new(SCHEDULE);
    let mut now_s = 1_000;
    for pause_s in [5, 10, 20, 40, 80, 160, 300, 300, 300] {
        assert!(keys.begin_fetch(now_s));
        keys.failed(now_s);
        assert!(!keys.wants_fetch(now_s + pause_s - 1), "{pause_s}");
        assert!(keys.wants_fetch(now_s + pause_s), "{pause_s}");
        now_s += pause_s;
    }
    keys.fetched(now_s, &issuer::set(&[&Issuer::ed("d")])).unwrap();
    assert!(keys.begin_fetch(now_s + 600));
    keys.failed(now_s + 600);
    assert!(keys.wants_fetch(now_s + 605), "the pause is short again");
    for _ in 0..100 {
        keys.failed(u64::MAX);
    }
}

#[test]
fn a_set_that_cannot_be_refreshed_serves_until_it_is_stale() {
    let mut keys = with_keys(&[&Issuer::ed("d")], 1_000);
    for now_s in (1_600..=87_400).step_by(300) {
        if keys.begin_fetch(now_s) {
            keys.failed(now_s);
        }
        assert!(has(&mut keys, Some("d"), EdDSA, now_s), "{now_s}");
    }
    assert!(!has(&mut keys, Some("d"), EdDSA, 87_401));
}

#[test]
fn unknown_names_cause_a_fetch_at_most_once_per_pause() {
    let mut keys = with_keys(&[&Issuer::ed("d")], 1_000);
    assert!(!wants_for_unknown(&mut keys, 1_029));
    assert!(!keys.wants_fetch(1_029));
    assert!(wants_for_unknown(&mut keys, 1_030));
    assert!(keys.begin_fetch(1_030));
    // While it is under way, a token that waits for it is not yet wrong.
    assert!(wants_for_unknown(&mut keys, 1_031));
    keys.fetched(1_032, &issuer::set(&[&Issuer::ed("new")])).unwrap();
    assert!(has(&mut keys, Some("new"), EdDSA, 1_032));
    assert!(!wants_for_unknown(&mut keys, 1_032) && !keys.wants_fetch(1_032));
    // A name that is absurdly long and a token without a name cause none.
    let long = "k".repeat(KID_BYTES_MAX + 1);
    assert!(!has(&mut keys, Some(&long), EdDSA, 1_100) && !has(&mut keys, None, RS256, 1_100));
    assert!(!keys.wants_fetch(1_100));
}

proptest! {
    /// Whatever tokens and answers come, fetches begin no more often than the schedule allows.
    #[test]
    fn fetches_are_rare(
        steps in prop::collection::vec((0_u64..20, 0_u8..4), 1..400),
    ) {
        let set = issuer::set(&[&Issuer::ed("d")]);
        let mut keys = Jwks::new(SCHEDULE);
        let mut begun: Vec<(u64, bool)> = Vec::new();
        let mut now_s = 10_000;
        for (wait_s, what) in steps {
            now_s += wait_s;
            let _ = keys.find(Some("unknown"), RS256, now_s);
            if keys.begin_fetch(now_s) {
                let was_ok = what > 0;
                if let Some((before_s, before_ok)) = begun.last() {
                    let pause_s = if *before_ok { 30 } else { BACKOFF_S_MIN };
                    prop_assert!(now_s - before_s >= pause_s);
                }
                begun.push((now_s, was_ok));
                if was_ok {
                    keys.fetched(now_s, &set).unwrap();
                } else {
                    keys.failed(now_s);
                }
            }
        }
    }
}
