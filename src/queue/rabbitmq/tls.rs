//! TLS errors of the connection to the broker, each explained with the remedy.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// Explains the TLS error in an I/O error; `None` for other errors.
pub(super) fn explained(error: &io::Error) -> Option<String> {
    let inner = error.get_ref()?;
    match inner.downcast_ref::<io::Error>() {
        Some(nested) => explained(nested),
        None => inner.downcast_ref::<Error>().map(explain),
    }
}

fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(refused) => certificate(refused),
        Error::AlertReceived(alert) => alerted(*alert),
        Error::InvalidMessage(_) => {
            "the server does not speak TLS; correct the port, or the scheme, of broker.url".to_owned()
        }
        other => format!("TLS: {other}"),
    }
}

/// Explains why this side rejects the broker.
fn certificate(refused: &CertificateError) -> String {
    match refused {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the broker's certificate is signed by a CA that is not trusted here; give that CA's certificate as broker.ca_file".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "the broker's certificate is for another host than that of broker.url ({refused}); use a host name that \
             the certificate names, or a certificate for this one"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the broker's certificate has expired ({refused}); renew it, or set this machine's clock")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("the broker's certificate is not valid yet ({refused}); set this machine's clock")
        }
        other => format!("the broker's certificate is not accepted: {other}"),
    }
}

/// Explains why the broker rejects this side.
fn alerted(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "the broker requires a client certificate; set broker.client_cert_file and broker.client_key_file"
                .to_owned()
        }
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateRevoked
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::DecryptError => format!(
            "the broker does not accept the client certificate ({alert:?}); set broker.client_cert_file to one that is signed by a CA it \
             trusts"
        ),
        // Before TLS 1.3 this is the only sign of a missing client certificate.
        AlertDescription::HandshakeFailure => {
            "the broker aborted the TLS handshake; it may require a client certificate (broker.client_cert_file and \
             broker.client_key_file), or other TLS versions"
                .to_owned()
        }
        other => format!("the broker aborted TLS: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explanation(error: Error) -> String {
        // Wrapped twice, as the connection returns it.
        explained(&io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error))).unwrap()
    }

    #[test]
    fn each_cause_names_its_remedy() {
        let cases = [
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), "broker.ca_file"),
            (Error::InvalidCertificate(CertificateError::NotValidForName), "host"),
            (Error::InvalidCertificate(CertificateError::Expired), "renew"),
            (Error::AlertReceived(AlertDescription::CertificateRequired), "broker.client_cert_file"),
            (Error::AlertReceived(AlertDescription::UnknownCA), "signed by a CA it trusts"),
            (Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType), "port"),
        ];
        for (error, remedy) in cases {
            let text = explanation(error.clone());
            assert!(text.contains(remedy), "{error:?}: {text}");
        }
    }

    #[test]
    fn other_errors_have_no_explanation() {
        assert_eq!(explained(&io::ErrorKind::ConnectionRefused.into()), None);
        assert_eq!(explained(&io::Error::other("x")), None);
    }
}
