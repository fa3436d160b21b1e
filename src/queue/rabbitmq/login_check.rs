//! Check of the login before a session consumes: workers must know by which name the broker
//! verifies their messages.

use lapin::types::ShortString;
use lapin::{BasicProperties, Channel};

use super::channel::with_confirms;
use super::connection::{ScopedConnection, call};
use super::errors;
use super::login::Login;
use super::publisher::{OutgoingMessage, send};
use crate::queue::QueueError;

/// Queue that nobody declares: the broker drops the message that tries the login.
const NO_QUEUE: &str = "consign-login";
/// Remedy where the name can't be learnt.
const REMEDY: &str = "let broker.url name the user that the broker finds in the certificate or token";

/// Asks the broker if it knows the login by its name, by a message that reaches no queue, and
/// learns the other name if not. Where the login may not publish to the default exchange, this
/// stays unknown until the first message.
///
/// # Errors
/// `Denied` if the broker does not say by which name it knows the login.
pub(super) async fn check_login(connection: &ScopedConnection, login: &Login) -> Result<(), QueueError> {
    let Some(user) = login.user() else { return Ok(()) };
    let channel = with_confirms(connection.open_channel().await?).await?;
    match call("checking the login", probe(&channel, user)).await? {
        Err(refusal) if errors::is(&refusal, errors::PRECONDITION_FAILED) && !login.learn(&refusal) => {
            Err(QueueError::Denied(format!("{}; {REMEDY}", errors::text(&refusal))))
        }
        _ => Ok(()),
    }
}

/// Publishes a message that names `user`; returns the refusal, if any.
async fn probe(channel: &Channel, user: ShortString) -> lapin::Result<Result<(), lapin::Error>> {
    let message = OutgoingMessage {
        exchange: String::new(),
        routing_key: NO_QUEUE.to_owned(),
        body: bytes::Bytes::new(),
        properties: BasicProperties::default().with_user_id(user),
        mandatory: false,
    };
    match send(channel, &message).await {
        Ok(Err(refusal)) if refusal.is_amqp_soft_error() => Ok(Err(refusal)),
        Ok(Err(broken)) => Err(broken),
        // Its names are constants that fit.
        Err(_) | Ok(Ok(_)) => Ok(Ok(())),
    }
}
