//! The certificates of the tests: a private authority with a server's and a client's certificate, and an authority
//! that none of the servers knows.

use std::fs;
use std::path::Path;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::USER;

type Authority = CertifiedIssuer<'static, KeyPair>;

pub(super) fn write(folder: &Path) -> Result<()> {
    fs::create_dir(folder)?;
    let ours = authority(folder, "ca", "topic-bridge tests")?;
    let others = authority(folder, "other-ca", "somebody else")?;
    for (file, name, by) in
        [("server", "localhost", &ours), ("client", USER, &ours), ("rogue", USER, &others)]
    {
        let key = KeyPair::generate()?;
        let certificate = params(name)?.signed_by(&key, by)?.pem();
        let key = key.serialize_pem();
        fs::write(folder.join(format!("{file}.pem")), &certificate)?;
        fs::write(folder.join(format!("{file}.key")), &key)?;
        // Kafka takes key and certificate in one file.
        fs::write(folder.join(format!("{file}-both.pem")), key + &certificate)?;
    }
    Ok(())
}

fn authority(folder: &Path, file: &str, name: &str) -> Result<Authority> {
    let mut params = params(name)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    fs::write(folder.join(file).with_extension("pem"), authority.pem())?;
    Ok(authority)
}

fn params(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
