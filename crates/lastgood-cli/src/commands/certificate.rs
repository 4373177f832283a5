//! `lastgood key` and `lastgood certificate`.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use lastgood::certificate::{BYTES_MAX, Certificate, PrivateKey, PublicKey};
use lastgood::{Error, ErrorKind as Kind};
use lastgood_store::{Env, SystemEnv};
use serde_json::json;

use crate::exit::Exit;
use crate::output;

/// `lastgood key new`.
pub(super) fn new_key(to: &Path, as_json: bool) -> Result<Exit> {
    let env = SystemEnv::default();
    let mut seed = [0; 32];
    for part in seed.chunks_mut(8) {
        part.copy_from_slice(&env.random().to_le_bytes());
    }
    let key = PrivateKey::from_seed(seed);
    let public = public_path(to);
    create(to, &key.to_pem()?, 0o600)?;
    create(&public, &key.public().to_pem()?, 0o644)?;
    let digits = key.public().digits();
    if as_json {
        output::json(&json!({"key": to, "public": public, "digits": digits}))?;
    } else {
        output::line(format_args!("{} signs, {} checks: {digits}", to.display(), public.display()));
    }
    Ok(Exit::Done)
}

fn public_path(key: &Path) -> PathBuf {
    let mut name = key.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}

/// Creates a file that must not exist: a key that is lost cannot be made again.
fn create(path: &Path, text: &str, mode: u32) -> Result<()> {
    let created = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = created.map_err(|error| failed(path, &error, "cannot be created"))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|error| failed(path, &error, "cannot be written"))?;
    Ok(())
}

pub(super) fn failed(path: &Path, error: &std::io::Error, what: &str) -> Error {
    let kind = match error.kind() {
        ErrorKind::NotFound => Kind::NotFound,
        ErrorKind::PermissionDenied => Kind::Denied,
        ErrorKind::AlreadyExists => Kind::Conflict,
        _ => Kind::Unavailable,
    };
    Error::new(kind, format!("{} {what}: {error}", path.display()))
}

/// A file of a bounded size.
pub(super) fn read(path: &Path) -> Result<String> {
    let bytes = fs::metadata(path).map_err(|e| failed(path, &e, "cannot be read"))?.len();
    if bytes > BYTES_MAX {
        bail!(Error::corrupt(format!("{} has {bytes} bytes, at most {BYTES_MAX}", path.display())));
    }
    fs::read_to_string(path).map_err(|e| failed(path, &e, "cannot be read").into())
}

/// `lastgood certificate verify`.
pub(super) fn verify(file: &Path, key: Option<&Path>, as_json: bool) -> Result<Exit> {
    let named = |error: Error| error.with_object(file.display().to_string());
    let (certificate, signer) = Certificate::verify(&read(file)?).map_err(named)?;
    if let Some(path) = key {
        let expected = PublicKey::from_pem(&read(path)?)
            .map_err(|error| error.with_object(path.display().to_string()))?;
        if expected != signer {
            bail!(named(
                Error::new(
                    Kind::Denied,
                    format!(
                        "it was signed by key {}, not by {}",
                        signer.digits(),
                        expected.digits()
                    )
                )
                .with_remedy("ask whoever gave it to you whose key that is")
            ));
        }
    }
    if as_json {
        let mut said = serde_json::to_value(&certificate)?;
        said["signed_by"] = json!(signer.digits());
        said["key_was_given"] = json!(key.is_some());
        output::json(&said)?;
        return Ok(Exit::Done);
    }
    let Certificate { verdict, run, from_step, to, achieved, claimed, .. } = &certificate;
    let level = achieved.as_deref().unwrap_or("none");
    output::line(format_args!("verdict     {verdict}: level {level}, {claimed} was claimed"));
    output::line(format_args!(
        "run         {run} of repository {}, steps {} to {to}, at ledger entry {}",
        certificate.repository,
        from_step + 1,
        certificate.ledger.entries
    ));
    for pair in &certificate.states {
        let same = if pair.recorded == pair.replayed { "equal" } else { "DIFFERENT" };
        output::line(format_args!(
            "state       step {}: {same}, {} of the {}",
            pair.step,
            pair.recorded.short(),
            pair.source
        ));
    }
    for divergence in &certificate.divergences {
        output::line(format_args!("differs     {divergence}"));
    }
    let whose = if key.is_some() { "the key that was given" } else { "whoever has this key" };
    output::line(format_args!("signature   fits: {} ({whose})", signer.digits()));
    Ok(Exit::Done)
}
