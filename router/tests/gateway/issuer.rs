//! A token issuer on a thread: serves its key set, counts who asks, and can be away.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

pub const ISSUER: &str = "https://id.example.com";
pub const AUDIENCE: &str = "cognitora";

/// A key of the issuer.
pub struct Key {
    pub kid: &'static str,
    /// The public half, in base64url.
    pub x: String,
    encoding: EncodingKey,
}

impl Key {
    pub fn new(kid: &'static str) -> Key {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let x = base64url(pair.public_key_raw());
        Key { kid, x, encoding: EncodingKey::from_ed_der(&pair.serialize_der()) }
    }

    /// A token with the claims of [`claims`], some of them replaced.
    pub fn token(&self, other: Value) -> String {
        self.token_of(self.kid, other)
    }

    /// The same, under another key's name.
    pub fn token_of(&self, kid: &str, other: Value) -> String {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::EdDSA) };
        encode(&header, &claims(other), &self.encoding).unwrap()
    }
}

/// Good for ten minutes, for tenant `acme`, and different each time.
pub fn claims(other: Value) -> Value {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let mut claims = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "user-1", "tenant": "acme", "scope": "chat models",
        "exp": now_s() + 600, "jti": COUNT.fetch_add(1, SeqCst),
    });
    for (name, value) in other.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Base64url without padding.
pub fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let digit = |word: u32, at: usize| char::from(DIGITS[(word >> (18 - 6 * at) & 63) as usize]);
    let group = |three: &[u8]| {
        let byte = |at: usize| u32::from(*three.get(at).unwrap_or(&0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        (0..=three.len()).map(|at| digit(word, at)).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

/// The issuer.
#[derive(Clone)]
pub struct Issuer {
    pub address: SocketAddr,
    keys: Arc<Mutex<String>>,
    fetches: Arc<AtomicUsize>,
    is_broken: Arc<AtomicBool>,
}

impl Issuer {
    pub fn start(keys: &[&Key]) -> Issuer {
        Issuer::at("127.0.0.1:0".parse().unwrap(), keys)
    }

    pub fn at(address: SocketAddr, keys: &[&Key]) -> Issuer {
        let listener = TcpListener::bind(address).unwrap();
        let issuer = Issuer {
            address: listener.local_addr().unwrap(),
            keys: Arc::default(),
            fetches: Arc::default(),
            is_broken: Arc::default(),
        };
        issuer.publish(keys);
        let served = issuer.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 4_096]);
                served.fetches.fetch_add(1, SeqCst);
                let (status, body) = match served.is_broken.load(SeqCst) {
                    true => ("500 Oops", "{}".to_owned()),
                    false => ("200 OK", served.keys.lock().unwrap().clone()),
                };
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        issuer
    }

    /// From now on these are the issuer's keys.
    pub fn publish(&self, keys: &[&Key]) {
        let of = |key: &&Key| json!({"kty": "OKP", "crv": "Ed25519", "kid": key.kid, "x": key.x});
        let keys: Vec<Value> = keys.iter().map(of).collect();
        *self.keys.lock().unwrap() = json!({ "keys": keys }).to_string();
    }

    pub fn break_down(&self) {
        self.is_broken.store(true, SeqCst);
    }

    pub fn fetches(&self) -> usize {
        self.fetches.load(SeqCst)
    }
}

/// The sections that make the router believe the issuer at `address`.
pub fn sections(address: SocketAddr, more: &str) -> String {
    format!(
        "[router.identity]\nrequired = true\n[router.identity.jwt]\nissuer = \"{ISSUER}\"\n\
         audience = \"{AUDIENCE}\"\njwks_url = \"http://{address}/keys\"\n{more}\n"
    )
}
