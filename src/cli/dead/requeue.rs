//! `consign dead requeue`.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use tokio::time::Instant;
use url::Url;

use super::filter::{Choice, Filter};
use super::gate::Gate;
use super::report::Report;
use super::{Stop, demand_a_choice, open};
use crate::cli::Exit;
use crate::cli::check::GIVING_UP;
use crate::cli::rate::Rate;
use crate::cli::status::{Asker, worker_url};
use crate::cli::text::plain;
use crate::config::Config;
use crate::queue::{DeadLetter, DeadLetters};
use crate::runtime::shutdown::TerminationSignal;

/// A letter is held while its turn is waited for, and the broker takes that for half an hour at most.
const LONGEST_WAIT: Duration = Duration::from_mins(15);

/// Which letters, and how.
#[derive(Debug, Clone, Args)]
pub struct RequeueArgs {
    /// All letters there are
    #[arg(long)]
    all: bool,
    /// Say what would be done, and do nothing; connections are not tested
    #[arg(long)]
    dry_run: bool,
    /// Requeue no faster than this, such as 30/s, 30/min or 30/h
    #[arg(long, value_name = "N/UNIT", value_parser = Rate::parse)]
    rate: Option<Rate>,
    /// A worker's admin endpoint, such as http://127.0.0.1:9464, to be asked for open circuits; may be given again
    #[arg(long, value_name = "URL", value_parser = worker_url)]
    admin: Vec<Url>,
    /// Also to destinations whose circuit is open or whose connection test fails (none is tested), and jobs past their expires_at
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    filter: Filter,
}

/// Requeues. Interrupted, it leaves every letter either where it was or requeued.
pub(super) async fn execute(args: RequeueArgs, config: &Config, json: bool) -> Result<Exit, Stop> {
    demand_a_choice(&args.filter, args.all)?;
    let pause = args.rate.map(Rate::pause);
    if pause.is_some_and(|pause| pause > LONGEST_WAIT) {
        let what =
            "--rate: no slower than 4/h, as each letter is held while its turn is waited for; use --limit for fewer";
        return Err(Stop::Usage(what.to_owned()));
    }
    let asker = Asker::new().map_err(Stop::Failed)?;
    let mut letters = open(config).await?;
    let mut report = Report::new(letters.count(), json, if args.dry_run { "would be requeued" } else { "requeued" });
    let tests = !args.force && !args.dry_run;
    let gate = (!args.force).then(|| Gate::new(config, &args.admin, asker, !args.dry_run));
    let work = Work { dry_run: args.dry_run, force: args.force, gate, pause, next_at: None, late: 0 };
    let ended = tokio::select! {
        () = work.run(&mut letters, args.filter.choice(), &mut report) => None,
        Ok(()) = tokio::signal::ctrl_c() => Some(TerminationSignal::Interrupt),
    };
    if let Some(signal) = ended {
        report.sum_up("requeued before the interruption");
        letters.close().await;
        if tests {
            // One that was under way gives up what it had begun.
            tokio::time::sleep(GIVING_UP).await;
        }
        return Ok(Exit::Signal(signal));
    }
    letters.close().await;
    Ok(report.end(if args.dry_run { "would be requeued" } else { "requeued" }))
}

struct Work<'a> {
    dry_run: bool,
    force: bool,
    /// `None`: every destination may have its jobs.
    gate: Option<Gate<'a>>,
    /// Between two jobs.
    pause: Option<Duration>,
    next_at: Option<Instant>,
    /// Jobs past their time.
    late: u64,
}

impl Work<'_> {
    async fn run(mut self, letters: &mut DeadLetters, mut choice: Choice, report: &mut Report) {
        while !choice.is_complete() {
            let letter = match letters.next().await {
                Ok(Some(letter)) => letter,
                Ok(None) => return,
                Err(problem) => return report.stopped(problem),
            };
            report.looked();
            if choice.takes(&letter) && !self.one(letters, &letter, report).await {
                return;
            }
        }
    }

    /// One letter. Whether it makes sense to go on.
    async fn one(&mut self, letters: &mut DeadLetters, letter: &DeadLetter, report: &mut Report) -> bool {
        if let Some(why) = self.refusal(letter, report).await {
            report.refused(letter, &why);
            return true;
        }
        let run = letter.run().saturating_add(1);
        if self.dry_run {
            report.done(letter, Some(run));
            return true;
        }
        self.wait().await;
        match letters.requeue().await {
            Ok(()) => {
                report.done(letter, Some(run));
                true
            }
            Err(problem) => report.failed(letter, &problem),
        }
    }

    async fn refusal(&mut self, letter: &DeadLetter, report: &Report) -> Option<String> {
        if let Some(why) = self.too_late(letter) {
            if self.late == 1 {
                report.say(&format!("{why}; the letters of all such jobs stay (--force requeues them all the same)"));
            }
            return Some(why);
        }
        let answer = self.gate.as_mut()?.ask(letter).await;
        let name = letter.destination().map_or_else(|| "a destination without a name".to_owned(), plain);
        if answer.is_news {
            let hint = if answer.refusal.is_some() {
                "; its letters stay (--force requeues them all the same, without a test)"
            } else {
                ""
            };
            let said = answer.refusal.iter().chain(&answer.remark);
            said.for_each(|what| report.say(&format!("{name}: {what}{hint}")));
        }
        answer.refusal
    }

    /// A worker would end it as expired at once, and nothing would be left of it.
    fn too_late(&mut self, letter: &DeadLetter) -> Option<String> {
        let expires_at = letter.job().ok()?.expires_at?;
        if self.force || expires_at > Timestamp::now() {
            return None;
        }
        self.late += 1;
        let job = letter.job_id().map_or_else(String::new, plain);
        Some(format!("{job}: its expires_at ({expires_at:.0}) is past"))
    }

    async fn wait(&mut self) {
        let Some(pause) = self.pause else { return };
        if let Some(at) = self.next_at {
            tokio::time::sleep_until(at).await;
        }
        self.next_at = Some(Instant::now() + pause);
    }
}
