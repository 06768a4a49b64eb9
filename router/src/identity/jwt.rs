//! Bearer tokens of an OpenID issuer: signature, issuer, audience, time, and the claims that say
//! who the caller is.
//!
//! Pure: keys come from [`jwks`](crate::identity::jwks), time comes in as Unix seconds. Only public
//! key algorithms exist here, a token's algorithm must be allowed by the configuration *and* by the
//! key, and extensions marked critical are refused, so a token cannot choose how it is verified.

use jsonwebtoken::{Algorithm, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::identity::jwks::{Schedule, SigningKey};
use crate::identity::scope::Scopes;

/// Longer tokens are refused before they are looked at: real ones have 0.5 to 3 KiB.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// A subject names the caller in logs.
const SUBJECT_BYTES_MAX: usize = 256;
/// More leeway would make `exp` meaningless.
const LEEWAY_S_MAX: u64 = 600;

const KNOWN: [(&str, Algorithm); 7] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// `[router.identity.jwt]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct JwtConfig {
    /// `iss` of every token, to the letter.
    pub issuer: String,
    /// Must be among the `aud` of every token.
    pub audience: String,
    /// Where the issuer publishes its keys; `https`, or `http` on loopback.
    pub jwks_url: String,
    /// The claim that names the tenant.
    pub tenant_claim: String,
    /// The claim with the scopes: words in one string, or a list. Empty: scopes are not looked at,
    /// and a token may do everything but admin.
    pub scope_claim: String,
    /// Signature algorithms that are accepted.
    pub algorithms: Vec<String>,
    /// Clocks may differ by so many seconds.
    pub leeway_s: u64,
    /// The keys are fetched anew so often, in seconds.
    pub refresh_s: u64,
    /// A token with an unknown key causes a fetch at most so often, in seconds.
    pub unknown_kid_pause_s: u64,
    /// Keys that could not be refreshed for so long are not used any more, in seconds.
    pub stale_s_max: u64,
}

impl Default for JwtConfig {
    fn default() -> Self {
        JwtConfig {
            issuer: String::new(),
            audience: String::new(),
            jwks_url: String::new(),
            tenant_claim: "tenant".to_owned(),
            scope_claim: "scope".to_owned(),
            algorithms: KNOWN.iter().map(|(name, _)| (*name).to_owned()).collect(),
            leeway_s: 30,
            refresh_s: 600,
            unknown_kid_pause_s: 30,
            stale_s_max: 86_400,
        }
    }
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Over [`TOKEN_BYTES_MAX`].
    #[error("is longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    /// Not three parts of base64url with JSON inside.
    #[error("is not a well-formed JSON Web Token")]
    Malformed,
    /// Unknown, unsafe or not allowed by the configuration.
    #[error("is signed with an algorithm that is not accepted")]
    Algorithm,
    /// It marks an extension as critical that is not known here.
    #[error("demands an extension that is not supported (crit)")]
    Critical,
    /// The issuer has published no such key.
    #[error("is signed with a key that the issuer has not published")]
    UnknownKey,
    /// The signature is wrong.
    #[error("has a wrong signature")]
    Signature,
    /// Not from the issuer configured.
    #[error("comes from another issuer")]
    Issuer,
    /// For another service.
    #[error("is meant for another audience")]
    Audience,
    /// `nbf` lies in the future.
    #[error("is not valid yet")]
    NotYet,
    /// `exp` lies in the past.
    #[error("has expired")]
    Expired,
    /// A claim that is needed is missing or is of the wrong type.
    #[error("has no usable claim {0:?}")]
    Claim(&'static str),
}

/// What a token says before anything is known to be true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Among those allowed.
    pub algorithm: Algorithm,
    /// Names the key.
    pub kid: Option<String>,
}

/// What a verified token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// `sub`
    pub subject: String,
    /// The claim that names the tenant, if it is there.
    pub tenant: Option<String>,
    /// What it allows.
    pub scopes: Scopes,
    /// From this time on it is refused, in Unix seconds; the leeway is in it.
    pub refused_from_s: u64,
}

/// Verifies tokens of one issuer.
#[derive(Debug)]
pub struct Verifier {
    config: JwtConfig,
    algorithms: Vec<Algorithm>,
}

impl Verifier {
    /// Checks the configuration.
    ///
    /// # Errors
    /// One sentence that says what to change.
    pub fn new(config: &JwtConfig) -> Result<Verifier, String> {
        for (key, value) in [("issuer", &config.issuer), ("audience", &config.audience)] {
            if value.is_empty() {
                return Err(format!("{key} must be set: tokens of anybody would do otherwise"));
            }
        }
        check_url(&config.jwks_url)?;
        if config.tenant_claim.is_empty() {
            return Err("tenant_claim must name a claim".to_owned());
        }
        if config.leeway_s > LEEWAY_S_MAX {
            return Err(format!("leeway_s is at most {LEEWAY_S_MAX}"));
        }
        if config.refresh_s == 0 || config.unknown_kid_pause_s == 0 {
            return Err("refresh_s and unknown_kid_pause_s must be at least 1".to_owned());
        }
        if config.stale_s_max < config.refresh_s {
            return Err("stale_s_max must be at least refresh_s".to_owned());
        }
        let known = |name: &String| {
            let found = KNOWN.iter().find(|(known, _)| known == name);
            found.map(|(_, algorithm)| *algorithm).ok_or_else(|| {
                let names: Vec<_> = KNOWN.iter().map(|(name, _)| *name).collect();
                format!("algorithm {name:?} is not accepted; these are: {}", names.join(", "))
            })
        };
        let algorithms: Vec<_> = config.algorithms.iter().map(known).collect::<Result<_, _>>()?;
        if algorithms.is_empty() {
            return Err("algorithms must name at least one".to_owned());
        }
        Ok(Verifier { config: config.clone(), algorithms })
    }

    /// The configuration.
    pub fn config(&self) -> &JwtConfig {
        &self.config
    }

    /// When keys are to be fetched.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            refresh_s: self.config.refresh_s,
            unknown_kid_pause_s: self.config.unknown_kid_pause_s,
            stale_s_max: self.config.stale_s_max,
        }
    }

    /// Reads the head, which says what key is needed.
    ///
    /// # Errors
    /// [`TokenError`], where the token cannot be good whatever the key.
    pub fn head(&self, token: &str) -> Result<Head, TokenError> {
        /// The members that matter.
        #[derive(Deserialize)]
        struct Encoded {
            alg: String,
            kid: Option<String>,
            crit: Option<Value>,
        }
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong);
        }
        let mut parts = token.split('.');
        let (Some(head), Some(_), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        let head = decode_base64url(head).ok_or(TokenError::Malformed)?;
        let head: Encoded = serde_json::from_slice(&head).map_err(|_| TokenError::Malformed)?;
        if head.crit.is_some() {
            return Err(TokenError::Critical);
        }
        let (_, algorithm) = KNOWN
            .into_iter()
            .find(|(name, algorithm)| *name == head.alg && self.algorithms.contains(algorithm))
            .ok_or(TokenError::Algorithm)?;
        Ok(Head { algorithm, kid: head.kid })
    }

    /// Verifies the token with the key that its head asked for.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn claims(
        &self,
        token: &str,
        head: &Head,
        key: &SigningKey,
        now_s: u64,
    ) -> Result<Claims, TokenError> {
        // Time and names are checked below: the library would ask the system's clock.
        let mut validation = Validation::new(head.algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let decoded = jsonwebtoken::decode::<Map<String, Value>>(token, &key.decoding, &validation);
        let claims = decoded.map_err(|error| token_error(&error))?.claims;
        self.check_names(&claims)?;
        let refused_from_s = self.check_times(&claims, now_s)?;
        let subject = match claims.get("sub").and_then(Value::as_str) {
            Some(sub) if (1..=SUBJECT_BYTES_MAX).contains(&sub.len()) => sub.to_owned(),
            _ => return Err(TokenError::Claim("sub")),
        };
        let tenant = match claims.get(&self.config.tenant_claim) {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name.clone()),
            Some(_) => return Err(TokenError::Claim("tenant")),
        };
        Ok(Claims { subject, tenant, scopes: self.scopes(&claims)?, refused_from_s })
    }

    fn check_names(&self, claims: &Map<String, Value>) -> Result<(), TokenError> {
        if claims.get("iss").and_then(Value::as_str) != Some(self.config.issuer.as_str()) {
            return Err(TokenError::Issuer);
        }
        let is_ours = |value: &Value| value.as_str() == Some(self.config.audience.as_str());
        match claims.get("aud") {
            Some(Value::Array(audiences)) if audiences.iter().any(is_ours) => Ok(()),
            Some(one) if is_ours(one) => Ok(()),
            _ => Err(TokenError::Audience),
        }
    }

    /// The time from which on the token is refused.
    fn check_times(&self, claims: &Map<String, Value>, now_s: u64) -> Result<u64, TokenError> {
        let leeway_s = self.config.leeway_s;
        let expires_s = time(claims, "exp")?.ok_or(TokenError::Claim("exp"))?;
        let refused_from_s = expires_s.saturating_add(leeway_s);
        if now_s >= refused_from_s {
            return Err(TokenError::Expired);
        }
        if time(claims, "nbf")?.is_some_and(|from_s| from_s > now_s.saturating_add(leeway_s)) {
            return Err(TokenError::NotYet);
        }
        Ok(refused_from_s)
    }

    /// A claim that is there restricts to what it names, even if that is nothing of ours.
    fn scopes(&self, claims: &Map<String, Value>) -> Result<Scopes, TokenError> {
        match claims.get(&self.config.scope_claim) {
            _ if self.config.scope_claim.is_empty() => Ok(Scopes::INFERENCE),
            None | Some(Value::Null) => Ok(Scopes::INFERENCE),
            Some(Value::String(words)) => Ok(Scopes::of_known(words.split_ascii_whitespace())),
            Some(Value::Array(words)) => {
                Ok(Scopes::of_known(words.iter().filter_map(Value::as_str)))
            }
            Some(_) => Err(TokenError::Claim("scope")),
        }
    }
}

/// Keys that come over plain HTTP could be anybody's.
fn check_url(url: &str) -> Result<(), String> {
    let parsed: http::Uri =
        url.parse().map_err(|_| format!("jwks_url {url:?} is not an absolute URL"))?;
    let host = parsed.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = address == "localhost"
        || address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match parsed.scheme_str() {
        Some("https") if !host.is_empty() => Ok(()),
        Some("http") if is_loopback => Ok(()),
        Some("http") => Err(format!(
            "jwks_url {url:?} must be https: whoever can change the answer \
             on its way could sign tokens"
        )),
        _ => Err(format!("jwks_url {url:?} is not an absolute https URL")),
    }
}

fn token_error(error: &jsonwebtoken::errors::Error) -> TokenError {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::InvalidSignature | ErrorKind::Crypto(_) => TokenError::Signature,
        ErrorKind::InvalidAlgorithm => TokenError::Algorithm,
        _ => TokenError::Malformed,
    }
}

/// A time in Unix seconds. RFC 7519 allows fractions; they are cut off.
fn time(claims: &Map<String, Value>, claim: &'static str) -> Result<Option<u64>, TokenError> {
    match claims.get(claim) {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_f64().filter(|seconds| *seconds >= 0.0).map(|s| s as u64))
            .map(Some)
            .ok_or(TokenError::Claim(claim)),
    }
}

/// Base64url without padding (RFC 7515 §2).
pub(super) fn decode_base64url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    (count < 6).then_some(bytes)
}

#[cfg(test)]
mod tests;
