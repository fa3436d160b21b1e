//! Errors of lapin, classified and in words.

use lapin::ErrorKind;

use super::tls;
use crate::queue::QueueError;

/// AMQP 0-9-1 `NOT_FOUND`.
pub(super) const NOT_FOUND: u16 = 404;
/// AMQP 0-9-1 `ACCESS_REFUSED`.
pub(super) const ACCESS_REFUSED: u16 = 403;
/// AMQP 0-9-1 `PRECONDITION_FAILED`, which refuses a property of a message.
pub(super) const PRECONDITION_FAILED: u16 = 406;
/// AMQP 0-9-1 `NOT_ALLOWED`, which refuses a virtual host.
const NOT_ALLOWED: u16 = 530;
/// AMQP 0-9-1 `CONNECTION_FORCED`: an operator closes the connection, or stops the broker.
const CONNECTION_FORCED: u16 = 320;
/// AMQP 0-9-1 `RESOURCE_LOCKED`: another connection owns an exclusive queue.
pub(super) const RESOURCE_LOCKED: u16 = 405;

/// Classifies the error of the call `what`: missing topology, denied access, or a broken
/// connection.
pub(super) fn of_call(what: &str, error: &lapin::Error) -> QueueError {
    match reply_code(error) {
        Some(NOT_FOUND) => missing(error),
        Some(ACCESS_REFUSED | NOT_ALLOWED) => QueueError::Denied(format!("{what}: {}", text(error))),
        _ => QueueError::Unavailable(format!("{what}: {}", text(error))),
    }
}

/// As [`of_call`], for the call that connects: a server of another protocol is a fault of the
/// configuration.
pub(super) fn of_connect(what: &str, error: &lapin::Error) -> QueueError {
    const REMEDY: &str = "the server does not speak AMQP 0-9-1; correct the port, or the scheme, of broker.url";
    match error.kind() {
        ErrorKind::ParsingError(_) => QueueError::Unavailable(format!("{what}: {REMEDY}")),
        _ => of_call(what, error),
    }
}

/// Returns the broker's reply code.
fn reply_code(error: &lapin::Error) -> Option<u16> {
    if let ErrorKind::ProtocolError(refusal) = error.kind() { Some(refusal.get_id()) } else { None }
}

/// Returns true if the broker's reply code is `code`.
pub(super) fn is(error: &lapin::Error, code: u16) -> bool {
    reply_code(error) == Some(code)
}

/// Returns the login that the broker names when it refuses the `user_id` of a message. RabbitMQ
/// 3.10 and 4.x use the same words.
pub(super) fn other_login(error: &lapin::Error) -> Option<String> {
    let text = if is(error, PRECONDITION_FAILED) { text(error) } else { return None };
    let (_, user) = text.split_once("user_id property set to '")?.1.split_once("' but authenticated user was '")?;
    user.strip_suffix('\'').filter(|user| !user.is_empty()).map(str::to_owned)
}

/// Returns true when the broker rejects the request itself, rather than being stopped.
pub(super) fn is_rejection(error: &lapin::Error) -> bool {
    reply_code(error).is_some_and(|code| code != CONNECTION_FORCED)
}

/// Returns the broker's 404 with the remedy.
pub(super) fn missing(error: &lapin::Error) -> QueueError {
    QueueError::Topology(format!("{}; run `consign topology apply`", text(error)))
}

/// Returns a closure for `map_err` that names the permission a denied call requires: the broker
/// names only the resource.
pub(super) fn requires(permission: String) -> impl FnOnce(QueueError) -> QueueError {
    move |problem| match problem {
        QueueError::Denied(why) => QueueError::Denied(format!("{why}; this takes the permission {permission}")),
        problem => problem,
    }
}

/// Returns the error as an unavailable broker.
pub(super) fn unavailable(error: &lapin::Error) -> QueueError {
    QueueError::Unavailable(text(error))
}

/// Describes the error with the broker's own text and without internals.
pub(super) fn text(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(refusal) => refusal.get_message().to_string(),
        ErrorKind::IOError(io) => tls::explained(io).unwrap_or_else(|| io.to_string()),
        ErrorKind::ParsingError(_) => "the broker sent data that is not AMQP 0-9-1".to_owned(),
        ErrorKind::MissingHeartbeatError => "the broker stopped answering heartbeats".to_owned(),
        ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidConnectionState(_) | ErrorKind::InvalidChannel(_) => {
            "the connection is closed".to_owned()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_login_differs_from_an_absent_broker() {
        let answered = |code| {
            let refusal = lapin::protocol::AMQPError::from_id(code, "no".into()).unwrap();
            of_call("connecting", &ErrorKind::ProtocolError(refusal).into())
        };
        assert!(matches!(answered(403), QueueError::Denied(_)), "the login");
        assert!(matches!(answered(530), QueueError::Denied(_)), "the virtual host");
        assert!(matches!(answered(404), QueueError::Topology(_)));
        assert!(matches!(answered(320), QueueError::Unavailable(_)), "the broker is being stopped");
    }

    #[test]
    fn a_server_of_another_protocol_is_named_with_the_remedy() {
        let problem = amq_protocol::frame::parse_frame(&b"HTTP/1.1 400 Bad Request\r\n"[..]).unwrap_err();
        assert!(!problem.is_incomplete());
        let error = ErrorKind::ParsingError(problem).into();
        let refused = of_connect("connecting to h:80", &error).to_string();
        let expected =
            "connecting to h:80: the server does not speak AMQP 0-9-1; correct the port, or the scheme, of broker.url";
        assert!(refused.ends_with(expected), "{refused}");
        assert_eq!(text(&error), "the broker sent data that is not AMQP 0-9-1", "it did before");
    }
}
