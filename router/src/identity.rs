//! Who is asking: API keys, tokens of an OpenID issuer, client certificates, or a loopback peer.
//!
//! [`Identity`] is shared by all cores. It owns the tenants, the key table and the issuer's keys,
//! replaces them whole, and turns a [`Credential`] into a [`Caller`]. The path of an API key is one
//! SHA-256, one lookup and one reference count; a token or certificate takes the same path once it
//! stands in the core's [`IdentityCache`]. It fetches nothing over the network: it says when the
//! issuer's keys are wanted ([`Identity::begin_key_fetch`]) and takes the bytes.
//!
//! Which status a refusal gets is decided where errors become answers.

mod caller;
pub mod certificate;
#[cfg(test)]
mod issuer;
pub mod jwks;
pub mod jwt;
pub mod key;
pub mod recent;
pub mod reload;
pub mod scope;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

pub use caller::{Caller, Credential, Denied, IdentityError};
use jwks::{Found, Jwks, JwksError};
use jwt::{JwtConfig, TokenError, Verifier};
use key::{KeyFile, KeyFileError, KeyHash, hash_key, hash_parts};
pub use recent::IdentityCache;
pub use reload::ReloadError;
use reload::Stamp;
use scope::Scopes;

use crate::tenant::{TenantConfig, Tenants};

/// `[router.identity]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentityConfig {
    /// Everybody must show a credential, loopback peers too.
    pub required: bool,
    /// The file with the hashed API keys.
    pub api_keys_file: Option<PathBuf>,
    /// It is looked at so often whether it changed, in seconds.
    pub reload_s: u64,
    /// `[router.identity.jwt]`
    pub jwt: Option<JwtConfig>,
}

impl Default for IdentityConfig {
    fn default() -> Self {
        IdentityConfig { required: false, api_keys_file: None, reload_s: 5, jwt: None }
    }
}

impl IdentityConfig {
    /// Whether bearer credentials mean anything. Without it they are ignored, because SDKs send one
    /// whether or not it is asked for.
    pub fn reads_bearer(&self) -> bool {
        self.api_keys_file.is_some() || self.jwt.is_some()
    }

    /// Checks what can be checked without reading a file.
    ///
    /// # Errors
    /// One sentence that says what to change.
    pub fn check(&self) -> Result<(), String> {
        if self.reload_s == 0 {
            return Err("identity.reload_s must be at least 1".to_owned());
        }
        let Some(jwt) = &self.jwt else { return Ok(()) };
        Verifier::new(jwt).map(|_| ()).map_err(|why| format!("identity.jwt: {why}"))
    }
}

/// A key of the table.
struct Key {
    caller: Arc<Caller>,
    refused_from_s: u64,
}

/// Everything a request reads; replaced whole.
struct State {
    /// Rises with each replacement, so that the cores' caches notice.
    version: u64,
    tenants: Arc<Tenants>,
    keys: HashMap<KeyHash, Key>,
    local: Arc<Caller>,
}

/// What the state was made of, for the one who makes the next.
struct Source {
    file: KeyFile,
    /// Of the text that was read last, good or not.
    hash: KeyHash,
    /// `None`: it could not be read when last tried.
    seen: Option<Seen>,
    looked_s: u64,
}

/// A file as it was when it was read.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    stamp: Stamp,
    /// The stamp alone says whether the file is still the same.
    is_settled: bool,
}

struct Tokens {
    verifier: Verifier,
    /// Held for a lookup, never while a signature is verified.
    keys: Mutex<Jwks>,
}

/// Who may come in. Shared by all cores.
pub struct Identity {
    config: IdentityConfig,
    state: ArcSwap<State>,
    source: Mutex<Source>,
    tokens: Option<Tokens>,
}

impl Identity {
    /// Checks the configuration and reads the key file.
    ///
    /// # Errors
    /// [`ReloadError`]: what is wrong and where.
    pub fn open(config: &IdentityConfig, tenants: &[TenantConfig]) -> Result<Self, ReloadError> {
        let tenants = Tenants::build(tenants, None).map_err(ReloadError::Tenants)?;
        let mut source =
            Source { file: KeyFile::default(), hash: [0; 32], seen: None, looked_s: 0 };
        if let Some(path) = &config.api_keys_file {
            let (stamp, text) = reload::text(path)?;
            source.file = KeyFile::parse(path, &text)?;
            source.hash = hash_key(&text);
            source.seen = Some(Seen { stamp, is_settled: false });
        }
        let tokens = match &config.jwt {
            Some(jwt) => {
                let verifier = Verifier::new(jwt).map_err(ReloadError::Jwt)?;
                let keys = Mutex::new(Jwks::new(verifier.schedule()));
                Some(Tokens { verifier, keys })
            }
            None => None,
        };
        let state = State::build(0, Arc::new(tenants), &source.file)?;
        Ok(Identity {
            config: config.clone(),
            state: ArcSwap::from_pointee(state),
            source: Mutex::new(source),
            tokens,
        })
    }

    /// Whether bearer credentials are for us.
    pub fn reads_bearer(&self) -> bool {
        self.config.reads_bearer()
    }

    /// What of all a peer shows is to count: a bearer credential where those are known, since it
    /// names one application among several behind a certificate; else the certificate; else where
    /// the peer is.
    pub fn credential<'a>(
        &self,
        bearer: Option<&'a str>,
        certificate: Option<&'a [u8]>,
        peer_is_loopback: bool,
    ) -> Credential<'a> {
        match (bearer, certificate) {
            (Some(bearer), _) if self.config.reads_bearer() => Credential::Bearer(bearer),
            (_, Some(certificate)) => Credential::Certificate(certificate),
            _ if peer_is_loopback => Credential::Loopback,
            _ => Credential::None,
        }
    }

    /// Who that is.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn authenticate(
        &self,
        cache: &mut IdentityCache,
        credential: Credential<'_>,
        now_unix_s: u64,
    ) -> Result<Arc<Caller>, IdentityError> {
        let state = self.state.load();
        match credential {
            Credential::Bearer(bearer) => self.bearer(&state, cache, bearer, now_unix_s),
            Credential::Certificate(der) => certificate(&state, cache, der, now_unix_s),
            Credential::Loopback if !self.config.required => Ok(Arc::clone(&state.local)),
            Credential::Loopback | Credential::None => Err(IdentityError::Missing),
        }
    }

    fn bearer(
        &self,
        state: &State,
        cache: &mut IdentityCache,
        bearer: &str,
        now_s: u64,
    ) -> Result<Arc<Caller>, IdentityError> {
        if bearer.is_empty() {
            return Err(IdentityError::Missing);
        }
        if bearer.len() > jwt::TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong.into());
        }
        let hash = hash_key(bearer);
        if let Some(key) = state.keys.get(&hash) {
            return if now_s < key.refused_from_s {
                Ok(Arc::clone(&key.caller))
            } else {
                Err(IdentityError::Expired)
            };
        }
        // What has the shape of a token is none of the keys somebody mistyped.
        let is_token = bearer.bytes().filter(|byte| *byte == b'.').count() == 2;
        let Some(tokens) = self.tokens.as_ref().filter(|_| is_token) else {
            return Err(IdentityError::UnknownKey);
        };
        if let Some(caller) = cache.find(&hash, state.version, now_s) {
            return Ok(caller);
        }
        let (caller, refused_from_s) = tokens.verify(state, bearer, now_s)?;
        let caller = Arc::new(caller);
        cache.add(hash, &caller, now_s, refused_from_s);
        Ok(caller)
    }

    /// The tenants in force.
    pub fn tenants(&self) -> Arc<Tenants> {
        Arc::clone(&self.state.load().tenants)
    }

    /// Looks whether the key file changed, at most every `reload_s`, and takes it. Says whether it
    /// did. A file that is refused is reported once per change; the keys before stay in force.
    ///
    /// # Errors
    /// [`ReloadError`].
    pub fn reload(&self, now_unix_s: u64) -> Result<bool, ReloadError> {
        let Some(path) = &self.config.api_keys_file else { return Ok(false) };
        let mut source = match self.source.try_lock() {
            Ok(source) => source,
            Err(TryLockError::Poisoned(poison)) => poison.into_inner(),
            // Another core is at it.
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        if now_unix_s.abs_diff(source.looked_s) < self.config.reload_s {
            return Ok(false);
        }
        source.looked_s = now_unix_s;
        let Some(text) = source.read_if_changed(path, now_unix_s)? else { return Ok(false) };
        let file = KeyFile::parse(path, &text)?;
        let now = self.state.load();
        let state = State::build(now.version + 1, Arc::clone(&now.tenants), &file)?;
        self.state.store(Arc::new(state));
        source.file = file;
        Ok(true)
    }

    /// Takes other tenants. Those that stay keep what they used.
    ///
    /// # Errors
    /// [`ReloadError`]; the tenants before stay in force.
    pub fn replace_tenants(&self, tenants: &[TenantConfig]) -> Result<(), ReloadError> {
        let mut source = lock(&self.source);
        let now = self.state.load();
        let tenants = Tenants::build(tenants, Some(&now.tenants)).map_err(ReloadError::Tenants)?;
        let state = State::build(now.version + 1, Arc::new(tenants), &source.file)?;
        self.state.store(Arc::new(state));
        // A file that was refused for want of a tenant is to be looked at again.
        (source.seen, source.hash) = (None, [0; 32]);
        Ok(())
    }

    /// Where the issuer's keys are to be fetched, if tokens are accepted.
    pub fn jwks_url(&self) -> Option<&str> {
        self.tokens.as_ref().map(|tokens| tokens.verifier.config().jwks_url.as_str())
    }

    /// Claims the fetch of the issuer's keys: says whether it is due and the caller's to do. To be
    /// asked about once a second; [`keys_fetched`](Self::keys_fetched) or
    /// [`keys_failed`](Self::keys_failed) must follow.
    pub fn begin_key_fetch(&self, now_unix_s: u64) -> bool {
        self.tokens.as_ref().is_some_and(|tokens| lock(&tokens.keys).begin_fetch(now_unix_s))
    }

    /// Takes the body of the issuer's 200. Says how many keys there are.
    ///
    /// # Errors
    /// [`JwksError`]; counts as a failure, and the keys before stay in force.
    pub fn keys_fetched(&self, now_unix_s: u64, body: &[u8]) -> Result<usize, JwksError> {
        let Some(tokens) = &self.tokens else { return Ok(0) };
        lock(&tokens.keys).fetched(now_unix_s, body)
    }

    /// The fetch failed; the next one waits longer.
    pub fn keys_failed(&self, now_unix_s: u64) {
        if let Some(tokens) = &self.tokens {
            lock(&tokens.keys).failed(now_unix_s);
        }
    }

    /// Whether tokens can be verified, as far as any are accepted.
    pub fn has_keys(&self, now_unix_s: u64) -> bool {
        self.tokens.as_ref().is_none_or(|tokens| lock(&tokens.keys).is_fresh(now_unix_s))
    }
}

impl Source {
    /// The text of the key file, if it is another than the one read last. What cannot be read is an
    /// error once, until it can be read again.
    fn read_if_changed(&mut self, path: &Path, now_s: u64) -> Result<Option<String>, ReloadError> {
        let stamp = match Stamp::of(path) {
            Ok(stamp) if self.seen == Some(Seen { stamp, is_settled: true }) => return Ok(None),
            Ok(stamp) => stamp,
            Err(_) if self.seen.is_none() => return Ok(None),
            Err(error) => {
                self.seen = None;
                return Err(ReloadError::Read { path: path.to_owned(), error });
            }
        };
        self.seen = Some(Seen { stamp, is_settled: true });
        let (stamp, text) = reload::text(path)?;
        self.seen = Some(Seen { stamp, is_settled: stamp.is_settled(now_s) });
        let hash = hash_key(&text);
        Ok((std::mem::replace(&mut self.hash, hash) != hash).then_some(text))
    }
}

impl Tokens {
    fn verify(
        &self,
        state: &State,
        token: &str,
        now_s: u64,
    ) -> Result<(Caller, u64), IdentityError> {
        let head = self.verifier.head(token)?;
        let key = {
            let mut keys = lock(&self.keys);
            let is_fresh = keys.is_fresh(now_s);
            match keys.find(head.kid.as_deref(), head.algorithm, now_s) {
                Found::Key(key) => Arc::clone(key),
                // The key may have been made a moment ago.
                Found::Unknown { fetch_wanted: true } => {
                    return Err(IdentityError::KeysUnavailable);
                }
                Found::Unknown { .. } if !is_fresh => return Err(IdentityError::KeysUnavailable),
                Found::Unknown { .. } => return Err(TokenError::UnknownKey.into()),
            }
        };
        let claims = self.verifier.claims(token, &head, &key, now_s)?;
        let tenant = state
            .tenants
            .of_token(&claims.subject, claims.tenant.as_deref())
            .ok_or(IdentityError::NoTenant)?;
        let subject = format!("jwt:{}", claims.subject.escape_default());
        let caller = Caller { tenant: Arc::clone(tenant), scopes: claims.scopes, subject };
        Ok((caller, claims.refused_from_s))
    }
}

fn certificate(
    state: &State,
    cache: &mut IdentityCache,
    der: &[u8],
    now_s: u64,
) -> Result<Arc<Caller>, IdentityError> {
    // Apart from tokens: a certificate is public, so showing its bytes must prove nothing.
    let hash = hash_parts(&[CERTIFICATE_MARK, der]);
    if let Some(caller) = cache.find(&hash, state.version, now_s) {
        return Ok(caller);
    }
    let holder = certificate::holder(der).map_err(IdentityError::BadCertificate)?;
    if now_s >= holder.refused_from_s {
        return Err(IdentityError::Expired);
    }
    let tenant = state.tenants.of_certificate(&holder.names).ok_or(IdentityError::NoTenant)?;
    let name = holder.names.first().map_or("", String::as_str);
    let caller = Arc::new(Caller {
        tenant: Arc::clone(tenant),
        scopes: Scopes::EVERY,
        subject: format!("cert:{}", name.escape_default()),
    });
    cache.add(hash, &caller, now_s, holder.refused_from_s);
    Ok(caller)
}

/// No header field can hold a NUL, so no bearer token hashes like a certificate.
const CERTIFICATE_MARK: &[u8] = b"certificate\0";

impl State {
    fn build(version: u64, tenants: Arc<Tenants>, file: &KeyFile) -> Result<State, KeyFileError> {
        let mut keys = HashMap::with_capacity(file.lines.len());
        for line in &file.lines {
            let tenant = tenants.of_key(&line.tenant).ok_or_else(|| {
                let what = format!(
                    "tenant {:?} is not configured; add [[tenants]] with that name, or correct it",
                    line.tenant
                );
                file.error(line.line, what)
            })?;
            let caller = Caller {
                tenant: Arc::clone(tenant),
                scopes: line.scopes,
                subject: format!("key:{}", line.id),
            };
            let refused_from_s = line.expires_s.unwrap_or(u64::MAX);
            keys.insert(line.hash, Key { caller: Arc::new(caller), refused_from_s });
        }
        let local = Arc::new(Caller {
            tenant: Arc::clone(tenants.local()),
            scopes: Scopes::EVERY,
            subject: crate::tenant::LOCAL.to_owned(),
        });
        Ok(State { version, tenants, keys, local })
    }
}

/// A panic ends the process, so a poisoned lock is only seen in tests.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
