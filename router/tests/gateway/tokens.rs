//! Tokens of an OpenID issuer: which are believed, and what the issuer must endure.

use std::time::{Duration, Instant};

use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;

use super::client::chat;
use super::engine::Engine;
use super::issuer::{Issuer, Key, base64url, claims, now_s, sections};
use super::process::{Router, free_address, worker};
use super::tenants::{bearer, post, tenant, until};

fn start(engine: &Engine, issuer: std::net::SocketAddr, more: &str) -> Router {
    let tenants = tenant("acme", "") + &tenant("ops", "jwt_subjects = [\"robot\"]");
    Router::start(&sections(issuer, more), &(worker(engine, 4) + &tenants))
}

fn status(router: &Router, token: &str) -> u16 {
    post(router, &bearer(token), &chat("x")).status
}

#[test]
fn a_token_is_believed_only_where_everything_fits() {
    let (key, stranger) = (Key::new("k1"), Key::new("k1"));
    let issuer = Issuer::start(&[&key]);
    let engine = Engine::ok();
    let router = start(&engine, issuer.address, "");
    until("the keys are here", || status(&router, &key.token(json!({}))) == 200);
    let served = engine.asked().len();
    let hs256 = |secret: &[u8]| {
        let header = Header { kid: Some("k1".into()), ..Header::default() };
        let secret = EncodingKey::from_secret(secret);
        jsonwebtoken::encode(&header, &claims(json!({})), &secret).unwrap()
    };
    let unsigned = format!(
        "{}.{}.",
        base64url(br#"{"alg":"none","kid":"k1"}"#),
        base64url(claims(json!({})).to_string().as_bytes())
    );
    let good = key.token(json!({}));
    let bad = [
        key.token(json!({"aud": "another-service"})),
        key.token(json!({"iss": "https://evil.example.com"})),
        key.token(json!({"exp": now_s() - 3_600})),
        key.token(json!({"nbf": now_s() + 3_600})),
        key.token(json!({"exp": null})),
        stranger.token(json!({})),
        // The public key as the secret of a symmetric algorithm.
        hs256(key.x.as_bytes()),
        hs256(b"secret"),
        unsigned,
        format!("{}x", good),
        good[..good.len() - 10].to_owned(),
        "a.b.c".to_owned(),
    ];
    for token in &bad {
        let answer = post(&router, &bearer(token), &chat("x"));
        assert_eq!(answer.status, 401, "{token}: {}", answer.text());
        assert_eq!(answer.error()["code"], "invalid_api_key");
    }
    // Known, but of no tenant; and of one that may chat, with a token that may not.
    assert_eq!(status(&router, &key.token(json!({"tenant": "nobody"}))), 403);
    assert_eq!(status(&router, &key.token(json!({"scope": "embeddings"}))), 403);
    assert_eq!(engine.asked().len(), served);
    assert_eq!(status(&router, &key.token(json!({"aud": ["x", "cognitora"]}))), 200);
    assert_eq!(status(&router, &key.token(json!({"tenant": null, "sub": "robot"}))), 200);
    assert!(engine.asked().iter().all(|asked| asked.field("authorization").is_none()));
    assert_eq!(issuer.fetches(), 1, "bad tokens of known keys cost the issuer nothing");
}

#[test]
fn a_new_key_is_fetched_and_strangers_cannot_make_it_a_flood() {
    const PAUSE_S: u64 = 4;
    let (old, new) = (Key::new("old"), Key::new("new"));
    let issuer = Issuer::start(&[&old]);
    let engine = Engine::ok();
    let began = Instant::now();
    let router = start(&engine, issuer.address, &format!("unknown_kid_pause_s = {PAUSE_S}"));
    until("the keys are here", || status(&router, &old.token(json!({}))) == 200);
    issuer.publish(&[&old, &new]);
    // While the new key is fetched the token is neither good nor bad.
    let mut seen = Vec::new();
    until("the new key is known", || {
        let answer = post(&router, &bearer(&new.token(json!({}))), &chat("x"));
        if answer.status == 503 {
            assert_eq!(answer.error()["code"], "identity_unavailable");
            assert!(answer.field("retry-after").is_some());
        }
        seen.push(answer.status);
        answer.status == 200
    });
    assert!(seen.iter().all(|status| matches!(status, 200 | 401 | 503)), "{seen:?}");
    assert_eq!(status(&router, &old.token(json!({}))), 200);
    for i in 0..125 {
        let token = new.token_of(&format!("made-up-{i}"), json!({}));
        assert!(matches!(status(&router, &token), 401 | 503));
        std::thread::sleep(Duration::from_millis(20));
    }
    // The first one, and one in each pause; the router counts whole seconds.
    let allowed = 1 + (began.elapsed().as_secs() + 1) / PAUSE_S;
    let fetches = issuer.fetches() as u64;
    assert!((2..=allowed).contains(&fetches), "{fetches} fetches, {allowed} allowed");
}

#[test]
fn an_issuer_that_is_away_at_the_start_is_waited_for() {
    let key = Key::new("k1");
    let address = free_address();
    let engine = Engine::ok();
    let router = start(&engine, address, "");
    let answer = post(&router, &bearer(&key.token(json!({}))), &chat("x"));
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.error()["code"], "identity_unavailable");
    assert!(answer.field("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert!(engine.asked().is_empty());
    // `/metrics` asks for a credential too, and none can be checked yet.
    let _issuer = Issuer::at(address, &[&key]);
    until("the issuer is back", || status(&router, &key.token(json!({}))) == 200);
}

#[test]
fn known_keys_outlive_the_issuer() {
    let key = Key::new("k1");
    let issuer = Issuer::start(&[&key]);
    let engine = Engine::ok();
    let router = start(&engine, issuer.address, "refresh_s = 1");
    until("the keys are here", || status(&router, &key.token(json!({}))) == 200);
    issuer.break_down();
    let before = issuer.fetches();
    until("a refresh has failed", || issuer.fetches() > before);
    for _ in 0..20 {
        // Another token each time, so that none is remembered.
        assert_eq!(status(&router, &key.token(json!({}))), 200);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_issuer_is_found_by_its_name_in_whichever_family_it_listens() {
    let key = Key::new("k1");
    // `localhost` is ::1 first on most machines; this one listens on 127.0.0.1 alone.
    let issuer = Issuer::start(&[&key]);
    let engine = Engine::ok();
    let keys = sections(issuer.address, "").replace("//127.0.0.1:", "//localhost:");
    let router = Router::start(&keys, &(worker(&engine, 4) + &tenant("acme", "")));
    until("the keys are here", || status(&router, &key.token(json!({}))) == 200);
}
