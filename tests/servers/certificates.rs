//! The certificates of the tests: a private authority with a server's and a client's certificate, and an authority
//! that none of the servers knows.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use super::USER;

type Authority = CertifiedIssuer<'static, KeyPair>;

pub(super) fn write(folder: &Path) -> Result<()> {
    fs::create_dir(folder)?;
    let ours = authority(folder, "ca", "topic-bridge tests")?;
    let others = authority(folder, "other-ca", "somebody else")?;
    sign(folder, "server", "localhost", ExtendedKeyUsagePurpose::ServerAuth, &ours)?;
    sign(folder, "client", USER, ExtendedKeyUsagePurpose::ClientAuth, &ours)?;
    sign(folder, "rogue", USER, ExtendedKeyUsagePurpose::ClientAuth, &others)?;
    // A container's user reads them, too; the folder around them is private.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn authority(folder: &Path, file: &str, name: &str) -> Result<Authority> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    fs::write(folder.join(file).with_extension("pem"), authority.pem())?;
    Ok(authority)
}

fn sign(
    folder: &Path,
    file: &str,
    name: &str,
    purpose: ExtendedKeyUsagePurpose,
    by: &Authority,
) -> Result<()> {
    let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, by)?.pem();
    let key = key.serialize_pem();
    fs::write(folder.join(format!("{file}.pem")), &certificate)?;
    fs::write(folder.join(format!("{file}.key")), &key)?;
    // Kafka takes key and certificate in one file.
    fs::write(folder.join(format!("{file}-both.pem")), key + &certificate)?;
    Ok(())
}
