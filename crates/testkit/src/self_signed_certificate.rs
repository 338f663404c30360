//! Certificates for servers of other programs.

use std::{env, fs, path::PathBuf, process::Command};

use crate::free_port;

/// A certificate that is signed with its own key, both as files in a temporary directory. Dropping this value removes them.
#[derive(Debug)]
pub struct SelfSignedCertificate {
    directory: PathBuf,
}

impl SelfSignedCertificate {
    /// Makes a certificate for this name, such as `DNS:localhost` or `IP:127.0.0.1`.
    pub fn new(subject_alt_name: &str) -> Self {
        // The number of a free port makes the name unique: no other test has this port.
        let name = format!("tower-push-tls-{}-{}", std::process::id(), free_port());
        let certificate = Self {
            directory: env::temp_dir().join(name),
        };
        fs::create_dir_all(&certificate.directory).unwrap();
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes"])
            .args(["-days", "2", "-subj", "/CN=localhost", "-addext"])
            .arg(format!("subjectAltName={subject_alt_name}"))
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
            .arg(certificate.key_path())
            .arg("-out")
            .arg(certificate.path())
            .output()
            .expect("run scripts/setup first");
        assert!(made.status.success(), "{made:?}");
        certificate
    }

    /// Returns the path of the certificate.
    pub fn path(&self) -> PathBuf {
        self.directory.join("certificate.pem")
    }

    /// Returns the path of the key.
    pub fn key_path(&self) -> PathBuf {
        self.directory.join("key.pem")
    }
}

impl Drop for SelfSignedCertificate {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
