//! HTTPS on the public listener: a client that does not trust the certificate, or is not trusted, gets no
//! further; a renewed certificate needs no restart; and HTTP/2 works for clients that ask for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, HandshakeKind, RootCertStore};

use crate::bridge::{Bridge, Ended, TOKEN, TOPIC_CREATED, body, eventually, program, run, signed};
use crate::command::{CONFIGURATION, check_refused};
use crate::http::Connection;

/// A certificate authority, with its certificate in a file.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = folder.join(name);
        fs::write(&file, issuer.pem()).unwrap();
        Authority { issuer, file }
    }

    /// Writes a certificate for this machine, and its key.
    fn certify(&self, pair: &Pair) {
        self.certify_for(pair, |_| {});
    }

    fn certify_for(&self, pair: &Pair, change: impl FnOnce(&mut CertificateParams)) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(&pair.key, key.serialize_pem()).unwrap();
        fs::write(&pair.certificate, certificate.pem()).unwrap();
    }
}

/// The files of a certificate and its key.
pub(crate) struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

impl Pair {
    fn new(folder: &Path, name: &str) -> Self {
        let file = |kind: &str| folder.join(format!("{name}.{kind}"));
        Pair { certificate: file("crt"), key: file("key") }
    }
}

/// An authority that clients trust, the files that it certified, and a bridge that uses them.
pub(crate) struct Secured {
    folder: TempDir,
    authority: Authority,
    pair: Pair,
    pub(crate) bridge: Bridge,
}

pub(crate) fn secured(more: &[(&str, &str)]) -> Secured {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "ca.crt");
    let pair = Pair::new(folder.path(), "bridge");
    authority.certify(&pair);
    let files = [
        ("ingress.tls.cert_file", pair.certificate.to_str().unwrap()),
        ("ingress.tls.key_file", pair.key.to_str().unwrap()),
    ];
    let bridge = Bridge::start(&[&files, more].concat());
    Secured { folder, authority, pair, bridge }
}

fn send(bridge: &Bridge, authority: &Authority) -> Ended {
    let url = format!("https://localhost:{}/", bridge.ingress.port());
    run(program().args(["send", &url, "--token", TOKEN, "--ca-file"]).arg(&authority.file))
}

#[test]
fn only_who_trusts_the_certificate_calls() {
    let Secured { folder, authority, bridge, .. } = secured(&[]);
    let ended = send(&bridge, &authority);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(bridge.events().len(), 1);

    let stranger = Authority::new(folder.path(), "stranger.crt");
    let ended = send(&bridge, &stranger);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("TLS failed"), "{}", ended.stdout);
    assert_eq!(bridge.events().len(), 1);
}

#[test]
fn a_renewed_certificate_is_taken_up_and_a_broken_one_is_not() {
    let Secured { folder, authority, pair, bridge } = secured(&[]);
    fs::write(&pair.certificate, "not a certificate").unwrap();
    eventually("the broken file is noticed", || {
        bridge.log().contains("the old certificate stays in use").then_some(())
    });
    assert_eq!(send(&bridge, &authority).code, Some(0), "the old one stays in use");

    let successor = Authority::new(folder.path(), "successor.crt");
    successor.certify(&pair);
    eventually("the new one is in use", || {
        (send(&bridge, &successor).code == Some(0)).then_some(())
    });
    assert_eq!(send(&bridge, &authority).code, Some(1), "the old one is not");
}

/// As an operator mends it who has no more to change than the rights: the file's time stays what it was.
#[test]
fn a_certificate_that_could_not_be_read_is_tried_until_it_can_be() {
    let Secured { folder, pair, bridge, .. } = secured(&[]);
    let successor = Authority::new(folder.path(), "successor.crt");
    let next = Pair::new(folder.path(), "next");
    successor.certify(&next);
    // Root reads any file: so the way to it is what is missing.
    let (away, found) = (folder.path().join("away"), folder.path().join("found"));
    fs::create_dir(&found).unwrap();
    for (file, from) in [("crt", &next.certificate), ("key", &next.key)] {
        fs::rename(from, found.join(file)).unwrap();
    }
    for (file, of) in [("crt", &pair.certificate), ("key", &pair.key)] {
        fs::remove_file(of).unwrap();
        std::os::unix::fs::symlink(away.join(file), of).unwrap();
    }
    let failures = || bridge.logged("the old certificate stays in use").len();
    eventually("the failure is told", || (failures() > 0).then_some(()));
    fs::rename(found, away).unwrap();
    eventually("it is taken up", || (send(&bridge, &successor).code == Some(0)).then_some(()));
}

/// What `chmod` mends: neither the size nor the time of the file's content changes.
#[test]
fn a_file_that_is_replaced_with_its_old_time_is_taken_up() {
    let Secured { folder, authority, pair, bridge } = secured(&[]);
    let time = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let before = [time(&pair.certificate), time(&pair.key)];
    let successor = Authority::new(folder.path(), "successor.crt");
    let next = Pair::new(folder.path(), "next");
    successor.certify(&next);
    for (path, time) in [(&next.certificate, before[0]), (&next.key, before[1])] {
        fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }
    fs::rename(&next.certificate, &pair.certificate).unwrap();
    fs::rename(&next.key, &pair.key).unwrap();
    eventually("it is taken up", || (send(&bridge, &successor).code == Some(0)).then_some(()));
    assert_eq!(send(&bridge, &authority).code, Some(1), "the old one is not");
}

#[test]
fn a_certificate_that_is_not_valid_is_warned_about_and_measured() {
    let now = SystemTime::now();
    let days = |days: i64| {
        let distance = Duration::from_secs(days.unsigned_abs() * 24 * 60 * 60 + 3600);
        if days < 0 { now - distance } else { now + distance }
    };
    let check = |from: i64, until: i64, expected: Option<&str>| {
        let folder = tempfile::tempdir().unwrap();
        let pair = Pair::new(folder.path(), "bridge");
        Authority::new(folder.path(), "ca.crt").certify_for(&pair, |params| {
            (params.not_before, params.not_after) = (days(from).into(), days(until).into());
        });
        let bridge = Bridge::start(&[
            ("ingress.tls.cert_file", pair.certificate.to_str().unwrap()),
            ("ingress.tls.key_file", pair.key.to_str().unwrap()),
        ]);
        let checked = run(&mut bridge.command("check"));
        assert_eq!(checked.code, Some(0), "{checked:?}");
        let warned = bridge.logged("the certificate in");
        assert_eq!(warned.len(), usize::from(expected.is_some()), "{warned:?}");
        if let Some(text) = expected {
            assert!(warned[0]["fields"]["message"].as_str().unwrap().contains(text), "{warned:?}");
            assert!(checked.stderr.contains(text), "{checked:?}");
        }
        let expiry = bridge.metric("topic_bridge_tls_certificate_expiry_timestamp_seconds");
        let until = days(until).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((expiry - until).abs() < 2.0, "{expiry} {until}");
    };
    check(-1, 20, None);
    check(-20, 13, Some("expires in 13 days"));
    check(-20, -2, Some("has been expired for 2 days"));
    check(1, 20, Some("is not valid before"));
    let metrics = Bridge::start(&[]).get("/metrics").body;
    assert!(!metrics.contains("certificate"), "no certificate, no expiry");
}

pub(crate) fn client_config(
    secured: &Secured,
    protocol: &[u8],
    client: Option<&Pair>,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(secured.authority.issuer.der().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let certificate = CertificateDer::from_pem_file(&pair.certificate).unwrap();
            let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    config
}

/// A connection over TLS that offers one protocol, if the bridge lets it come to that.
pub(crate) async fn connect(
    secured: &Secured,
    protocol: &[u8],
    client: Option<&Pair>,
) -> TlsStream<TcpStream> {
    let config = client_config(secured, protocol, client);
    let stream = TcpStream::connect(secured.bridge.ingress).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
    stream
}

pub(crate) fn request(topic_id: &str) -> Request<Full<Bytes>> {
    let target = signed(TOPIC_CREATED, &[]);
    let body = Full::new(Bytes::from(body(topic_id)));
    Request::post(format!("https://localhost{target}")).body(body).unwrap()
}

pub(crate) fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// After an outage everybody comes back at once, and a resumed session costs the bridge no signature.
#[test]
fn a_client_resumes_its_session_however_many_came_in_between() {
    let secured = secured(&[]);
    let config = Arc::new(client_config(&secured, b"http/1.1", None));
    let call = async |config: Arc<ClientConfig>| {
        let stream = TcpStream::connect(secured.bridge.ingress).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
        let kind = stream.get_ref().1.handshake_kind();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        assert_eq!(sender.send_request(request("topic")).await.unwrap().status(), StatusCode::OK);
        kind
    };
    on_a_runtime(async {
        assert_eq!(call(config.clone()).await, Some(HandshakeKind::Full));
        for _ in 0..150 {
            // Each gets two tickets.
            call(client_config(&secured, b"http/1.1", None).into()).await;
        }
        assert_eq!(call(config.clone()).await, Some(HandshakeKind::Resumed));
    });
}

#[test]
fn a_client_without_a_certificate_is_refused_where_one_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let clients = Authority::new(folder.path(), "clients.crt");
    let client = Pair::new(folder.path(), "client");
    clients.certify(&client);
    let client_ca = clients.file.to_str().unwrap();
    let secured = secured(&[("ingress.tls.client_ca_file", client_ca)]);
    let ended = send(&secured.bridge, &secured.authority);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("answered   0"), "{}", ended.stdout);

    let call = |pair: Pair, topic: &'static str| {
        on_a_runtime(async {
            let stream = connect(&secured, b"http/1.1", Some(&pair)).await;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request(topic)).await.map(|response| response.status())
        })
    };
    let stranger = Pair::new(folder.path(), "stranger");
    Authority::new(folder.path(), "strangers.crt").certify(&stranger);
    assert!(call(stranger, "stranger").is_err());
    assert_eq!(call(client, "client").unwrap(), StatusCode::OK);
    assert_eq!(secured.bridge.topic_ids(), ["client"]);
}

#[test]
fn http_2_is_spoken_with_who_asks_for_it() {
    let secured = secured(&[]);
    on_a_runtime(async {
        let stream = TokioIo::new(connect(&secured, b"h2", None).await);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        let calls = (0..20).map(|number| {
            let mut sender = sender.clone();
            tokio::spawn(async move {
                let answer =
                    sender.send_request(request(&format!("topic {number}"))).await.unwrap();
                assert_eq!(answer.status(), StatusCode::OK);
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, r#"{"ActionStatus":"OK","ErrorInfo":"","ErrorCode":0}"#);
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
    });
    assert_eq!(secured.bridge.events().len(), 20);
}

/// What comes beside the requests, acknowledgements and pings of both sides, is not the begin of one.
#[test]
fn an_idle_connection_of_http_2_outlives_the_limit_of_a_head() {
    let secured = secured(&[("ingress.header_timeout", "500ms"), ("ingress.idle_timeout", "60s")]);
    let address = secured.bridge.ingress;
    let wait_out_two_heads = move || {
        for _ in 0..2 {
            assert!(Connection::open(address).is_closed(), "who sends nothing is cut off");
        }
    };
    on_a_runtime(async {
        let stream = TokioIo::new(connect(&secured, b"h2", None).await);
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_while_idle(true);
        builder.keep_alive_interval(Duration::from_millis(100));
        let (mut sender, connection) = builder.handshake(stream).await.unwrap();
        tokio::spawn(connection);
        for topic in ["one", "two"] {
            let answer = sender.send_request(request(topic)).await.expect(topic);
            assert_eq!(answer.status(), StatusCode::OK);
            answer.into_body().collect().await.unwrap();
            tokio::task::spawn_blocking(wait_out_two_heads).await.unwrap();
        }
    });
    assert_eq!(secured.bridge.topic_ids(), ["one", "two"]);
}

#[test]
fn files_that_are_no_certificate_are_named_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let good = Pair::new(folder.path(), "good");
    let other = Pair::new(folder.path(), "other");
    let authority = Authority::new(folder.path(), "ca.crt");
    authority.certify(&good);
    authority.certify(&other);
    let empty = folder.path().join("empty");
    fs::write(&empty, "").unwrap();
    let check = |certificate: &Path, key: &Path, expected: &[&str]| {
        let mut command = program();
        command.current_dir(&folder);
        for setting in [
            "apps=[{sdk_app_id=1,tokens=[\"x\"]}]".to_owned(),
            "ingress.listen=127.0.0.1:0".to_owned(),
            "admin.listen=127.0.0.1:0".to_owned(),
            format!("ingress.tls.cert_file={}", certificate.display()),
            format!("ingress.tls.key_file={}", key.display()),
        ] {
            command.args(["--set", &setting]);
        }
        let served = run(&mut command);
        check_refused(&served, CONFIGURATION, expected);
        let checked = run(command.arg("check"));
        assert_eq!((checked.code, checked.stderr), (served.code, served.stderr));
    };
    check(&good.certificate, &other.key, &["ingress.tls", "other.key does not fit"]);
    check(&empty, &good.key, &["there is no certificate in", "empty"]);
    check(&good.certificate, &empty, &["cannot read a private key from"]);
    check(&folder.path().join("nowhere"), &good.key, &["cannot read certificates from", "nowhere"]);
}
