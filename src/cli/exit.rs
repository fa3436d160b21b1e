//! Ends of a command, with their exit codes.

use crate::queue::QueueError;
use crate::runtime::shutdown::TerminationSignal;

/// End of a command, which decides the exit code of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: everything was done.
    Done,
    /// 1: it failed.
    Failed,
    /// 2: the arguments are invalid.
    Usage,
    /// 3: a check found a problem.
    Problem,
    /// 69: the broker or a source is unavailable.
    Unavailable,
    /// 75: partly done; repeating the command may do the rest.
    Partly,
    /// 77: access was denied.
    Denied,
    /// 78: the configuration is wrong.
    Config,
    /// 130 or 143: a signal ended it at once.
    Signal(TerminationSignal),
}

impl Exit {
    /// All ends, in the order of their codes.
    pub const ALL: [Self; 10] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::Problem,
        Self::Unavailable,
        Self::Partly,
        Self::Denied,
        Self::Config,
        Self::Signal(TerminationSignal::Interrupt),
        Self::Signal(TerminationSignal::Terminate),
    ];

    /// Returns the exit code of the contract.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Problem => 3,
            Self::Unavailable => 69,
            Self::Partly => 75,
            Self::Denied => 77,
            Self::Config => 78,
            Self::Signal(signal) => signal.exit_code(),
        }
    }

    /// Returns the end for an error of the queue.
    pub(super) fn of(problem: &QueueError) -> Self {
        match problem {
            QueueError::Unavailable(_) | QueueError::Lost => Self::Unavailable,
            QueueError::Denied(_) => Self::Denied,
            QueueError::Unusable(_) => Self::Config,
            QueueError::Refused(_) | QueueError::Topology(_) | QueueError::Busy(_) => Self::Failed,
        }
    }
}
