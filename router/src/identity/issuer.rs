//! A token issuer for tests: one key of each kind, its public half as a JWK, and tokens signed with it.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use ring::signature::KeyPair as _;
use serde_json::{Value, json};

use crate::identity::jwt::decode_base64url;

/// A key pair of an issuer.
pub struct Issuer {
    pub kid: &'static str,
    pub algorithm: Algorithm,
    pub jwk: Value,
    pub encoding: EncodingKey,
}

impl Issuer {
    pub fn rsa(kid: &'static str, algorithm: Algorithm) -> Self {
        let der = decode_base64url(RSA_DER).unwrap();
        let pair = ring::signature::RsaKeyPair::from_der(&der).unwrap();
        let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
        let jwk = json!({
            "kty": "RSA", "kid": kid, "use": "sig",
            "n": base64url(&public.n), "e": base64url(&public.e),
        });
        Issuer { kid, algorithm, jwk, encoding: EncodingKey::from_rsa_der(&der) }
    }

    pub fn ec(kid: &'static str, algorithm: Algorithm) -> Self {
        let (kind, curve) = match algorithm {
            Algorithm::ES256 => (&rcgen::PKCS_ECDSA_P256_SHA256, "P-256"),
            _ => (&rcgen::PKCS_ECDSA_P384_SHA384, "P-384"),
        };
        let pair = rcgen::KeyPair::generate_for(kind).unwrap();
        // 0x04, then both coordinates.
        let point = &pair.public_key_raw()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        let jwk = json!({
            "kty": "EC", "crv": curve, "kid": kid, "x": base64url(x), "y": base64url(y),
        });
        Issuer { kid, algorithm, jwk, encoding: EncodingKey::from_ec_der(&pair.serialize_der()) }
    }

    pub fn ed(kid: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let x = base64url(pair.public_key_raw());
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "alg": "EdDSA", "x": x});
        let encoding = EncodingKey::from_ed_der(&pair.serialize_der());
        Issuer { kid, algorithm: Algorithm::EdDSA, jwk, encoding }
    }

    /// A token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid.to_owned()), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, claims, &self.encoding).unwrap()
    }

    /// A token whose head is any JSON, signed as if it said this key's algorithm.
    pub fn token_with_head(&self, head: &Value, claims: &Value) -> String {
        let message = format!(
            "{}.{}",
            base64url(head.to_string().as_bytes()),
            base64url(claims.to_string().as_bytes())
        );
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &self.encoding, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }
}

/// The key set of these issuers.
pub fn set(issuers: &[&Issuer]) -> Vec<u8> {
    let keys: Vec<_> = issuers.iter().map(|issuer| issuer.jwk.clone()).collect();
    json!({ "keys": keys }).to_string().into_bytes()
}

/// Base64url without padding.
pub fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0_u32, |word, i| word << 8 | u32::from(*chunk.get(i).unwrap_or(&0)));
        for i in 0..=chunk.len() {
            text.push(DIGITS[(word >> (18 - 6 * i) & 63) as usize].into());
        }
    }
    text
}

/// A key of 2048 bits, made for these tests and used nowhere else.
const RSA_DER: &str = "\
    MIIEpAIBAAKCAQEAqCCUdy_b2098WJTSGREynuyTdIGsawdh7XFWvQKWaq8DxHSZQW7CLuFrbqi3BH4pb8BryFwsvX\
    nCiZz08GhgOj4njZNq3H4K3AUyuNa7f3VGlsfNd_ZQ83QF8FZI5bOkNh3UQo6J7Wwb-\
    YedxgC8N2fZZ44R79Gbb9pLapWHEMuZZv9JSNhkn1c-OkaS5sfFEHKujW1XVm0wRA-ZVpg_YVswe9FGTbX0LRjVv0u\
    yWFEdiDO4HssKZY_MmBzNGK2sa47L5Qj2hakQC1GpMxxmlfoCIqbg1vlMsL4ilyZdL7aH5tVOUHG2tCfqk0jZM3uvC\
    zerS7qUNDripYF42vBjiQIDAQABAoIBABpqbAlB-sA9f-MHFu-bVSHFN_HRQf7a_RbqfN9bnbiLYQMn8sBmH5pwDoo\
    ndgH9tJL7X7PuT5VBoUAv6ggvzha4l0xWQi78msYxBuQl0PXYvkuIfw7_I37s1tYJKJD2pbFfBG-kp6UnHEobdb2bd\
    fcamPz9RHIys8JiQQExFzSbF1hRCAafVaCjDsOR_fI9vvhWWsCjeyx6WKwYGEQ6nS7WBpHPQMYY1Jv7HctTepi4ZNp\
    j3UDZitALCtONUrTAwVf7mJIeixw8wxinFCnDH0gu_qnaubuuTabN0daajb0X7Fmv3KD6zfE0ox676-\
    0RKGlWPOfX9hh5_6z6WXcPgvUCgYEA3mxV-\
    L51kvMeKmKbtwdXL97lHdervTDfemOTnfU_czi4j2N_v0tgu6BkO8CL24BINpXbQ0mmq5qyFUJ2PsvHbrAY9sTsqQo\
    uIlwKy6S1UfCFC4eTy5oPDSstNK3Ppgyn8DMOWmu9AxGwGHbuXuR_Hczw0-\
    CWy19BfctFf56sGE8CgYEAwYHy69wSgoObXs84dTBFxA49zpc4a6GzEt-\
    LnGae2ObL6hFi8Nx0IZUKeqiSfltBLLBYUOonvCh5QO3GbAoI-\
    GyzQHXH5Exe4FLcouljmVM7j8gp8OewQzk0VCghIU4GuaxDgGPpdcD70-qatClrKi356eN_hn2COn0m2uTg-KcCgYE\
    A20irqcT8XZhbESaOpnASQRvbfwR2SNu6OAucKYr0t0AglR1fgNVr1Q9YQqCeQhXDHC26MiiWrXCiSdtwgJCfWj07H\
    28ec7mZqj5cVlFYgiRCxw8vYvfMBwueUeVaZzbrCyEK8ZJukmwJ1NTMRbm4qUS32ev-\
    Pxr2knKpXhytRnkCgYA4TpXfJ9SDAcSuG-Izx24llHdLrBkQyKaQ8VdwlTPXraDcZV7C84MfWn0IIBEwj2Exnca1FM\
    2nJKfTytyYB3uAvjCSqzMVLVvWLoZhKUSAEwYb2oTJwsE5bmXZryukw02VrZievXPrfdJJYdTOY9b5GRPFiRtMiSzh\
    1BUAUOVdtQKBgQCIBV5MDCSImgmf6CA0ntm7J1PiEzM8R7wSrkCZftWbs1zQS1jZzQbzM0UCFgZMBELemSRPbQC_Bx\
    8FHOZ2SEf_D5iwGUGQBF1BpDRort0uAtUxqqJ5B_SMKV0S1Ca8kYlgqAC602WyrgUKgSBwbtGVXlIJa01u1Ap1itjN\
    6to3_A";
