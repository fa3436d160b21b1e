//! Credentials of an access key. A secret kept in a file is read again at each fetch, so that a
//! rotated one is picked up.

use aws_sdk_s3::config::Credentials;
use secrecy::{ExposeSecret as _, SecretString};

use crate::domain::destination::SecretSource;
use crate::domain::outcome::{Failure, Reason};

pub(super) async fn credentials(access_key_id: &str, secret: &SecretSource) -> Result<Credentials, Failure> {
    let secret = read(secret).await?;
    Ok(Credentials::new(access_key_id, secret.expose_secret(), None, None, "consign access key"))
}

async fn read(secret: &SecretSource) -> Result<SecretString, Failure> {
    let path = match secret {
        SecretSource::Inline(secret) => return Ok(secret.clone()),
        SecretSource::File(path) => path,
    };
    match tokio::fs::read_to_string(path).await {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().into()),
        Ok(_) => Err(unreadable("it is empty")),
        Err(error) => Err(unreadable(&error.to_string())),
    }
}

/// The path is not quoted: it may be the secret itself, written to the wrong key.
fn unreadable(why: &str) -> Failure {
    let message = format!("the file of auth.secret_access_key_file can't be read: {why}");
    Failure::new(Reason::AccessKeyInvalid, message)
        .hint("put the secret access key into that file, readable for the worker, or configure another one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rotated_secret_is_picked_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let source = SecretSource::File(path.clone());
        assert_eq!(credentials("AKIA1", &source).await.unwrap_err().reason, Reason::AccessKeyInvalid);
        for secret in ["one", "two"] {
            std::fs::write(&path, format!("{secret}\n")).unwrap();
            assert_eq!(credentials("AKIA1", &source).await.unwrap().secret_access_key(), secret);
        }
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(credentials("AKIA1", &source).await.unwrap_err().reason, Reason::AccessKeyInvalid);
    }
}
