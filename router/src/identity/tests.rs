//! Tests of the owner: credentials to callers, reloads, and what callers may do.

use serde_json::{Value, json};

use super::*;
use crate::identity::certificate::CertificateError;
use crate::identity::issuer::{self, Issuer};
use crate::identity::scope::Scope;

const NOW_S: u64 = 1_800_000_000;
const KEY: &str = "cgn-0123456789abcdef0123456789abcdef";

fn tenant(name: &str) -> TenantConfig {
    TenantConfig { name: name.into(), ..TenantConfig::default() }
}

fn line(key: &str, rest: &str) -> String {
    let hex: String = hash_key(key).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex} {rest}\n")
}

/// An identity over a key file in a temporary folder.
struct World {
    _folder: tempfile::TempDir,
    path: PathBuf,
    identity: Identity,
    cache: IdentityCache,
}

impl World {
    fn new(keys: &str, tenants: &[TenantConfig]) -> Self {
        World::with(keys, tenants, IdentityConfig::default())
    }

    fn with(keys: &str, tenants: &[TenantConfig], config: IdentityConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, keys).unwrap();
        let config = IdentityConfig { api_keys_file: Some(path.clone()), ..config };
        let identity = Identity::open(&config, tenants).unwrap();
        World { _folder: folder, path, identity, cache: IdentityCache::new() }
    }

    fn ask(
        &mut self,
        credential: Credential<'_>,
        now_s: u64,
    ) -> Result<Arc<Caller>, IdentityError> {
        self.identity.authenticate(&mut self.cache, credential, now_s)
    }

    fn bearer(&mut self, bearer: &str) -> Result<Arc<Caller>, IdentityError> {
        self.ask(Credential::Bearer(bearer), NOW_S)
    }
}

fn jwt_config() -> IdentityConfig {
    let jwt = JwtConfig {
        issuer: "i".into(),
        audience: "a".into(),
        jwks_url: "https://i/keys".into(),
        ..JwtConfig::default()
    };
    IdentityConfig { jwt: Some(jwt), ..IdentityConfig::default() }
}

fn claims(exp_s: u64) -> Value {
    json!({"iss": "i", "aud": "a", "sub": "user\n1", "exp": exp_s, "tenant": "acme", "scope": "chat"})
}

#[test]
fn a_key_is_known_by_its_hash_until_it_expires() {
    let keys = line(KEY, &format!("tenant=acme id=ci scopes=chat expires={NOW_S}"))
        + &line("plain words", "embeddings");
    let mut world = World::new(&keys, &[tenant("acme")]);
    let caller = world.ask(Credential::Bearer(KEY), NOW_S - 1).unwrap();
    assert_eq!((caller.tenant.name.as_str(), caller.subject.as_str()), ("acme", "key:ci"));
    assert!(!format!("{caller:?}").contains(KEY));
    assert_eq!(world.bearer(KEY).unwrap_err(), IdentityError::Expired);
    assert_eq!(world.bearer("plain words").unwrap().tenant.name, "default");
    for wrong in ["cgn-0", "a.b.c", &KEY[1..], &keys[..64]] {
        assert_eq!(world.bearer(wrong).unwrap_err(), IdentityError::UnknownKey, "{wrong}");
    }
    assert_eq!(world.bearer("").unwrap_err(), IdentityError::Missing);
    let long = "k".repeat(jwt::TOKEN_BYTES_MAX + 1);
    assert_eq!(world.bearer(&long).unwrap_err(), IdentityError::BadToken(TokenError::TooLong));
}

#[test]
fn without_a_credential_only_loopback_passes_and_only_if_none_is_required() {
    let mut open = World::new("", &[]);
    let local = open.ask(Credential::Loopback, NOW_S).unwrap();
    assert_eq!((local.tenant.name.as_str(), local.subject.as_str()), ("local", "local"));
    assert_eq!((local.may("chat", "m"), local.may_admin()), (Ok(()), Ok(())));
    assert_eq!(open.ask(Credential::None, NOW_S).unwrap_err(), IdentityError::Missing);
    let config = IdentityConfig { required: true, ..IdentityConfig::default() };
    let mut strict = World::with("", &[], config);
    for nothing in [Credential::Loopback, Credential::None] {
        assert_eq!(strict.ask(nothing, NOW_S).unwrap_err(), IdentityError::Missing);
    }
}

#[test]
fn the_credential_that_counts_is_chosen_in_order() {
    let reads = World::new("", &[]).identity;
    let ignores = Identity::open(&IdentityConfig::default(), &[]).unwrap();
    let der: &[u8] = b"der";
    assert!(matches!(reads.credential(Some("k"), Some(der), true), Credential::Bearer("k")));
    // SDKs send a key whether or not one is asked for.
    assert!(matches!(ignores.credential(Some("k"), Some(der), true), Credential::Certificate(_)));
    assert!(matches!(ignores.credential(Some("k"), None, true), Credential::Loopback));
    assert!(matches!(ignores.credential(Some("k"), None, false), Credential::None));
    assert!(matches!(reads.credential(None, None, true), Credential::Loopback));
}

#[test]
fn scopes_endpoints_and_models_are_enforced() {
    let mut acme = tenant("acme");
    acme.models = vec!["llama-*".into()];
    acme.endpoints = vec!["chat".into()];
    let keys = line("all", "tenant=acme")
        + &line("embed", "tenant=acme scopes=embeddings,admin")
        + &line("root", "tenant=boss scopes=admin");
    let boss = TenantConfig { admin: true, ..tenant("boss") };
    let mut world = World::new(&keys, &[acme, boss]);
    let all = world.bearer("all").unwrap();
    assert_eq!(all.may("chat", "llama-3"), Ok(()));
    assert_eq!(all.may("models", ""), Ok(()));
    assert_eq!(all.may("chat", "qwen"), Err(Denied::Model));
    assert_eq!(all.may("embeddings", "llama-3"), Err(Denied::Tenant(Scope::Embeddings)));
    assert_eq!(all.may("rerank", "llama-3"), Err(Denied::Tenant(Scope::Other)));
    assert_eq!(all.may_admin(), Err(Denied::Scope(Scope::Admin)));
    let embed = world.bearer("embed").unwrap();
    assert_eq!(embed.may("chat", "llama-3"), Err(Denied::Scope(Scope::Chat)));
    // Neither the key alone nor the tenant alone makes an admin.
    assert_eq!(embed.may_admin(), Err(Denied::Tenant(Scope::Admin)));
    let root = world.bearer("root").unwrap();
    assert_eq!((root.may_admin(), root.may("chat", "m").is_err()), (Ok(()), true));
}

#[test]
fn a_key_file_that_is_wrong_at_the_start_is_an_error_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let config = IdentityConfig { api_keys_file: Some(path.clone()), ..IdentityConfig::default() };
    let error = |tenants: &[TenantConfig]| match Identity::open(&config, tenants) {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    };
    assert!(error(&[]).contains("cannot read the key file"));
    std::fs::write(&path, format!("#\n{}", line(KEY, "tenant=nobody"))).unwrap();
    assert!(error(&[tenant("acme")]).contains("keys:2: tenant \"nobody\" is not configured"));
    assert!(error(&[tenant("")]).starts_with("[[tenants]]: "));
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(error(&[]).contains("UTF-8"));
}

#[test]
fn a_changed_key_file_is_taken_and_a_broken_one_is_reported_once() {
    let mut world = World::new(&line("one", "tenant=acme"), &[tenant("acme")]);
    assert!(!world.identity.reload(NOW_S).unwrap());
    std::fs::write(&world.path, line("two", "tenant=acme id=2")).unwrap();
    // Not looked at again so soon.
    assert!(!world.identity.reload(NOW_S + 4).unwrap());
    assert!(world.identity.reload(NOW_S + 5).unwrap());
    assert_eq!(world.bearer("one").unwrap_err(), IdentityError::UnknownKey);
    world.bearer("two").unwrap();
    std::fs::write(&world.path, "nonsense").unwrap();
    assert!(matches!(world.identity.reload(NOW_S + 10), Err(ReloadError::Line(_))));
    assert!(!world.identity.reload(NOW_S + 15).unwrap());
    std::fs::remove_file(&world.path).unwrap();
    assert!(matches!(world.identity.reload(NOW_S + 20), Err(ReloadError::Read { .. })));
    assert!(!world.identity.reload(NOW_S + 25).unwrap());
    world.bearer("two").unwrap();
    std::fs::write(&world.path, line("three", "tenant=acme")).unwrap();
    assert!(world.identity.reload(NOW_S + 30).unwrap());
    world.bearer("three").unwrap();
}

#[test]
fn a_second_write_within_one_tick_of_the_clock_is_not_missed() {
    let mut world = World::new(&line("one", "tenant=acme"), &[tenant("acme")]);
    let now_s = std::fs::metadata(&world.path).unwrap().modified().unwrap();
    let now_s = now_s.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for (at_s, key) in [(0, "two"), (5, "six"), (10, "ten")] {
        // Of the same length, and with the time the first had.
        let file = std::fs::File::options().write(true).truncate(true).open(&world.path).unwrap();
        std::io::Write::write_all(&mut &file, line(key, "tenant=acme").as_bytes()).unwrap();
        assert!(world.identity.reload(now_s - 10 + at_s).unwrap());
        world.bearer(key).unwrap();
    }
    assert!(!world.identity.reload(now_s + 60).unwrap());
    assert!(!world.identity.reload(now_s + 120).unwrap());
}

#[test]
fn tenants_can_be_replaced_and_keep_their_counts() {
    let mut world = World::new(&line(KEY, "tenant=acme"), &[tenant("acme")]);
    let before = world.bearer(KEY).unwrap();
    before.tenant.meter.begin(NOW_S * 1_000).unwrap();
    let limited = TenantConfig { concurrent_requests_max: 1, ..tenant("acme") };
    world.identity.replace_tenants(&[limited]).unwrap();
    let after = world.bearer(KEY).unwrap();
    assert!(after.tenant.meter.begin(NOW_S * 1_000).is_err());
    before.tenant.meter.release();
    after.tenant.meter.begin(NOW_S * 1_000).unwrap();
    // A key file that names a tenant to come is taken when that is there.
    std::fs::write(&world.path, line(KEY, "tenant=acme") + &line("new", "tenant=new")).unwrap();
    assert!(matches!(world.identity.reload(NOW_S), Err(ReloadError::Line(_))));
    assert!(!world.identity.reload(NOW_S + 5).unwrap());
    world.identity.replace_tenants(&[tenant("acme"), tenant("new")]).unwrap();
    assert!(world.identity.reload(NOW_S + 10).unwrap());
    assert_eq!(world.bearer("new").unwrap().tenant.name, "new");
    // A tenant with keys cannot go.
    let error = world.identity.replace_tenants(&[]).unwrap_err().to_string();
    assert!(error.contains("keys:1: tenant \"acme\""), "{error}");
    world.bearer(KEY).unwrap();
}

#[test]
fn a_token_waits_for_the_keys_then_is_verified_once() {
    let mut world = World::with("", &[tenant("acme")], jwt_config());
    let issuer = Issuer::ed("k");
    let token = issuer.token(&claims(NOW_S + 600));
    assert_eq!(world.identity.jwks_url(), Some("https://i/keys"));
    assert_eq!(world.bearer(&token).unwrap_err(), IdentityError::KeysUnavailable);
    assert!(world.identity.begin_key_fetch(NOW_S) && !world.identity.has_keys(NOW_S));
    world.identity.keys_failed(NOW_S);
    // Pausing after a failure is no reason to call the token wrong.
    assert_eq!(world.bearer(&token).unwrap_err(), IdentityError::KeysUnavailable);
    assert!(world.identity.begin_key_fetch(NOW_S + 5));
    assert_eq!(world.identity.keys_fetched(NOW_S, &issuer::set(&[&issuer])), Ok(1));
    assert!(world.identity.has_keys(NOW_S));
    let caller = world.bearer(&token).unwrap();
    assert_eq!((caller.tenant.name.as_str(), caller.subject.as_str()), ("acme", "jwt:user\\n1"));
    assert_eq!((caller.may("chat", ""), caller.may("embeddings", "").is_err()), (Ok(()), true));
    assert!(Arc::ptr_eq(&caller, &world.bearer(&token).unwrap()));
    // After a minute it is verified anew; by then the issuer has withdrawn the key.
    world.identity.keys_fetched(NOW_S, &issuer::set(&[&Issuer::ed("new")])).unwrap();
    world.ask(Credential::Bearer(&token), NOW_S + 59).unwrap();
    let later = world.ask(Credential::Bearer(&token), NOW_S + 60).unwrap_err();
    assert_eq!(later, IdentityError::KeysUnavailable);
    assert!(world.identity.begin_key_fetch(NOW_S + 60));
    world.identity.keys_fetched(NOW_S + 61, &issuer::set(&[&Issuer::ed("new")])).unwrap();
    let later = world.ask(Credential::Bearer(&token), NOW_S + 61).unwrap_err();
    assert_eq!(later, IdentityError::BadToken(TokenError::UnknownKey));
}

#[test]
fn a_remembered_token_ends_with_its_time_and_with_its_tenant() {
    let mut world = World::with("", &[tenant("acme")], jwt_config());
    let issuer = Issuer::ed("k");
    world.identity.keys_fetched(NOW_S, &issuer::set(&[&issuer])).unwrap();
    let token = issuer.token(&claims(NOW_S));
    world.ask(Credential::Bearer(&token), NOW_S + 29).unwrap();
    let late = world.ask(Credential::Bearer(&token), NOW_S + 30).unwrap_err();
    assert_eq!(late, IdentityError::Expired);
    let token = issuer.token(&claims(NOW_S + 600));
    world.bearer(&token).unwrap();
    world.identity.replace_tenants(&[tenant("other")]).unwrap();
    assert_eq!(world.bearer(&token).unwrap_err(), IdentityError::NoTenant);
    let fallback = TenantConfig { default: true, ..tenant("rest") };
    world.identity.replace_tenants(&[fallback]).unwrap();
    assert_eq!(world.bearer(&token).unwrap().tenant.name, "rest");
}

#[test]
fn api_keys_and_tokens_live_side_by_side() {
    let mut world =
        World::with(&line("key.with.dots", "tenant=acme"), &[tenant("acme")], jwt_config());
    world.bearer("key.with.dots").unwrap();
    assert_eq!(world.bearer("cgn-1").unwrap_err(), IdentityError::UnknownKey);
    let bad = world.bearer("a.b.c").unwrap_err();
    assert_eq!(bad, IdentityError::BadToken(TokenError::Malformed));
}

#[test]
fn a_certificate_leads_to_its_tenant_until_it_ends() {
    let mut params = rcgen::CertificateParams::new(vec!["app.example".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    let der = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec();
    let acme = TenantConfig { certificates: vec!["app.example".into()], ..tenant("acme") };
    let mut world = World::new("", &[acme]);
    let caller = world.ask(Credential::Certificate(&der), NOW_S).unwrap();
    assert_eq!(
        (caller.tenant.name.as_str(), caller.subject.as_str()),
        ("acme", "cert:app.example")
    );
    let again = world.ask(Credential::Certificate(&der), NOW_S).unwrap();
    assert!(Arc::ptr_eq(&caller, &again));
    let end_s = 1_893_456_000;
    world.ask(Credential::Certificate(&der), end_s).unwrap();
    let late = world.ask(Credential::Certificate(&der), end_s + 1).unwrap_err();
    assert_eq!(late, IdentityError::Expired);
    world.identity.replace_tenants(&[tenant("acme")]).unwrap();
    let nobody = world.ask(Credential::Certificate(&der), NOW_S).unwrap_err();
    assert_eq!(nobody, IdentityError::NoTenant);
    let bad = world.ask(Credential::Certificate(b"x"), NOW_S).unwrap_err();
    assert_eq!(bad, IdentityError::BadCertificate(CertificateError::Malformed));
}

#[test]
fn the_configuration_is_strict_and_is_checked() {
    let parsed: IdentityConfig = toml::from_str("").unwrap();
    assert_eq!(parsed, IdentityConfig::default());
    assert!(toml::from_str::<IdentityConfig>("requierd = true").is_err());
    assert!(toml::from_str::<IdentityConfig>("[jwt]\nisuer = \"x\"").is_err());
    assert!(!parsed.reads_bearer() && jwt_config().reads_bearer());
    assert_eq!((parsed.check(), jwt_config().check()), (Ok(()), Ok(())));
    let wrong = IdentityConfig { jwt: Some(JwtConfig::default()), ..parsed.clone() };
    assert!(wrong.check().unwrap_err().starts_with("identity.jwt: issuer must be set"));
    let wrong = IdentityConfig { reload_s: 0, ..parsed };
    assert!(wrong.check().unwrap_err().contains("reload_s"));
}
