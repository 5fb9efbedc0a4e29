//! Vendors are asked by https: an emulator behind TLS, and the kit's own front before it. What speaks https is the same for every vendor.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::docker::{reach::authority, support::which};
use crate::emulate::sdk::{Emulator, pocketenv};

/// Carries what arrives by TLS to a service without; its port.
async fn tls_before(url: &str, certificates: &Path) -> u16 {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let service = url.strip_prefix("http://").unwrap().to_owned();
    let file = |name: &str| certificates.join(name);
    let chain = CertificateDer::pem_file_iter(file("server.pem")).unwrap().collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(file("server-key.pem")).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, service) = (acceptor.clone(), service.clone());
            tokio::spawn(async move {
                let mut client = acceptor.accept(client).await?;
                let mut service = TcpStream::connect(service).await?;
                tokio::io::copy_bidirectional(&mut client, &mut service).await
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn by_https() {
    if which("openssl").is_none() {
        eprintln!("SKIPPED: openssl is missing, see scripts/setup-test-deps");
        return;
    }
    let home = tempfile::Builder::new().prefix("pocketenv-it-").tempdir().unwrap();
    let certificates = home.path().join("authority");
    authority(&certificates);
    let emulator = Emulator::start("e2b", home.path(), &[]);
    let url = format!("https://127.0.0.1:{}", tls_before(&emulator.url, &certificates).await);
    let kit = |case: &str| {
        let mut command = pocketenv(home.path());
        command.args(["provider", "test", "e2b", "--case", case, "-o", "json"]).env("E2B_API_KEY", "local");
        command
            .env("E2B_API_URL", &url)
            .env("E2B_SANDBOX_URL", &url)
            .env("SSL_CERT_FILE", certificates.join("ca.pem"));
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    // One of each kind: refused, broken off, and streams of commands.
    for (case, count) in [("service/throttled", 1), ("service/cut", 1), ("service/output", 2)] {
        let output = kit(case).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
        assert!(output.status.success(), "{report:#}\n{said}");
        let passed =
            report["cases"].as_array().unwrap().iter().filter(|case| case["result"] == "passed").count();
        assert_eq!(passed, count, "{report:#}");
    }
    emulator.stop();
}
