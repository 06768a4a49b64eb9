//! `cgnctl pki`: certificates as files. Keys are readable by their owner only; nothing is overwritten.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use dataplane::identity::Role;
use serde::Serialize;

use super::output::print;
use super::{Failure, Global};
use crate::pki::{self, Made, PkiError, Shown, Wanted};

/// Largest file that is read: a chain of certificates is a tenth of it.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Options of `pki bootstrap`.
#[derive(Debug, Args)]
pub(super) struct Bootstrap {
    /// Where ca.pem and ca.key are written. Keep ca.key off the machines.
    #[arg(long, value_name = "DIR", default_value = "pki")]
    out: PathBuf,
    /// The cluster's name; it stands in every certificate.
    #[arg(long, value_name = "CLUSTER", default_value = "cognitora")]
    name: String,
}

/// Options of `pki issue`.
#[derive(Debug, Args)]
pub(super) struct Issue {
    /// The folder of `pki bootstrap`.
    #[arg(long, value_name = "DIR", default_value = "pki")]
    ca: PathBuf,
    /// The member's name in the cluster; no two may have the same.
    #[arg(long, value_name = "NAME")]
    node: String,
    /// A DNS name or address that others dial it by; may be given again.
    #[arg(long = "san", value_name = "NAME|IP")]
    sans: Vec<String>,
    /// What it may do: node, router or operator.
    #[arg(long, default_value = "node")]
    role: Role,
    /// How long it is good for.
    #[arg(long, value_name = "DAYS", default_value_t = 365)]
    days: u32,
    /// Where NAME.pem and NAME.key are written; absent: beside the authority.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Serialize)]
struct Written {
    certificate: PathBuf,
    key: PathBuf,
    #[serde(flatten)]
    shown: Shown,
}

/// Makes an authority.
pub(super) fn bootstrap(global: &Global, asked: &Bootstrap) -> Result<(), Failure> {
    let made = pki::bootstrap(&asked.name, now_unix_s()).map_err(|error| failure(&error))?;
    report(global, write(&asked.out, "ca", &made)?)
}

/// Makes a member's certificate.
pub(super) fn issue(global: &Global, asked: &Issue) -> Result<(), Failure> {
    let authority =
        Made { certificate: read(&asked.ca.join("ca.pem"))?, key: read(&asked.ca.join("ca.key"))? };
    let wanted = Wanted {
        name: asked.node.clone(),
        role: asked.role,
        sans: asked.sans.clone(),
        days: asked.days,
    };
    let made = pki::issue(&authority, &wanted, now_unix_s());
    let (_, made) = made.map_err(|error| failure(&error))?;
    report(global, write(asked.out.as_ref().unwrap_or(&asked.ca), &asked.node, &made)?)
}

/// Shows a certificate.
pub(super) fn show(global: &Global, file: &Path) -> Result<(), Failure> {
    let shown = pki::show(&read(file)?)
        .map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
    print(global.output, &shown, lines)
}

fn report(global: &Global, written: Written) -> Result<(), Failure> {
    print(global.output, &written, |written| {
        let (certificate, key) = (written.certificate.display(), written.key.display());
        format!("certificate  {certificate}\nkey          {key}\n{}", lines(&written.shown))
    })
}

fn lines(shown: &Shown) -> String {
    let identity = shown.identity.as_deref().unwrap_or("-");
    let role = if shown.is_authority { "authority" } else { "member" };
    format!(
        "subject      {} ({role})\nissuer       {}\nidentity     {identity}\nnames        {}\n\
         valid        {} to {} (Unix time)",
        shown.subject,
        shown.issuer,
        if shown.sans.is_empty() { "-".to_owned() } else { shown.sans.join(", ") },
        shown.not_before_unix_s,
        shown.not_after_unix_s,
    )
}

/// Writes both files, the key first and for its owner alone.
fn write(folder: &Path, name: &str, made: &Made) -> Result<Written, Failure> {
    let shown = pki::show(&made.certificate).map_err(|error| failure(&error))?;
    let failed = |path: &Path, error: &std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::Usage(format!(
            "{} is there already and is not overwritten; move it away or name another --out",
            path.display()
        )),
        _ => Failure::Failed(format!("{} cannot be written: {error}", path.display())),
    };
    let made_folder = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made_folder.map_err(|error| failed(folder, &error))?;
    let key = folder.join(format!("{name}.key"));
    let certificate = folder.join(format!("{name}.pem"));
    // Neither is begun if the other is there.
    if certificate.exists() {
        return Err(failed(&certificate, &std::io::ErrorKind::AlreadyExists.into()));
    }
    for (path, text, mode) in [(&key, &made.key, 0o600), (&certificate, &made.certificate, 0o644)] {
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        let written = file.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(|error| failed(path, &error))?;
    }
    Ok(Written { certificate, key, shown })
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read =
        File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let hint = "`cgnctl pki bootstrap` makes an authority";
            Err(Failure::NotFound(format!("{} is not there; {hint}", path.display())))
        }
        Err(error) => Err(Failure::Usage(format!("{} cannot be read: {error}", path.display()))),
    }
}

fn failure(error: &PkiError) -> Failure {
    match error {
        PkiError::Sign(_) => Failure::Failed(error.to_string()),
        _ => Failure::Usage(error.to_string()),
    }
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
