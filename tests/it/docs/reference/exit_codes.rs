//! The exit codes.

use consign::cli::Exit;
use consign::runtime::shutdown::TerminationSignal;

use crate::docs::generated::table;

const EXITS: [Exit; 10] = [
    Exit::Done,
    Exit::Failed,
    Exit::Usage,
    Exit::Problem,
    Exit::Unavailable,
    Exit::Partly,
    Exit::Denied,
    Exit::Config,
    Exit::Signal(TerminationSignal::Interrupt),
    Exit::Signal(TerminationSignal::Terminate),
];

/// A new exit does not compile here; add it to [`EXITS`], too.
fn meaning(exit: Exit) -> (&'static str, &'static str) {
    match exit {
        Exit::Done => ("success", "nothing"),
        Exit::Failed => ("the command failed, or nothing of it succeeded", "read the message"),
        Exit::Usage => ("the arguments are invalid", "correct the command line"),
        Exit::Problem => {
            ("a check found a problem, or every dead letter was skipped", "read the finding and its remedy")
        }
        Exit::Unavailable => ("the broker, a worker or a service is unavailable", "try again later"),
        Exit::Partly => ("partly done", "read the summary; repeat the command if it says so"),
        Exit::Denied => ("the broker or AWS refuses our login, identity or permission", "correct the permission"),
        Exit::Config => ("the configuration is invalid or incomplete", "correct it; all problems are listed"),
        Exit::Signal(TerminationSignal::Interrupt) => ("stopped immediately by SIGINT (Ctrl-C)", "nothing"),
        Exit::Signal(TerminationSignal::Terminate) => ("stopped immediately by SIGTERM", "nothing"),
    }
}

pub(super) fn all() -> String {
    let row = |exit: Exit| {
        let (meaning, action) = meaning(exit);
        [exit.code().to_string(), meaning.to_owned(), action.to_owned()]
    };
    table(["exit code", "meaning", "what to do"], EXITS.map(row))
}
