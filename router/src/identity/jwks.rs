//! The signing keys of a token issuer, and when to ask for them anew.
//!
//! A pure state machine: it says when a fetch is due and takes the bytes; who does the fetch says how
//! it went. Time comes in as Unix seconds. It asks every `refresh_s`; sooner, but at most once per
//! `unknown_kid_pause_s`, when a token names a key that is not here, because strangers can name any;
//! and after a failure with growing pauses. A set that cannot be refreshed serves on until it is
//! `stale_s_max` old.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

/// A key set is smaller: large providers publish a handful of keys of 500 bytes.
pub const JWKS_BYTES_MAX: usize = 256 << 10;
/// Keys of one set.
pub const JWKS_KEYS_MAX: usize = 64;
/// Bytes of a key's name.
pub const KID_BYTES_MAX: usize = 256;
/// A fetch that was begun counts as failed after so long, should nobody report on it.
pub const FETCH_S_MAX: u64 = 30;
/// The first pause after a failure; doubles up to [`BACKOFF_S_MAX`].
pub const BACKOFF_S_MIN: u64 = 5;
/// The longest pause after a failure.
pub const BACKOFF_S_MAX: u64 = 300;

/// Why the bytes of a key set were refused. The set before stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// Over [`JWKS_BYTES_MAX`].
    #[error("the key set has {0} bytes; at most {JWKS_BYTES_MAX} are read")]
    TooLong(usize),
    /// Over [`JWKS_KEYS_MAX`].
    #[error("the key set has {0} keys; at most {JWKS_KEYS_MAX} are read")]
    TooMany(usize),
    /// Not `{"keys":[...]}`.
    #[error("not a JSON Web Key Set ({0}); is jwks_url the address of the key set itself?")]
    Malformed(String),
    /// No key in it can verify a signature here.
    #[error("none of the {0} keys can be used (RSA from 2048 bits, P-256, P-384 and Ed25519 can)")]
    NoneUsable(usize),
}

/// When to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Between two fetches, in seconds.
    pub refresh_s: u64,
    /// Between a fetch and the next one that an unknown key may cause, in seconds.
    pub unknown_kid_pause_s: u64,
    /// A set that is older is not used, in seconds.
    pub stale_s_max: u64,
}

/// A key that verifies signatures.
pub struct SigningKey {
    kid: Option<String>,
    /// What it verifies; never more than its type allows, so that a token cannot choose.
    algorithms: Vec<Algorithm>,
    /// For `jsonwebtoken`.
    pub decoding: DecodingKey,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({:?}, {:?})", self.kid, self.algorithms)
    }
}

/// The answer to [`Jwks::find`].
#[derive(Debug)]
pub enum Found<'a> {
    /// Verify with this.
    Key(&'a Arc<SigningKey>),
    /// Not here.
    Unknown {
        /// A fetch is due or under way that may bring it: the token may be good in a moment.
        fetch_wanted: bool,
    },
}

/// The keys of one issuer.
#[derive(Debug)]
pub struct Jwks {
    schedule: Schedule,
    keys: Vec<Arc<SigningKey>>,
    fetched_s: Option<u64>,
    /// When the fetch under way began.
    asking_since_s: Option<u64>,
    /// When the last fetch began, whatever came of it.
    asked_s: Option<u64>,
    retry_s: u64,
    failures: u32,
    misses_a_kid: bool,
}

impl Jwks {
    /// No keys yet; a fetch is due at once.
    pub fn new(schedule: Schedule) -> Self {
        Jwks {
            schedule,
            keys: Vec::new(),
            fetched_s: None,
            asking_since_s: None,
            asked_s: None,
            retry_s: 0,
            failures: 0,
            misses_a_kid: false,
        }
    }

    /// The key of that name that verifies `algorithm`. A token without a name gets the only key
    /// there is for its algorithm, if there is only one.
    pub fn find(&mut self, kid: Option<&str>, algorithm: Algorithm, now_s: u64) -> Found<'_> {
        if self.is_fresh(now_s)
            && let Some(at) = self.position(kid, algorithm)
        {
            return Found::Key(&self.keys[at]);
        }
        // Whoever sends no name, or a name no key has, gains nothing by a fetch.
        if kid.is_some_and(|kid| kid.len() <= KID_BYTES_MAX) && self.may_ask_for_kid(now_s) {
            self.misses_a_kid = true;
        }
        let fetch_wanted = self.wants_fetch(now_s)
            || self.asking_since_s.is_some_and(|since| !is_over(since, FETCH_S_MAX, now_s));
        Found::Unknown { fetch_wanted }
    }

    /// Whether there is a set that may be used.
    pub fn is_fresh(&self, now_s: u64) -> bool {
        self.fetched_s.is_some_and(|at| now_s.saturating_sub(at) <= self.schedule.stale_s_max)
    }

    /// Keys in force.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether somebody should fetch now.
    pub fn wants_fetch(&self, now_s: u64) -> bool {
        let is_asking = self.asking_since_s.is_some_and(|at| !is_over(at, FETCH_S_MAX, now_s));
        let is_due = self.fetched_s.is_none_or(|at| is_over(at, self.schedule.refresh_s, now_s));
        !is_asking && now_s >= self.retry_s && (is_due || self.misses_a_kid)
    }

    /// Claims the fetch: says whether it is due, and if so that it is the caller's. Of several cores
    /// that look, one gets it. [`fetched`](Self::fetched) or [`failed`](Self::failed) must follow.
    pub fn begin_fetch(&mut self, now_s: u64) -> bool {
        if !self.wants_fetch(now_s) {
            return false;
        }
        self.asking_since_s = Some(now_s);
        self.asked_s = Some(now_s);
        self.misses_a_kid = false;
        true
    }

    /// Takes the answer of the issuer. Bytes that are not a usable key set count as a failure.
    ///
    /// # Errors
    /// Why they are not; the keys before stay.
    pub fn fetched(&mut self, now_s: u64, bytes: &[u8]) -> Result<usize, JwksError> {
        match parse(bytes) {
            Ok(keys) => {
                self.keys = keys;
                self.fetched_s = Some(now_s);
                self.asked_s = self.asked_s.or(Some(now_s));
                self.asking_since_s = None;
                self.failures = 0;
                self.retry_s = 0;
                Ok(self.keys.len())
            }
            Err(error) => {
                self.failed(now_s);
                Err(error)
            }
        }
    }

    /// The fetch failed.
    pub fn failed(&mut self, now_s: u64) {
        self.asking_since_s = None;
        self.asked_s = self.asked_s.or(Some(now_s));
        let pause_s = BACKOFF_S_MIN.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_S_MAX);
        self.retry_s = now_s.saturating_add(pause_s);
        self.failures = self.failures.saturating_add(1);
    }

    fn may_ask_for_kid(&self, now_s: u64) -> bool {
        self.asked_s.is_none_or(|at| is_over(at, self.schedule.unknown_kid_pause_s, now_s))
    }

    fn position(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<usize> {
        let mut fits = self.keys.iter().enumerate().filter(|(_, key)| {
            key.algorithms.contains(&algorithm) && (kid.is_none() || key.kid.as_deref() == kid)
        });
        let (at, _) = fits.next()?;
        (kid.is_some() || fits.next().is_none()).then_some(at)
    }
}

fn is_over(since_s: u64, pause_s: u64, now_s: u64) -> bool {
    now_s.saturating_sub(since_s) >= pause_s
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

/// The members of a key that matter; each may be missing or of a kind unknown here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Member {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: String,
    n: String,
    e: String,
    x: String,
    y: String,
}

fn parse(bytes: &[u8]) -> Result<Vec<Arc<SigningKey>>, JwksError> {
    if bytes.len() > JWKS_BYTES_MAX {
        return Err(JwksError::TooLong(bytes.len()));
    }
    let set: Set =
        serde_json::from_slice(bytes).map_err(|error| JwksError::Malformed(error.to_string()))?;
    let count = set.keys.len();
    if count > JWKS_KEYS_MAX {
        return Err(JwksError::TooMany(count));
    }
    // Sets also carry keys for encryption and of types that are not known here; those are not ours.
    let keys: Vec<_> = set
        .keys
        .into_iter()
        .filter_map(|key| signing_key(serde_json::from_value(key).ok()?))
        .map(Arc::new)
        .collect();
    if keys.is_empty() { Err(JwksError::NoneUsable(count)) } else { Ok(keys) }
}

fn signing_key(key: Member) -> Option<SigningKey> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, RS256, RS384, RS512};
    if key.usage.as_deref().is_some_and(|usage| usage != "sig")
        || key.kid.as_ref().is_some_and(|kid| kid.len() > KID_BYTES_MAX)
    {
        return None;
    }
    // Lengths in base64 without padding: a modulus of 2048 to 8192 bits, coordinates of 32 or 48 bytes.
    let (algorithms, decoding): (&[Algorithm], _) = match (key.kty.as_str(), key.crv.as_str()) {
        ("RSA", _) if (342..=1_366).contains(&key.n.len()) && (2..=11).contains(&key.e.len()) => {
            (&[RS256, RS384, RS512, PS256], DecodingKey::from_rsa_components(&key.n, &key.e))
        }
        ("EC", "P-256") if key.x.len() == 43 && key.y.len() == 43 => {
            (&[ES256], DecodingKey::from_ec_components(&key.x, &key.y))
        }
        ("EC", "P-384") if key.x.len() == 64 && key.y.len() == 64 => {
            (&[ES384], DecodingKey::from_ec_components(&key.x, &key.y))
        }
        ("OKP", "Ed25519") if key.x.len() == 43 => {
            (&[EdDSA], DecodingKey::from_ed_components(&key.x))
        }
        _ => return None,
    };
    let named = |algorithm: &Algorithm| match key.alg.as_deref() {
        // RFC 9864 names the curve where RFC 8037 named the family.
        Some(name) => name.parse() == Ok(*algorithm) || (name, *algorithm) == ("Ed25519", EdDSA),
        None => true,
    };
    let algorithms: Vec<Algorithm> = algorithms.iter().copied().filter(named).collect();
    (!algorithms.is_empty()).then_some(())?;
    Some(SigningKey { kid: key.kid, algorithms, decoding: decoding.ok()? })
}

#[cfg(test)]
mod tests;
