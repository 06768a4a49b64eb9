//! Who a certificate speaks for: the URI `cognitora://<cluster>/<role>/<name>` among its alternative names.
//!
//! Text in, text out: certificates are signed in `control`, read and checked where they are shown.

use std::fmt;
use std::str::FromStr;

/// The URI's scheme.
pub const SCHEME: &str = "cognitora://";
/// Bytes of a cluster's or a node's name: as long as a DNS label.
pub const NAME_BYTES_MAX: usize = 63;

/// What a process may do in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A machine that serves: its KV daemon is a peer of the others'.
    Node,
    /// A router.
    Router,
    /// A person or a program that runs the cluster.
    Operator,
}

impl Role {
    /// As the URI has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Node => "node",
            Role::Router => "router",
            Role::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Role, IdentityError> {
        let all = [Role::Node, Role::Router, Role::Operator];
        all.into_iter().find(|role| role.as_str() == text).ok_or(IdentityError::Role)
    }
}

/// One member of one cluster. Ordered, so that two peers agree on who of them is the smaller.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    cluster: String,
    role: Role,
    name: String,
}

/// Why a text names no member of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Another scheme, or not three parts.
    #[error("is not of the form cognitora://<cluster>/<role>/<name>")]
    Form,
    /// A role that is not known.
    #[error("has an unknown role; the roles are node, router and operator")]
    Role,
    /// A name that could be mistaken for something else.
    #[error(
        "has a bad name: 1 to 63 characters of a-z, 0-9, '-', '.' and '_', a letter or digit first"
    )]
    Name,
}

impl Identity {
    /// # Errors
    /// [`IdentityError::Name`].
    pub fn new(cluster: &str, role: Role, name: &str) -> Result<Identity, IdentityError> {
        check_name(cluster)?;
        check_name(name)?;
        Ok(Identity { cluster: cluster.to_owned(), role, name: name.to_owned() })
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// What it may do.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Whether a cluster or a member may be called so.
///
/// # Errors
/// [`IdentityError::Name`].
pub fn check_name(name: &str) -> Result<(), IdentityError> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let first = name.bytes().next().is_some_and(is_plain);
    let rest = name.bytes().all(|byte| is_plain(byte) || b"-._".contains(&byte));
    if first && rest && name.len() <= NAME_BYTES_MAX { Ok(()) } else { Err(IdentityError::Name) }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.cluster, self.role, self.name)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Identity, IdentityError> {
        let rest = text.strip_prefix(SCHEME).ok_or(IdentityError::Form)?;
        let mut parts = rest.split('/');
        let (Some(cluster), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(IdentityError::Form);
        };
        Identity::new(cluster, role.parse()?, name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_node_reads_as_it_was_written() {
        let text = "cognitora://rack-7/node/gpu-01.example";
        let identity: Identity = text.parse().unwrap();
        assert_eq!((identity.cluster(), identity.name()), ("rack-7", "gpu-01.example"));
        assert_eq!(identity.role(), Role::Node);
        assert_eq!(identity.to_string(), text);
    }

    #[test]
    fn what_could_be_mistaken_is_refused() {
        let refused = |text: &str| text.parse::<Identity>().unwrap_err();
        assert_eq!(refused("https://a/node/b"), IdentityError::Form);
        assert_eq!(refused("cognitora://a/node"), IdentityError::Form);
        assert_eq!(refused("cognitora://a/node/b/c"), IdentityError::Form);
        assert_eq!(refused("cognitora://a/admin/b"), IdentityError::Role);
        assert_eq!(refused("cognitora://a/node/"), IdentityError::Name);
        assert_eq!(refused("cognitora://a/node/B"), IdentityError::Name);
        assert_eq!(refused("cognitora:///node/b"), IdentityError::Name);
        assert_eq!(refused("cognitora://a/node/..%2f"), IdentityError::Name);
        assert_eq!(refused(&format!("cognitora://a/node/{}", "b".repeat(64))), IdentityError::Name);
    }

    proptest! {
        #[test]
        fn whatever_parses_is_written_back_the_same(text in "(cognitora://)?[a-z0-9./_-]{0,24}/(node|router|x)/[a-zA-Z0-9._-]{0,70}") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }
    }
}
