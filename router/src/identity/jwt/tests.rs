//! Tests of token verification: what passes, and everything that must not.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::identity::issuer::{self, Issuer, base64url};
use crate::identity::jwks::{Found, Jwks};
use crate::identity::scope::Scope;

const NOW_S: u64 = 1_800_000_000;

fn config() -> JwtConfig {
    JwtConfig {
        issuer: "https://issuer.example/".into(),
        audience: "cognitora".into(),
        jwks_url: "https://issuer.example/keys".into(),
        ..JwtConfig::default()
    }
}

fn good() -> Value {
    json!({
        "iss": "https://issuer.example/", "aud": "cognitora", "sub": "user-1",
        "exp": NOW_S + 300, "nbf": NOW_S - 10, "tenant": "acme", "scope": "openid chat models",
    })
}

fn with(claim: &str, value: Value) -> Value {
    let mut claims = good();
    claims[claim] = value;
    claims
}

fn without(claim: &str) -> Value {
    let mut claims = good();
    claims.as_object_mut().unwrap().remove(claim);
    claims
}

/// Verifies as `Identity` does: head, key, claims.
fn verify_with(config: &JwtConfig, issuer: &Issuer, token: &str) -> Result<Claims, TokenError> {
    let verifier = Verifier::new(config).unwrap();
    let mut keys = Jwks::new(verifier.schedule());
    keys.fetched(NOW_S, &issuer::set(&[issuer])).unwrap();
    let head = verifier.head(token)?;
    match keys.find(head.kid.as_deref(), head.algorithm, NOW_S) {
        Found::Key(key) => verifier.claims(token, &head, key, NOW_S),
        Found::Unknown { .. } => Err(TokenError::UnknownKey),
    }
}

fn verify(issuer: &Issuer, token: &str) -> Result<Claims, TokenError> {
    verify_with(&config(), issuer, token)
}

#[test]
fn every_algorithm_accepted_verifies() {
    use Algorithm::{ES256, ES384, PS256, RS256, RS384, RS512};
    let mut issuers: Vec<Issuer> =
        [RS256, RS384, RS512, PS256].into_iter().map(|a| Issuer::rsa("k", a)).collect();
    issuers.extend([Issuer::ec("k", ES256), Issuer::ec("k", ES384), Issuer::ed("k")]);
    assert_eq!(issuers.len(), KNOWN.len());
    for issuer in issuers {
        let claims = verify(&issuer, &issuer.token(&good())).unwrap();
        assert_eq!((claims.subject.as_str(), claims.tenant.as_deref()), ("user-1", Some("acme")));
        assert_eq!(claims.scopes, Scopes::NONE.with(Scope::Chat).with(Scope::Models));
        assert_eq!(claims.refused_from_s, NOW_S + 330);
        // Another key of the same kind and name does not do.
        let other = match issuer.algorithm {
            ES256 | ES384 => Issuer::ec("k", issuer.algorithm),
            Algorithm::EdDSA => Issuer::ed("k"),
            _ => continue,
        };
        assert_eq!(verify(&other, &issuer.token(&good())), Err(TokenError::Signature));
    }
}

#[test]
fn claims_of_others_are_refused() {
    let issuer = Issuer::ed("k");
    for (claims, error) in [
        (with("iss", json!("https://issuer.example")), TokenError::Issuer),
        (with("iss", json!(["https://issuer.example/"])), TokenError::Issuer),
        (without("iss"), TokenError::Issuer),
        (with("aud", json!("other")), TokenError::Audience),
        (with("aud", json!(["other", 7])), TokenError::Audience),
        (with("aud", json!({"cognitora": true})), TokenError::Audience),
        (without("aud"), TokenError::Audience),
        (with("exp", json!(NOW_S - 30)), TokenError::Expired),
        (with("exp", json!(0)), TokenError::Expired),
        (with("exp", json!("1900000000")), TokenError::Claim("exp")),
        (with("exp", json!(-1)), TokenError::Claim("exp")),
        (with("exp", json!(null)), TokenError::Claim("exp")),
        (without("exp"), TokenError::Claim("exp")),
        (with("nbf", json!(NOW_S + 31)), TokenError::NotYet),
        (with("nbf", json!("now")), TokenError::Claim("nbf")),
        (with("sub", json!("")), TokenError::Claim("sub")),
        (with("sub", json!("s".repeat(257))), TokenError::Claim("sub")),
        (without("sub"), TokenError::Claim("sub")),
        (with("tenant", json!(7)), TokenError::Claim("tenant")),
        (with("scope", json!({"chat": true})), TokenError::Claim("scope")),
        (json!("no object"), TokenError::Malformed),
    ] {
        assert_eq!(verify(&issuer, &issuer.token(&claims)), Err(error), "{claims}");
    }
}

#[test]
fn claims_at_the_edge_pass() {
    let issuer = Issuer::ed("k");
    for claims in [
        with("exp", json!(NOW_S - 29)),
        with("exp", json!(NOW_S as f64 + 0.5)),
        with("exp", json!(1e300)),
        with("nbf", json!(NOW_S + 30)),
        without("nbf"),
        without("tenant"),
        with("aud", json!(["other", "cognitora"])),
    ] {
        verify(&issuer, &issuer.token(&claims)).expect("a good token");
    }
    let exp = verify(&issuer, &issuer.token(&with("exp", json!(1e300)))).unwrap().refused_from_s;
    assert_eq!(exp, u64::MAX);
}

#[test]
fn scopes_come_from_the_claim_that_is_configured() {
    let issuer = Issuer::ed("k");
    let scopes = |config: &JwtConfig, claims: &Value| {
        verify_with(config, &issuer, &issuer.token(claims)).unwrap().scopes.to_string()
    };
    let all = Scopes::INFERENCE.to_string();
    assert_eq!(scopes(&config(), &with("scope", json!(["chat", "admin", 7]))), "chat,admin");
    // A claim without any scope of ours allows nothing; a missing claim restricts nothing.
    assert_eq!(scopes(&config(), &with("scope", json!("openid"))), "");
    assert_eq!(scopes(&config(), &without("scope")), all);
    let ignoring = JwtConfig { scope_claim: String::new(), ..config() };
    assert_eq!(scopes(&ignoring, &good()), all);
    let roles = JwtConfig { scope_claim: "roles".into(), ..config() };
    assert_eq!(scopes(&roles, &with("roles", json!(["embeddings"]))), "embeddings");
}

#[test]
fn a_token_cannot_choose_how_it_is_verified() {
    let issuer = Issuer::rsa("k", Algorithm::RS256);
    let message = |head: Value| {
        let head = base64url(head.to_string().as_bytes());
        format!("{head}.{}", base64url(good().to_string().as_bytes()))
    };
    // The public key as the secret of an HMAC, in each of the forms it is known in.
    let n = issuer.jwk["n"].as_str().unwrap();
    for secret in
        [n.as_bytes().to_vec(), decode_base64url(n).unwrap(), issuer.jwk.to_string().into()]
    {
        let message = message(json!({"alg": "HS256", "kid": "k"}));
        let secret = jsonwebtoken::EncodingKey::from_secret(&secret);
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &secret, Algorithm::HS256).unwrap();
        let token = format!("{message}.{signature}");
        assert_eq!(verify(&issuer, &token), Err(TokenError::Algorithm));
    }
    for alg in ["none", "None", "NONE", "", "HS384", "HS512", "PS384", "ES512", "RS1"] {
        let message = message(json!({"alg": alg, "kid": "k"}));
        for token in [format!("{message}."), format!("{message}.AAAA")] {
            assert_eq!(verify(&issuer, &token), Err(TokenError::Algorithm), "{alg}");
        }
    }
    // Its own key in its head, or an address of one, is not looked at.
    let stranger = Issuer::ed("k");
    let head = json!({"alg": "EdDSA", "kid": "k", "jwk": stranger.jwk, "jku": "https://evil/"});
    let token = stranger.token_with_head(&head, &good());
    assert_eq!(verify(&issuer, &token), Err(TokenError::UnknownKey));
    assert_eq!(verify(&Issuer::ed("k"), &token), Err(TokenError::Signature));
    // The right key, but under an algorithm that is not its own.
    let head = json!({"alg": "RS384", "kid": "k"});
    let token = issuer.token_with_head(&head, &good());
    assert_eq!(verify(&issuer, &token), Err(TokenError::Signature));
    let head = json!({"alg": "RS256", "kid": "k", "crit": ["b64"], "b64": false});
    let token = issuer.token_with_head(&head, &good());
    assert_eq!(verify(&issuer, &token), Err(TokenError::Critical));
}

#[test]
fn an_algorithm_that_is_not_configured_is_refused() {
    let issuer = Issuer::rsa("k", Algorithm::RS256);
    let config = JwtConfig { algorithms: vec!["ES256".into(), "EdDSA".into()], ..config() };
    let token = issuer.token(&good());
    assert_eq!(verify_with(&config, &issuer, &token), Err(TokenError::Algorithm));
}

#[test]
fn broken_tokens_are_refused_without_panic() {
    let issuer = Issuer::ec("k", Algorithm::ES256);
    let token = issuer.token(&good());
    for cut in 0..token.len() {
        assert!(verify(&issuer, &token[..cut]).is_err(), "{cut}");
    }
    for at in 0..token.len() {
        // The last digit carries bits that decode to nothing, and one is another of the same.
        let other = if token.as_bytes()[at] == b'A' { "B" } else { "A" };
        let changed = format!("{}{other}{}", &token[..at], &token[at + 1..]);
        assert!(verify(&issuer, &changed).is_err(), "{at}");
    }
    for text in ["", ".", "..", "...", "a.b.c", "e30.e30.e30", "e30.e30.e30.e30", "\u{e9}.\u{e9}.x"]
    {
        assert_eq!(verify(&issuer, text), Err(TokenError::Malformed), "{text:?}");
    }
    let huge = format!("{token}{}", "A".repeat(TOKEN_BYTES_MAX));
    assert_eq!(verify(&issuer, &huge), Err(TokenError::TooLong));
    let deep = format!("{{\"alg\":\"ES256\",\"x\":{}", "[".repeat(4_000));
    let token = format!("{}.e30.e30", base64url(deep.as_bytes()));
    assert_eq!(verify(&issuer, &token), Err(TokenError::Malformed));
}

#[test]
fn an_unknown_key_is_told_from_a_wrong_signature() {
    let (issuer, other) = (Issuer::ed("k"), Issuer::ed("other"));
    assert_eq!(verify(&issuer, &other.token(&good())), Err(TokenError::UnknownKey));
}

#[test]
fn unsafe_configurations_are_refused() {
    let bad = |change: fn(&mut JwtConfig)| {
        let mut config = config();
        change(&mut config);
        Verifier::new(&config).unwrap_err()
    };
    for (error, message) in [
        (bad(|c| c.issuer.clear()), "issuer must be set"),
        (bad(|c| c.audience.clear()), "audience must be set"),
        (bad(|c| c.jwks_url = "http://issuer.example/keys".into()), "must be https"),
        (bad(|c| c.jwks_url = "http://127.0.0.1.evil.example/".into()), "must be https"),
        (bad(|c| c.jwks_url = "ftp://issuer.example/".into()), "not an absolute https URL"),
        (bad(|c| c.jwks_url = "/keys".into()), "not an absolute https URL"),
        (bad(|c| c.jwks_url.clear()), "not an absolute URL"),
        (
            bad(|c| c.algorithms = vec!["HS256".into()]),
            "\"HS256\" is not accepted; these are: RS256",
        ),
        (bad(|c| c.algorithms = vec!["none".into()]), "\"none\" is not accepted"),
        (bad(|c| c.algorithms.clear()), "at least one"),
        (bad(|c| c.tenant_claim.clear()), "tenant_claim"),
        (bad(|c| c.leeway_s = 601), "leeway_s is at most 600"),
        (bad(|c| c.refresh_s = 0), "at least 1"),
        (bad(|c| c.stale_s_max = 1), "at least refresh_s"),
    ] {
        assert!(error.contains(message), "{error:?} lacks {message:?}");
    }
    for url in ["http://localhost:1/keys", "http://127.0.0.1:8/k", "http://[::1]:8/k"] {
        Verifier::new(&JwtConfig { jwks_url: url.into(), ..config() }).unwrap();
    }
}

proptest! {
    #[test]
    fn base64url_goes_there_and_back(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        prop_assert_eq!(decode_base64url(&base64url(&bytes)), Some(bytes));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[A-Za-z0-9_.=-]{0,200}|\\PC{0,60}") {
        let _ = Verifier::new(&config()).unwrap().head(&text);
    }
}
