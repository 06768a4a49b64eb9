//! What a credential may be used for: a small set of named scopes.
//!
//! The same names serve three places: `scopes=` in the key file, the scope claim of a token, and
//! `endpoints` of a tenant.

use std::fmt;

/// One thing a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Scope {
    /// `/v1/chat/completions`
    Chat = 1,
    /// `/v1/completions`
    Completions = 1 << 1,
    /// `/v1/embeddings`
    Embeddings = 1 << 2,
    /// Every other endpoint that is forwarded to an engine.
    Other = 1 << 3,
    /// The list of models.
    Models = 1 << 4,
    /// What changes or reveals the router itself.
    Admin = 1 << 5,
}

impl Scope {
    /// All of them, in the order they are documented.
    pub const ALL: [Scope; 6] = [
        Scope::Chat,
        Scope::Completions,
        Scope::Embeddings,
        Scope::Other,
        Scope::Models,
        Scope::Admin,
    ];

    /// The name in files, tokens and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Scope::Chat => "chat",
            Scope::Completions => "completions",
            Scope::Embeddings => "embeddings",
            Scope::Other => "other",
            Scope::Models => "models",
            Scope::Admin => "admin",
        }
    }

    /// The scope of that name.
    pub fn named(name: &str) -> Option<Scope> {
        Scope::ALL.into_iter().find(|scope| scope.as_str() == name)
    }

    /// What an endpoint needs. `admin` is never the name of an endpoint, so an unknown name can
    /// only ask for [`Scope::Other`].
    pub fn of_endpoint(name: &str) -> Scope {
        match name {
            "chat" => Scope::Chat,
            "completions" => Scope::Completions,
            "embeddings" => Scope::Embeddings,
            "models" => Scope::Models,
            _ => Scope::Other,
        }
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Nothing.
    pub const NONE: Scopes = Scopes(0);
    /// Everything but [`Scope::Admin`]: what a credential gets that names no scopes.
    pub const INFERENCE: Scopes = Scopes(0b01_1111);
    /// Everything.
    pub const EVERY: Scopes = Scopes(0b11_1111);

    /// This set and `scope`.
    #[must_use]
    pub const fn with(self, scope: Scope) -> Scopes {
        Scopes(self.0 | scope as u8)
    }

    /// Whether `scope` is in it.
    pub const fn has(self, scope: Scope) -> bool {
        self.0 & scope as u8 != 0
    }

    /// Whether nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Takes the known names of a list and leaves the others out: a token also carries scopes that
    /// are meant for other services.
    pub fn of_known<'a>(names: impl IntoIterator<Item = &'a str>) -> Scopes {
        names.into_iter().filter_map(Scope::named).fold(Scopes::NONE, Scopes::with)
    }

    /// Takes a list of names, all of which must be known.
    ///
    /// # Errors
    /// The first name that is not a scope.
    pub fn of_all<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Scopes, &'a str> {
        let mut scopes = Scopes::NONE;
        for name in names {
            scopes = scopes.with(Scope::named(name).ok_or(name)?);
        }
        Ok(scopes)
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for scope in Scope::ALL.into_iter().filter(|scope| self.has(*scope)) {
            write!(f, "{comma}{}", scope.as_str())?;
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for scope in Scope::ALL {
            assert_eq!(Scope::named(scope.as_str()), Some(scope));
            assert_eq!(Scopes::INFERENCE.has(scope), scope != Scope::Admin);
            assert!(Scopes::EVERY.has(scope) && !Scopes::NONE.has(scope));
        }
        let scopes = Scopes::of_all(["admin", "chat"]).unwrap();
        assert_eq!(scopes.to_string(), "chat,admin");
        assert_eq!(Scopes::of_all(["chat", "root"]), Err("root"));
        assert_eq!(Scopes::of_known(["openid", "chat"]), Scopes::NONE.with(Scope::Chat));
        assert!(Scopes::of_known(["openid", "Chat", ""]).is_empty());
    }

    #[test]
    fn no_endpoint_name_asks_for_admin() {
        assert_eq!(Scope::of_endpoint("admin"), Scope::Other);
        assert_eq!(Scope::of_endpoint("rerank"), Scope::Other);
        assert_eq!(Scope::of_endpoint("chat"), Scope::Chat);
    }
}
