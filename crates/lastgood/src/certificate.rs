//! Certificates: what a replay or an audit came to, signed, as a file that anybody can check.
//!
//! A certificate is two lines of JSON: what was found, and the Ed25519 signature (RFC 8032) over the exact bytes of the
//! first line, with the public key. Keys are PKCS#8 in PEM, as `openssl genpkey -algorithm ed25519` writes them.

use std::collections::BTreeSet;

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use lastgood_format::{Error, Hash, Result, RunName};
use serde::{Deserialize, Serialize};

/// The version of certificates that this library writes.
const VERSION: u32 = 1;

/// The largest certificate that is read.
pub const BYTES_MAX: u64 = 16 << 20;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The version of the certificate.
    pub version: u32,
    /// `lastgood.certificate`.
    pub kind: String,
    /// When it was made, RFC 3339 in UTC.
    pub at: String,
    /// The version of lastgood that made it.
    pub lastgood: String,
    /// The id of the repository.
    pub repository: String,
    /// The run.
    pub run: RunName,
    /// The last ledger entry that was read, and its hash: everything that the run had decided by then.
    pub ledger: Tail,
    /// Events of the journal that are there and unchanged.
    pub events: u64,
    /// The checkpoint that the replay began with; null for a fresh start.
    pub from: Option<Hash>,
    /// Its step, or 0.
    pub from_step: u64,
    /// The last step.
    pub to: u64,
    /// The checkpoint of the last step, if there is one.
    pub end: Option<Hash>,
    /// The ranks that the run had at the last step, and that the replay had.
    pub ranks: [u32; 2],
    /// Every number of ranks that the run had in these steps: several if it went on with fewer or more.
    pub world_sizes: BTreeSet<u32>,
    /// Records of steps that are equal.
    pub steps: u64,
    /// The states that were compared, with their digests.
    pub states: Vec<DigestPair>,
    /// What differs between the environments: name, recorded, replayed.
    pub environment: Vec<[String; 3]>,
    /// Where they part, as text; empty if they do not.
    pub divergences: Vec<String>,
    /// The determinism level that was asked for: `D2`, or `D3` if not all of these steps were done on as many ranks.
    pub claimed: String,
    /// The level that was achieved; null if no state was compared.
    pub achieved: Option<String>,
    /// `proven`, `unproven` or `diverged`.
    pub verdict: String,
}

/// The end of a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    /// The number of the last entry.
    pub entries: u64,
    /// Its hash.
    pub blake3: Option<Hash>,
}

/// A state that was compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DigestPair {
    /// The step.
    pub step: u64,
    /// Where the recorded digest is from: `journal`, or `checkpoint` if it was found in the checkpoint's bytes.
    pub source: String,
    /// The digest of the recorded state.
    pub recorded: Hash,
    /// The digest of the re-executed state.
    pub replayed: Hash,
}

/// The second line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seal {
    algorithm: String,
    key: String,
    signature: String,
}

impl Certificate {
    /// The version and the kind of those that this library writes.
    #[must_use]
    pub fn kind() -> (u32, String) {
        (VERSION, "lastgood.certificate".to_owned())
    }

    /// The file: what was found, and its signature.
    ///
    /// # Errors
    /// `Internal` if it cannot be written as JSON.
    pub fn sign(&self, key: &PrivateKey) -> Result<String> {
        let written = |e: serde_json::Error| {
            Error::internal(format!("cannot write a certificate as JSON: {e}"))
        };
        let body = serde_json::to_string(self).map_err(written)?;
        let signature = key.0.sign(body.as_bytes());
        let seal = Seal {
            algorithm: "ed25519".to_owned(),
            key: hex(key.0.verifying_key().as_bytes()),
            signature: hex(&signature.to_bytes()),
        };
        let seal = serde_json::to_string(&seal).map_err(written)?;
        Ok(format!("{body}\n{seal}\n"))
    }

    /// Reads a certificate, checks its signature, and gives what was found and the key that signed it.
    ///
    /// # Errors
    /// `Corrupt` if a byte of it is not as it was signed; `Incompatible` if it is of a newer version.
    pub fn verify(text: &str) -> Result<(Self, PublicKey)> {
        let unclear =
            |what: &str| Error::corrupt(format!("the certificate is not understood: {what}"));
        let (body, seal) = text.split_once('\n').ok_or_else(|| unclear("it has one line"))?;
        let seal = seal.strip_suffix('\n').filter(|seal| !seal.contains('\n'));
        let seal = seal.ok_or_else(|| unclear("it does not have two lines"))?;
        let seal: Seal = serde_json::from_str(seal).map_err(|e| unclear(&e.to_string()))?;
        if seal.algorithm != "ed25519" {
            return Err(Error::incompatible(format!(
                "the algorithm {:?} is not known",
                seal.algorithm
            )));
        }
        let key = unhex::<32>(&seal.key).ok_or_else(|| unclear("the key"))?;
        let key = VerifyingKey::from_bytes(&key).map_err(|_| unclear("the key is none"))?;
        let signature = unhex::<64>(&seal.signature).ok_or_else(|| unclear("the signature"))?;
        // Strict: no second signature is valid for the same bytes.
        key.verify_strict(body.as_bytes(), &Signature::from_bytes(&signature)).map_err(|_| {
            Error::corrupt(
                "the signature of the certificate does not fit: it was changed after it was signed",
            )
        })?;
        let version = serde_json::from_str::<serde_json::Value>(body)
            .ok()
            .and_then(|body| body.get("version")?.as_u64())
            .ok_or_else(|| unclear("it has no version"))?;
        if version > u64::from(VERSION) {
            return Err(Error::incompatible(format!(
                "the certificate has version {version}, this lastgood reads up to {VERSION}"
            ))
            .with_remedy("use a newer lastgood"));
        }
        let certificate: Self = serde_json::from_str(body).map_err(|e| unclear(&e.to_string()))?;
        Ok((certificate, PublicKey(key)))
    }
}

/// A key that signs.
#[derive(Debug)]
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// The key of 32 random bytes.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// Reads a key in PEM.
    ///
    /// # Errors
    /// `Invalid` if it is none of Ed25519.
    pub fn from_pem(pem: &str) -> Result<Self> {
        let key = SigningKey::from_pkcs8_pem(pem);
        key.map(Self).map_err(|e| {
            Error::invalid(format!("it holds no private key of Ed25519: {e}"))
                .with_remedy("`lastgood key new` makes one")
        })
    }

    /// The key in PEM.
    ///
    /// # Errors
    /// `Internal` if it cannot be encoded.
    pub fn to_pem(&self) -> Result<String> {
        let pem = self.0.to_pkcs8_pem(LineEnding::LF);
        pem.map(|pem| pem.to_string())
            .map_err(|e| Error::internal(format!("cannot encode a key: {e}")))
    }

    /// The key that checks what this one signs.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }
}

/// A key that checks signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Reads a key in PEM.
    ///
    /// # Errors
    /// `Invalid` if it is none of Ed25519.
    pub fn from_pem(pem: &str) -> Result<Self> {
        let key = VerifyingKey::from_public_key_pem(pem);
        key.map(Self).map_err(|e| {
            Error::invalid(format!("it holds no public key of Ed25519: {e}"))
                .with_remedy("give the file that `lastgood key new` wrote beside the key")
        })
    }

    /// The key in PEM.
    ///
    /// # Errors
    /// `Internal` if it cannot be encoded.
    pub fn to_pem(&self) -> Result<String> {
        let pem = self.0.to_public_key_pem(LineEnding::LF);
        pem.map_err(|e| Error::internal(format!("cannot encode a key: {e}")))
    }

    /// The 32 bytes as hexadecimal digits.
    #[must_use]
    pub fn digits(&self) -> String {
        hex(self.0.as_bytes())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let is_plain = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if digits.len() != 2 * N || !is_plain {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}
