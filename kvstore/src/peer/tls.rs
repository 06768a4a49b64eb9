//! Certificates and keys on disk → what both ends of a connection show and ask for.
//!
//! TLS 1.3 only, both ends verified, nothing resumed: each connection proves again who it is. There is
//! no way to switch verification off.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dataplane::identity::{Identity, Role};
use dataplane::pem::{PemError, certificates, private_key};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::certificate::{CertificateError, holder};
use super::wire::ALPN;

/// Where the files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The cluster's authority, PEM.
    pub ca: PathBuf,
    /// Authorities of other clusters, PEM; blocks may go there within their own limit.
    pub foreign_ca: Option<PathBuf>,
    /// This node's certificate and its chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or holds nothing of use.
    #[error("{0}, as `cgnctl pki` writes it")]
    File(#[from] PemError),
    /// The node's own certificate names nobody.
    #[error("{path}: the certificate {reason}")]
    Holder {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: CertificateError,
    },
    /// The node's own certificate is another's.
    #[error(
        "{path}: the certificate is for the role `{role}`; peers need one made with `--role node`"
    )]
    Role {
        /// The file.
        path: PathBuf,
        /// The role it has.
        role: Role,
    },
    /// Certificate, key and authority do not belong together.
    #[error("{path} cannot be served with: {reason}")]
    Unfit {
        /// The certificate's file.
        path: PathBuf,
        /// What rustls said.
        reason: String,
    },
}

/// Why a peer with a verified certificate is sent away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It names no member.
    #[error("its certificate {0}")]
    Certificate(#[from] CertificateError),
    /// It is no node.
    #[error("it is a {0}, not a node")]
    Role(Role),
    /// A foreign authority signed for this cluster, or this one for another.
    #[error("its authority may not sign for cluster `{0}`")]
    Cluster(String),
    /// No authority that is believed now signed for it, or its time is over.
    #[error("its certificate is not believed any more")]
    Unbelieved,
    /// It has the name of this node.
    #[error("it calls itself as this node does")]
    Myself,
}

/// What a node shows and whom it believes.
#[derive(Clone)]
pub struct Credentials {
    /// Who this node is.
    pub identity: Identity,
    /// For connections that come in.
    pub server: Arc<ServerConfig>,
    /// For those that go out.
    pub client: Arc<ClientConfig>,
    own: Arc<dyn ClientCertVerifier>,
    /// Of all authorities that are believed.
    all: Arc<dyn ClientCertVerifier>,
}

impl Credentials {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(files: &Files) -> Result<Credentials, TlsError> {
        let unfit = |error: &dyn std::fmt::Display| TlsError::Unfit {
            path: files.cert.clone(),
            reason: error.to_string(),
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (own_roots, all_roots) = roots(files)?;
        let chain = certificates(&files.cert, "the node's certificate")?;
        let identity = own_identity(&files.cert, &chain)?;
        let key = || private_key(&files.key);
        let verifier = |roots: &Arc<RootCertStore>| {
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
                .build()
                .map_err(|error| unfit(&error))
        };
        let own = verifier(&own_roots)?;
        check_own(&own, &chain).map_err(|error| unfit(&error))?;

        let all = verifier(&all_roots)?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unfit(&error))?
            .with_client_cert_verifier(all.clone())
            .with_single_cert(chain.clone(), key()?)
            .map_err(|error| unfit(&error))?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;

        let believed: Arc<dyn ServerCertVerifier> =
            WebPkiServerVerifier::builder_with_provider(all_roots, provider.clone())
                .build()
                .map_err(|error| unfit(&error))?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unfit(&error))?
            .dangerous()
            .with_custom_certificate_verifier(believed)
            .with_client_auth_cert(chain, key()?)
            .map_err(|error| unfit(&error))?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = rustls::client::Resumption::disabled();
        let (server, client) = (Arc::new(server), Arc::new(client));
        Ok(Credentials { identity, server, client, own, all })
    }

    /// Whether one that was admitted by other credentials would be by these.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn admit_again(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Identity, Refusal> {
        let (end, between) = chain.split_first().ok_or(CertificateError::Malformed)?;
        if self.all.verify_client_cert(end, between, now).is_err() {
            return Err(Refusal::Unbelieved);
        }
        self.admit(chain, now)
    }

    /// Who showed `chain`, which the handshake has verified, and whether it may be a peer.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn admit(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Identity, Refusal> {
        let (end, between) = chain.split_first().ok_or(CertificateError::Malformed)?;
        let peer = holder(end)?;
        if peer.role() != Role::Node {
            return Err(Refusal::Role(peer.role()));
        }
        // A foreign authority is believed for its own cluster only.
        let is_own = self.own.verify_client_cert(end, between, now).is_ok();
        if is_own != (peer.cluster() == self.identity.cluster()) {
            return Err(Refusal::Cluster(peer.cluster().to_owned()));
        }
        if peer == self.identity { Err(Refusal::Myself) } else { Ok(peer) }
    }
}

/// This cluster's authorities, and all that are believed.
fn roots(files: &Files) -> Result<(Arc<RootCertStore>, Arc<RootCertStore>), TlsError> {
    let wanted = "authorities' certificates";
    let mut own = RootCertStore::empty();
    for certificate in certificates(&files.ca, wanted)? {
        own.add(certificate).map_err(|error| PemError::new(&files.ca, wanted, &error))?;
    }
    let mut all = own.clone();
    if let Some(foreign) = &files.foreign_ca {
        for certificate in certificates(foreign, wanted)? {
            all.add(certificate).map_err(|error| PemError::new(foreign, wanted, &error))?;
        }
    }
    Ok((Arc::new(own), Arc::new(all)))
}

fn own_identity(path: &Path, chain: &[CertificateDer<'_>]) -> Result<Identity, TlsError> {
    let read = chain.first().map_or(Err(CertificateError::Malformed), |first| holder(first));
    let identity = read.map_err(|reason| TlsError::Holder { path: path.to_owned(), reason })?;
    match identity.role() {
        Role::Node => Ok(identity),
        role => Err(TlsError::Role { path: path.to_owned(), role }),
    }
}

/// A node whose own certificate has ended, or is another cluster's, hears it at start and not from its
/// peers.
fn check_own(
    own: &Arc<dyn ClientCertVerifier>,
    chain: &[CertificateDer<'_>],
) -> Result<(), rustls::Error> {
    match chain.split_first() {
        Some((end, between)) => own.verify_client_cert(end, between, UnixTime::now()).map(drop),
        None => Ok(()),
    }
}
