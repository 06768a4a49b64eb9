//! A tenant: who shares limits, what it may use, and how callers are told to belong to it.
//!
//! `[[tenants]]` in the configuration becomes a [`Tenants`], an immutable table. Two tenants exist
//! without being configured: `local`, the loopback peers that show no credential, and `default`, the
//! keys of a key file whose lines name no tenant. Neither can be reached by a token or certificate
//! unless it is configured. Who a caller is gets decided in [`identity`](crate::identity).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::identity::scope::{Scope, Scopes};
use crate::meter::{COUNT_MAX, Limits, Meter};

/// Loopback peers without a credential.
pub const LOCAL: &str = "local";
/// Keys whose line names no tenant.
pub const DEFAULT: &str = "default";
/// Each tenant is a label value in metrics, and a row in every exchange between routers.
pub const TENANTS_MAX: usize = 4_096;
/// Weights beyond make a round of the fair share needlessly long.
pub const WEIGHT_MAX: u32 = 1_000;
/// A priority above only says "first" once more.
pub const PRIORITY_MAX: f64 = 1_000.0;
const NAME_BYTES_MAX: usize = 64;

/// `[[tenants]]`
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TenantConfig {
    /// Letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// Models it may use; `llama-*` is every model whose name begins so. Empty: all.
    pub models: Vec<String>,
    /// `chat`, `completions`, `embeddings`, `other`. Empty: all.
    pub endpoints: Vec<String>,
    /// Whether its callers may have the scope `admin` at all.
    pub admin: bool,
    /// Its share of a full cluster, in proportion to the others'.
    pub weight: u32,
    /// The most its requests may ask for by `x-cgn-priority`: within the tenant, a request counts as
    /// `1 + priority` times as short.
    pub priority: f64,
    /// Requests in a minute; 0 is no limit, as with all limits here.
    pub requests_per_minute: u64,
    /// Prompt and completion tokens in a minute.
    pub tokens_per_minute: u64,
    /// Requests at once.
    pub concurrent_requests_max: u32,
    /// Prompt and completion tokens in a UTC day.
    pub tokens_per_day: u64,
    /// A request whose first token would come later is refused at once.
    pub ttft_slo_ms: u64,
    /// Names of client certificates: DNS name, URI or mail address, or the common name.
    pub certificates: Vec<String>,
    /// `sub` of tokens.
    pub jwt_subjects: Vec<String>,
    /// Takes the callers that are known but belong to no other tenant. At most one.
    pub default: bool,
}

impl Default for TenantConfig {
    fn default() -> Self {
        TenantConfig {
            name: String::new(),
            models: Vec::new(),
            endpoints: Vec::new(),
            admin: false,
            weight: 1,
            priority: 0.0,
            requests_per_minute: 0,
            tokens_per_minute: 0,
            concurrent_requests_max: 0,
            tokens_per_day: 0,
            ttft_slo_ms: 0,
            certificates: Vec::new(),
            jwt_subjects: Vec::new(),
            default: false,
        }
    }
}

/// One model or all whose names begin alike.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ModelPattern {
    Name(String),
    Prefix(String),
}

/// A tenant in force.
#[derive(Debug)]
pub struct Tenant {
    /// Its name; a label value in metrics.
    pub name: String,
    /// Whether its callers may have the scope `admin` at all.
    pub admin: bool,
    /// Share of a full cluster.
    pub weight: u32,
    /// The most a request may ask for by `x-cgn-priority`.
    pub priority: f64,
    /// The longest it wants to wait for a first token, in ms; 0: as long as it takes.
    pub ttft_slo_ms: u64,
    /// Its limits and what it used of them.
    pub meter: Meter,
    models: Vec<ModelPattern>,
    endpoints: Option<Scopes>,
}

impl Tenant {
    /// Whether it may use `model`.
    pub fn allows_model(&self, model: &str) -> bool {
        self.models.is_empty()
            || self.models.iter().any(|pattern| match pattern {
                ModelPattern::Name(name) => name == model,
                ModelPattern::Prefix(prefix) => model.starts_with(prefix.as_str()),
            })
    }

    /// Whether it may use what `scope` stands for. The list of models is open to every tenant: it
    /// shows each only what it may use.
    pub fn allows(&self, scope: Scope) -> bool {
        match scope {
            Scope::Admin => self.admin,
            Scope::Models => true,
            _ => self.endpoints.is_none_or(|endpoints| endpoints.has(scope)),
        }
    }

    /// One of the two that need no configuration: no limits, and admin as far as the credential's
    /// scopes go.
    fn built_in(name: &str, before: Option<&Tenants>) -> Arc<Tenant> {
        let config = TenantConfig { name: name.to_owned(), admin: true, ..TenantConfig::default() };
        Arc::new(Tenant::new(&config, Vec::new(), None, before))
    }

    fn new(
        config: &TenantConfig,
        models: Vec<ModelPattern>,
        endpoints: Option<Scopes>,
        before: Option<&Tenants>,
    ) -> Tenant {
        let limits = Limits {
            requests_per_minute: config.requests_per_minute,
            tokens_per_minute: config.tokens_per_minute,
            concurrent_requests_max: config.concurrent_requests_max,
            tokens_per_day: config.tokens_per_day,
        };
        let known = before.and_then(|tenants| tenants.any_named(&config.name));
        Tenant {
            name: config.name.clone(),
            admin: config.admin,
            weight: config.weight,
            priority: config.priority,
            ttft_slo_ms: config.ttft_slo_ms,
            meter: known
                .map_or_else(|| Meter::new(limits), |tenant| tenant.meter.with_limits(limits)),
            models,
            endpoints,
        }
    }
}

/// All tenants, and which names lead to them.
#[derive(Debug)]
pub struct Tenants {
    configured: HashMap<String, Arc<Tenant>>,
    by_certificate: HashMap<String, Arc<Tenant>>,
    by_subject: HashMap<String, Arc<Tenant>>,
    fallback: Option<Arc<Tenant>>,
    local: Arc<Tenant>,
    unnamed: Arc<Tenant>,
}

impl Tenants {
    /// Checks the configuration and makes the table. Tenants that `before` knew keep their counts.
    ///
    /// # Errors
    /// One sentence that says what to change.
    pub fn build(config: &[TenantConfig], before: Option<&Tenants>) -> Result<Tenants, String> {
        if config.len() > TENANTS_MAX {
            return Err(format!(
                "{} [[tenants]] are configured; at most {TENANTS_MAX} are possible",
                config.len()
            ));
        }
        let mut configured = HashMap::new();
        let mut by_certificate = HashMap::new();
        let mut by_subject = HashMap::new();
        let mut fallback: Option<Arc<Tenant>> = None;
        for one in config {
            let tenant =
                check(one, before).map_err(|why| format!("tenant {:?}: {why}", one.name))?;
            let tenant = Arc::new(tenant);
            if configured.insert(one.name.clone(), Arc::clone(&tenant)).is_some() {
                return Err(format!("tenant {:?} is configured twice; merge the two", one.name));
            }
            map_names("certificates", &one.certificates, &tenant, &mut by_certificate)?;
            map_names("jwt_subjects", &one.jwt_subjects, &tenant, &mut by_subject)?;
            if one.default
                && let Some(first) = fallback.replace(Arc::clone(&tenant))
            {
                return Err(format!(
                    "tenants {:?} and {:?} both say default = true; only one may",
                    first.name, one.name
                ));
            }
        }
        let built_in = |name: &str| {
            configured.get(name).cloned().unwrap_or_else(|| Tenant::built_in(name, before))
        };
        let local = built_in(LOCAL);
        let unnamed = match &fallback {
            Some(fallback) if !configured.contains_key(DEFAULT) => Arc::clone(fallback),
            _ => built_in(DEFAULT),
        };
        Ok(Tenants { configured, by_certificate, by_subject, fallback, local, unnamed })
    }

    /// The tenant of loopback peers without a credential.
    pub fn local(&self) -> &Arc<Tenant> {
        &self.local
    }

    /// The tenant that a key file's line names: a configured one, or `default`.
    pub fn of_key(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.configured.get(name).or((name == DEFAULT).then_some(&self.unnamed))
    }

    /// The tenant of the first of a certificate's names that has one.
    pub fn of_certificate(&self, names: &[String]) -> Option<&Arc<Tenant>> {
        names.iter().find_map(|name| self.by_certificate.get(name)).or(self.fallback.as_ref())
    }

    /// The tenant of a token: by its subject, else the one it claims, else the one for all others.
    pub fn of_token(&self, subject: &str, claimed: Option<&str>) -> Option<&Arc<Tenant>> {
        self.by_subject
            .get(subject)
            .or_else(|| self.configured.get(claimed?))
            .or(self.fallback.as_ref())
    }

    /// Every tenant, for metrics and exchange.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        let built_in = [&self.local, &self.unnamed]
            .into_iter()
            .filter(|tenant| !self.configured.contains_key(&tenant.name));
        self.configured.values().chain(built_in)
    }

    /// The tenant of that name, built in or configured.
    pub fn any_named(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.configured
            .get(name)
            .or_else(|| [&self.local, &self.unnamed].into_iter().find(|tenant| tenant.name == name))
    }
}

fn map_names(
    key: &str,
    names: &[String],
    tenant: &Arc<Tenant>,
    map: &mut HashMap<String, Arc<Tenant>>,
) -> Result<(), String> {
    for name in names {
        if name.is_empty() {
            return Err(format!("tenant {:?}: an empty name in {key}", tenant.name));
        }
        if let Some(other) = map.insert(name.clone(), Arc::clone(tenant)) {
            return Err(format!(
                "{key}: {name:?} leads to tenant {:?} and to {:?}; it can belong to one only",
                other.name, tenant.name
            ));
        }
    }
    Ok(())
}

fn check(config: &TenantConfig, before: Option<&Tenants>) -> Result<Tenant, String> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if !(1..=NAME_BYTES_MAX).contains(&config.name.len()) || !config.name.bytes().all(is_plain) {
        return Err(format!("a name has 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' or '-'"));
    }
    if !(1..=WEIGHT_MAX).contains(&config.weight) {
        return Err(format!("weight must be 1 to {WEIGHT_MAX}, not {}", config.weight));
    }
    if !(0.0..=PRIORITY_MAX).contains(&config.priority) {
        return Err(format!("priority must be 0 to {PRIORITY_MAX}, not {}", config.priority));
    }
    for (key, limit) in [
        ("requests_per_minute", config.requests_per_minute),
        ("tokens_per_minute", config.tokens_per_minute),
        ("tokens_per_day", config.tokens_per_day),
    ] {
        if limit > COUNT_MAX {
            return Err(format!("{key} is at most {COUNT_MAX}; 0 is no limit"));
        }
    }
    let models = config.models.iter().map(|m| model(m)).collect::<Result<_, _>>()?;
    let endpoints = endpoints(&config.endpoints)?;
    Ok(Tenant::new(config, models, endpoints, before))
}

fn model(pattern: &str) -> Result<ModelPattern, String> {
    let (prefix, is_prefix) = match pattern.strip_suffix('*') {
        Some(prefix) => (prefix, true),
        None => (pattern, false),
    };
    if prefix.contains('*') {
        Err(format!("model {pattern:?}: '*' can only stand at the end"))
    } else if pattern.is_empty() {
        Err("models has an empty name; leave models out to allow all".to_owned())
    } else if is_prefix {
        Ok(ModelPattern::Prefix(prefix.to_owned()))
    } else {
        Ok(ModelPattern::Name(prefix.to_owned()))
    }
}

fn endpoints(names: &[String]) -> Result<Option<Scopes>, String> {
    const KNOWN: [Scope; 4] = [Scope::Chat, Scope::Completions, Scope::Embeddings, Scope::Other];
    let mut seen = HashSet::new();
    let mut scopes = Scopes::NONE;
    for name in names {
        let Some(scope) = KNOWN.into_iter().find(|scope| scope.as_str() == name) else {
            return Err(format!(
                "unknown endpoint {name:?}; known are chat, completions, embeddings and other"
            ));
        };
        if !seen.insert(name) {
            return Err(format!("endpoint {name:?} is listed twice"));
        }
        scopes = scopes.with(scope);
    }
    Ok((!scopes.is_empty()).then_some(scopes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantConfig {
        TenantConfig { name: name.into(), ..TenantConfig::default() }
    }

    fn build(config: &[TenantConfig]) -> Tenants {
        Tenants::build(config, None).unwrap()
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn models_and_endpoints_are_allowed_by_list() {
        let mut config = tenant("a");
        config.models = strings(&["llama-*", "qwen"]);
        config.endpoints = strings(&["chat", "other"]);
        let tenants = build(&[config, tenant("b")]);
        let a = tenants.of_key("a").unwrap();
        for (model, allowed) in [
            ("llama-3", true),
            ("llama-", true),
            ("llama", false),
            ("qwen", true),
            ("qwen2", false),
        ] {
            assert_eq!(a.allows_model(model), allowed, "{model}");
        }
        assert!(a.allows(Scope::Chat) && a.allows(Scope::Other) && a.allows(Scope::Models));
        assert!(!a.allows(Scope::Embeddings) && !a.allows(Scope::Admin));
        let b = tenants.of_key("b").unwrap();
        assert!(
            b.allows_model("anything") && b.allows(Scope::Embeddings) && !b.allows(Scope::Admin)
        );
    }

    #[test]
    fn mistakes_are_named() {
        let with = |change: fn(&mut TenantConfig)| {
            let mut config = tenant("a");
            change(&mut config);
            vec![config]
        };
        for (config, message) in [
            (vec![tenant("")], "a name has 1 to 64"),
            (vec![tenant("a b")], "a name has 1 to 64"),
            (vec![tenant("a"), tenant("a")], "configured twice"),
            (with(|c| c.weight = 0), "weight must be 1 to 1000, not 0"),
            (with(|c| c.priority = f64::NAN), "priority must be 0 to 1000, not NaN"),
            (with(|c| c.priority = -1.0), "priority must be 0 to 1000"),
            (with(|c| c.tokens_per_day = u64::MAX), "tokens_per_day is at most"),
            (with(|c| c.models = strings(&["a*b"])), "'*' can only stand at the end"),
            (with(|c| c.models = strings(&[""])), "empty name"),
            (with(|c| c.endpoints = strings(&["chta"])), "unknown endpoint \"chta\""),
            (with(|c| c.endpoints = strings(&["admin"])), "unknown endpoint \"admin\""),
            (with(|c| c.endpoints = strings(&["chat", "chat"])), "listed twice"),
            (with(|c| c.certificates = strings(&[""])), "empty name in certificates"),
            (with(|c| c.jwt_subjects = strings(&["u", "u"])), "can belong to one only"),
        ] {
            let error = Tenants::build(&config, None).unwrap_err();
            assert!(error.contains(message), "{error:?} lacks {message:?}");
        }
        let two: Vec<_> =
            ["a", "b"].map(|name| TenantConfig { default: true, ..tenant(name) }).into();
        assert!(Tenants::build(&two, None).unwrap_err().contains("only one may"));
        let many: Vec<_> = (0..=TENANTS_MAX).map(|i| tenant(&i.to_string())).collect();
        assert!(Tenants::build(&many, None).unwrap_err().contains("at most 4096"));
    }

    #[test]
    fn unknown_keys_are_refused_and_defaults_hold() {
        let parsed: TenantConfig = toml::from_str("name = \"a\"").unwrap();
        assert_eq!(parsed, tenant("a"));
        assert!(toml::from_str::<TenantConfig>("name = \"a\"\nrpm = 3").is_err());
    }

    #[test]
    fn callers_are_mapped_by_certificate_subject_claim_then_default() {
        let mut a = tenant("a");
        a.certificates = strings(&["spiffe://x/a"]);
        a.jwt_subjects = strings(&["user-1"]);
        let b = TenantConfig { default: true, ..tenant("b") };
        let tenants = build(&[a.clone(), b, tenant("c")]);
        let name = |tenant: Option<&Arc<Tenant>>| tenant.map(|tenant| tenant.name.clone()).unwrap();
        assert_eq!(name(tenants.of_certificate(&strings(&["x", "spiffe://x/a"]))), "a");
        assert_eq!(name(tenants.of_certificate(&strings(&["x"]))), "b");
        assert_eq!(name(tenants.of_token("user-1", Some("c"))), "a");
        assert_eq!(name(tenants.of_token("user-2", Some("c"))), "c");
        assert_eq!(name(tenants.of_token("user-2", Some("zzz"))), "b");
        assert_eq!(name(tenants.of_key("default")), "b");
        assert_eq!(tenants.local().name, "local");
        // Without a tenant for all others, a stranger has none, and built-in names are no way in.
        let tenants = build(&[a]);
        assert!(tenants.of_certificate(&strings(&["local"])).is_none());
        assert!(tenants.of_token("user-2", Some("local")).is_none());
        assert!(tenants.of_token("user-2", Some("default")).is_none());
        assert!(tenants.of_key("local").is_none());
        assert_eq!(name(tenants.of_key("default")), "default");
    }

    #[test]
    fn each_tenant_is_listed_once_and_keeps_its_counts() {
        let config = [tenant("a"), tenant("local")];
        let before = build(&config);
        let mut names: Vec<_> = before.iter().map(|tenant| tenant.name.clone()).collect();
        names.sort();
        assert_eq!(names, ["a", "default", "local"]);
        before.of_key("a").unwrap().meter.begin(60_000).unwrap();
        let after = Tenants::build(&config, Some(&before)).unwrap();
        assert_eq!(after.of_key("a").unwrap().meter.running(), 1);
        assert_eq!(after.of_key("default").unwrap().meter.running(), 0);
    }
}
