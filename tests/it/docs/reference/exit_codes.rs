//! The exit codes.

use consign::cli::Exit;
use consign::runtime::shutdown::TerminationSignal;

use crate::docs::generated::table;

/// A new exit does not compile here; add it to [`Exit::ALL`], too.
fn meaning(exit: Exit) -> (&'static str, &'static str) {
    match exit {
        Exit::Done => ("success", "nothing"),
        Exit::Failed => ("the command failed, or nothing of it succeeded", "read the message"),
        Exit::Usage => ("the arguments are invalid", "correct the command line"),
        Exit::Problem => {
            ("a check found a problem, or every dead letter was refused", "read the finding and its remedy")
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
    table(["exit code", "meaning", "what to do"], Exit::ALL.map(row))
}
