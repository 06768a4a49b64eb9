//! What a peer shows, who that turns out to be, and why not.
//!
//! Plain values. [`Caller`] also decides what a known caller may do.

use std::sync::Arc;

use crate::identity::certificate::CertificateError;
use crate::identity::jwt::TokenError;
use crate::identity::scope::{Scope, Scopes};
use crate::tenant::Tenant;

/// What a peer shows to be let in.
#[derive(Clone, Copy)]
pub enum Credential<'a> {
    /// `Authorization: Bearer …`: an API key or a token.
    Bearer(&'a str),
    /// The client certificate of the connection, in DER, verified by rustls.
    Certificate(&'a [u8]),
    /// Nothing, from this machine.
    Loopback,
    /// Nothing.
    None,
}

/// Somebody known.
#[derive(Debug)]
pub struct Caller {
    /// Whom limits and shares are counted for.
    pub tenant: Arc<Tenant>,
    /// What the credential is good for.
    pub scopes: Scopes,
    /// What logs call the caller: `key:<id>`, `jwt:<sub>`, `cert:<name>` or `local`. Never a secret.
    pub subject: String,
}

impl Caller {
    /// Whether it may send a request to that endpoint for that model. An empty model is not checked:
    /// some endpoints have none.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn may(&self, endpoint_name: &str, model: &str) -> Result<(), Denied> {
        self.check(Scope::of_endpoint(endpoint_name))?;
        if model.is_empty() || self.tenant.allows_model(model) {
            Ok(())
        } else {
            Err(Denied::Model)
        }
    }

    /// Whether it may see and change the router itself: credential and tenant must both say so.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn may_admin(&self) -> Result<(), Denied> {
        self.check(Scope::Admin)
    }

    fn check(&self, scope: Scope) -> Result<(), Denied> {
        if !self.scopes.has(scope) {
            Err(Denied::Scope(scope))
        } else if !self.tenant.allows(scope) {
            Err(Denied::Tenant(scope))
        } else {
            Ok(())
        }
    }
}

/// A known caller who may not do this. 403.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The key or token is not good for it.
    #[error("this credential does not have the scope {:?}", .0.as_str())]
    Scope(Scope),
    /// The tenant may not use the endpoint.
    #[error("this tenant may not use {:?} endpoints", .0.as_str())]
    Tenant(Scope),
    /// The tenant may not use the model.
    #[error("this tenant may not use this model")]
    Model,
}

impl Denied {
    /// A label for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Denied::Scope(_) => "scope",
            Denied::Tenant(_) => "endpoint",
            Denied::Model => "model",
        }
    }
}

/// Why a caller is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No credential where one is needed. 401.
    #[error("no credential was sent; send Authorization: Bearer <key>")]
    Missing,
    /// No such API key. 401.
    #[error("this API key is not known")]
    UnknownKey,
    /// Key, token or certificate is past its time. 401.
    #[error("this credential has expired")]
    Expired,
    /// A token that cannot be accepted. 401.
    #[error("this token {0}")]
    BadToken(TokenError),
    /// A certificate that names nobody. 403.
    #[error("this client certificate {0}")]
    BadCertificate(CertificateError),
    /// Known, but of no tenant. 403.
    #[error("this caller belongs to no tenant")]
    NoTenant,
    /// The issuer's keys are not here, or are being fetched: try again in a moment. 503.
    #[error("the keys of the token issuer are not available yet")]
    KeysUnavailable,
}

impl IdentityError {
    /// A label for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            IdentityError::Missing => "missing",
            IdentityError::UnknownKey => "unknown_key",
            IdentityError::Expired => "expired",
            IdentityError::BadToken(_) => "bad_token",
            IdentityError::BadCertificate(_) => "bad_certificate",
            IdentityError::NoTenant => "no_tenant",
            IdentityError::KeysUnavailable => "keys_unavailable",
        }
    }
}

impl From<TokenError> for IdentityError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Expired => IdentityError::Expired,
            error => IdentityError::BadToken(error),
        }
    }
}
