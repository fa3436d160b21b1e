//! What goes wrong with TLS on the way to the broker, in words, each with the remedy.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// The TLS error in an I/O error, explained; none where it is something else.
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
            "what answers there does not speak TLS; correct the port, or the scheme, of broker.url".to_owned()
        }
        other => format!("TLS: {other}"),
    }
}

/// Why we do not accept the broker.
fn certificate(refused: &CertificateError) -> String {
    match refused {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the broker's certificate is signed by a CA that is not trusted here; give that CA's certificate as broker.ca_file".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "the broker's certificate is for another host than that of broker.url ({refused}); use a host name that is in it, or have \
             it issued for this one"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the broker's certificate has run out ({refused}); renew it, or set this machine's clock")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("the broker's certificate is not valid yet ({refused}); set this machine's clock")
        }
        other => format!("the broker's certificate is not accepted: {other}"),
    }
}

/// Why the broker does not accept us.
fn alerted(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "the broker wants a client certificate; set broker.client_cert_file and broker.client_key_file".to_owned()
        }
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateRevoked
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::DecryptError => format!(
            "the broker does not accept the client certificate ({alert:?}); give one in broker.client_cert_file that is signed by a CA it \
             trusts"
        ),
        // Before TLS 1.3 that is all it says when there is no client certificate.
        AlertDescription::HandshakeFailure => {
            "the broker broke the TLS handshake off; it may want a client certificate (broker.client_cert_file and \
             broker.client_key_file), or other TLS versions"
                .to_owned()
        }
        other => format!("the broker broke TLS off: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(error: Error) -> String {
        // As the connection gives it: once more wrapped.
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
            let text = said(error.clone());
            assert!(text.contains(remedy), "{error:?}: {text}");
        }
    }

    #[test]
    fn what_is_no_tls_error_is_left_alone() {
        assert_eq!(explained(&io::ErrorKind::ConnectionRefused.into()), None);
        assert_eq!(explained(&io::Error::other("x")), None);
    }
}
