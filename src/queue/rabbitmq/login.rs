//! Login of the connections, as the broker knows it. Messages name it as their `user_id`, and by
//! that workers know their own copies (see `origin`).
//!
//! `broker.url` names a user, but with a client certificate or an OAuth 2 token the broker may take
//! the login from there. It then refuses each message that names the user of the URL, and says who
//! the login is. That name is learnt here: before a session consumes (`login_check`), and from a
//! refusal.

use lapin::types::ShortString;
use parking_lot::RwLock;

use super::errors;
use super::fields::short;

/// The user of `broker.url`, or the login that the broker has named in its place.
#[derive(Debug)]
pub(super) struct Login {
    /// `None` where only a certificate names it; then no message names a user.
    current: Option<RwLock<ShortString>>,
}

impl Login {
    /// Starts with the user of the URL.
    pub(super) fn new(named: Option<ShortString>) -> Self {
        Self { current: named.map(RwLock::new) }
    }

    /// Returns the login; `None` if nobody names it.
    pub(super) fn user(&self) -> Option<ShortString> {
        let current = self.current.as_ref()?;
        Some(current.read().clone())
    }

    /// Takes the login from a refusal of the broker. Returns true if this was one.
    pub(super) fn learn(&self, refusal: &lapin::Error) -> bool {
        let (Some(current), Some(user)) = (&self.current, errors::other_login(refusal)) else { return false };
        let Ok(user) = short(&user) else { return false };
        tracing::warn!(
            event = "login_renamed",
            login = user.as_str(),
            next = "messages carry that name as user_id",
            remedy = "name it in `publishers`, and as the user in broker.url",
            "the broker knows this login by another name than broker.url"
        );
        *current.write() = user;
        true
    }
}

#[cfg(test)]
mod tests {
    use lapin::ErrorKind;
    use lapin::protocol::AMQPError;

    use super::*;

    fn refusal(code: u16, text: &str) -> lapin::Error {
        ErrorKind::ProtocolError(AMQPError::from_id(code, text.into()).unwrap()).into()
    }

    #[test]
    fn the_login_is_learnt_from_the_refusal_that_names_it() {
        let said = "PRECONDITION_FAILED - user_id property set to 'named' but authenticated user was 'CN=worker,O=x'";
        let login = Login::new(Some("named".into()));
        assert!(login.learn(&refusal(406, said)));
        assert_eq!(login.user(), Some("CN=worker,O=x".into()));
        for (code, text) in [
            (406, "PRECONDITION_FAILED - invalid expiration 'x'"),
            // A text that is cut names nobody.
            (406, "PRECONDITION_FAILED - user_id property set to 'a' but authenticated user was 'b"),
            (406, "PRECONDITION_FAILED - user_id property set to 'a' but authenticated user was ''"),
            (403, said),
        ] {
            assert!(!login.learn(&refusal(code, text)), "{code} {text}");
        }
        assert_eq!(login.user(), Some("CN=worker,O=x".into()));
        assert!(!Login::new(None).learn(&refusal(406, said)), "no message names a user");
    }
}
