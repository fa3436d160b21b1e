//! Examples at the end of each command's help. A test parses every one of them.

/// `consign`.
#[cfg(feature = "dev")]
pub(super) const CONSIGN: &str = "\
Examples:
  # Try consign on this machine, without a broker and without AWS
  consign dev
  # Check the configuration, then test the connection to a destination
  consign config validate -c consign.toml
  consign check acme -c consign.toml
  # Run the worker
  consign run -c consign.toml";

/// `consign` without `consign dev`.
#[cfg(not(feature = "dev"))]
pub(super) const CONSIGN: &str = "\
Examples:
  # Check the configuration, then test the connection to a destination
  consign config validate -c consign.toml
  consign check acme -c consign.toml
  # Run the worker
  consign run -c consign.toml";

/// `consign run`.
pub(super) const RUN: &str = "\
Examples:
  # Run the worker with one configuration file
  consign run -c consign.toml
  # Read the destinations from a directory, and override one setting
  consign run -c consign.toml -c destinations.d --set worker.slots=32
  # Take the broker's URL from a secret that is mounted as a file
  consign run -c consign.toml --set broker.url_file=/run/secrets/amqp-url";

/// `consign dev`.
#[cfg(feature = "dev")]
pub(super) const DEV: &str = "\
Examples:
  # Deliver the sample jobs and show the status page until Ctrl-C
  consign dev
  # Deliver a file of your own, then exit
  consign dev --once --file report.csv
  # Keep buckets, queue and configuration, and continue with them next time
  consign dev --data-dir ./dev";

/// `consign check`.
pub(super) const CHECK: &str = "\
Examples:
  # Test the broker and the worker's own AWS identity
  consign check -c consign.toml
  # Test every permission that a destination needs
  consign check acme -c consign.toml
  # Write the result as JSON, for a script
  consign check acme -c consign.toml --json";

/// `consign enqueue`.
pub(super) const ENQUEUE: &str = "\
Examples:
  # Publish one job, and wait for its outcome
  consign enqueue --source https://exports.example.com/a.csv --to acme \\
      --key a.csv --wait
  # Publish the jobs of a file, one JSON object per line
  consign enqueue jobs.ndjson
  # Publish jobs from another program to the backfill lane
  jq -c '.jobs[]' export.json | consign enqueue - --lane backfill";

/// `consign dead`.
pub(super) const DEAD: &str = "\
Examples:
  # List the dead letters of one destination
  consign dead list --destination acme
  # Show why a job was not delivered
  consign dead show acme/google_ads/2026-11-22
  # Requeue all jobs that failed for this reason, once it is fixed
  consign dead requeue --reason kms_denied";

/// `consign dead list`.
pub(super) const DEAD_LIST: &str = "\
Examples:
  # List all dead letters, and count them by reason
  consign dead list
  # List those of one destination from the last day
  consign dead list --destination acme --newer-than 24h
  # Write the ids of the jobs that were denied access
  consign dead list --reason access_denied --json | jq -r .job_id";

/// `consign dead show`.
pub(super) const DEAD_SHOW: &str = "\
Examples:
  # Show a dead letter by the id of its job
  consign dead show acme/google_ads/2026-11-22
  # Show it by its letter id, or the beginning of it
  consign dead show 1f3a
  # Read the job that it contains
  consign dead show acme/google_ads/2026-11-22 --json | jq .job";

/// `consign dead requeue`.
pub(super) const DEAD_REQUEUE: &str = "\
Examples:
  # See which jobs would be requeued, then repeat it without --dry-run
  consign dead requeue --reason kms_denied --dry-run
  # Requeue the jobs of a backfill, slowly
  consign dead requeue --job 'acme/2025-*' --lane backfill --rate 10/s
  # Requeue everything, and ask a worker for open circuit breakers first
  consign dead requeue --all --admin http://127.0.0.1:9464
  # Deliver a job although a newer refresh of its object was delivered
  consign dead requeue --job acme/google_ads/2026-11-22 --as-new";

/// `consign dead discard`.
pub(super) const DEAD_DISCARD: &str = "\
Examples:
  # See which dead letters would be removed
  consign dead discard --older-than 30d --dry-run
  # Remove those of one reason after a confirmation
  consign dead discard --reason source_not_found
  # Remove one letter from a script
  consign dead discard --id 1f3a --yes";

/// `consign dead export`.
pub(super) const DEAD_EXPORT: &str = "\
Examples:
  # Keep a copy of all dead letters
  consign dead export letters.ndjson
  # Export those of one destination, compressed
  consign dead export - --destination acme | gzip > acme.ndjson.gz";

/// `consign dead import`.
pub(super) const DEAD_IMPORT: &str = "\
Examples:
  # Add exported letters to the dead letters
  consign dead import letters.ndjson
  # Add them to the queue of another configuration
  consign dead import letters.ndjson -c staging.toml";

/// `consign status`.
pub(super) const STATUS: &str = "\
Examples:
  # Show this configuration's worker, the queues and failing destinations
  consign status -c consign.toml
  # Ask two workers
  consign status --admin http://10.0.0.5:9464 --admin http://10.0.0.6:9464
  # Repeat every 2 seconds
  consign status --watch";

/// `consign status reset`.
pub(super) const STATUS_RESET: &str = "\
Examples:
  # Retry the waiting jobs of a destination once its problem is fixed
  consign status reset acme
  # Test the connection first; a passing test resets it, too
  consign check acme";

/// `consign backfill`.
pub(super) const BACKFILL: &str = "\
Examples:
  # See the jobs of a range without publishing them
  consign backfill --template ads.json --from 2026-01-01 --to 2026-01-31 \\
      --dry-run
  # Publish them, and wait for their outcomes
  consign backfill --template ads.json --from 2026-01-01 --to 2026-01-31 --wait
  # Publish one job per month with a placeholder, at most 30 per minute
  consign backfill --template ads.json --var region=eu --from 2024-01-01 \\
      --to 2026-01-01 --every 1month --rate 30/min
  # Show the status of a backfill
  consign backfill status ads-2026";

/// `consign backfill status`.
pub(super) const BACKFILL_STATUS: &str = "\
Examples:
  # Count the outcomes of a backfill, and show its failures by reason
  consign backfill status ads-2026
  # Also ask a worker why jobs are pending
  consign backfill status ads-2026 --admin http://127.0.0.1:9464";

/// `consign backfill cancel`.
pub(super) const BACKFILL_CANCEL: &str = "\
Examples:
  # Skip the jobs of a backfill that have not started
  consign backfill cancel ads-2026
  # Cancel it where its record is in another place
  consign backfill cancel ads-2026 --record ads-2026.ndjson";

/// `consign policy`.
pub(super) const POLICY: &str = "\
Examples:
  # Print the permissions for a configured destination
  consign policy permissions acme
  # Print the trust policy of a role that does not exist yet
  consign policy trust --bucket acme-data --region eu-central-1 \\
      --account 111122223333 --external-id acme-7 \\
      --principal arn:aws:iam::444455556666:role/consign
  # Write a CloudFormation template for the customer
  consign policy cloudformation acme > acme.yaml
  # Print the statement for the policy of the destination's KMS key
  consign policy kms acme";

/// `consign topology`.
pub(super) const TOPOLOGY: &str = "\
Examples:
  # List the exchanges, queues and bindings
  consign topology print
  # Declare them on the broker
  consign topology apply -c consign.toml";

/// `consign topology print`.
pub(super) const TOPOLOGY_PRINT: &str = "\
Examples:
  # List the exchanges, queues and bindings
  consign topology print
  # Write a definitions file, and import it
  consign topology print --json --vhost / > consign.json
  rabbitmqctl import_definitions consign.json";

/// `consign topology apply`.
pub(super) const TOPOLOGY_APPLY: &str = "\
Examples:
  # Declare the exchanges and queues on the broker of broker.url
  consign topology apply -c consign.toml
  # Create the file of an embedded queue
  consign topology apply --set broker.url=sqlite:/var/lib/consign/queue.db";

/// `consign config`.
pub(super) const CONFIG: &str = "\
Examples:
  # Report every problem of the configuration
  consign config validate -c consign.toml
  # Show every setting with its value and where it was set
  consign config show -c consign.toml";

/// `consign config validate`.
pub(super) const CONFIG_VALIDATE: &str = "\
Examples:
  # Check a file and a directory of destinations before a deployment
  consign config validate -c consign.toml -c destinations.d
  # Write the problems as JSON, for a pipeline
  consign config validate -c consign.toml --json";

/// `consign config show`.
pub(super) const CONFIG_SHOW: &str = "\
Examples:
  # Show every setting with its value and where it was set
  consign config show -c consign.toml
  # See what an override changes
  consign config show -c consign.toml --set worker.slots=32";

/// `consign schema`.
pub(super) const SCHEMA: &str = "\
Examples:
  # Write the JSON Schema of a job, to generate types from it
  consign schema job > job.schema.json
  # Describe the configuration for an editor
  consign schema config > consign.schema.json
  # Describe exchanges, routing keys and messages
  consign schema asyncapi";

/// `consign completions`.
pub(super) const COMPLETIONS: &str = "\
Examples:
  # Enable completions in the current Bash
  source <(consign completions bash)
  # Install completions for Zsh and for Fish
  consign completions zsh > ~/.zfunc/_consign
  consign completions fish > ~/.config/fish/completions/consign.fish";

/// `consign man`.
pub(super) const MAN: &str = "\
Examples:
  # Read a page
  consign man dead requeue | man -l -
  # Install all pages
  consign man --out /usr/local/share/man/man1";

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::CommandFactory as _;

    use crate::cli::Cli;

    /// Every command with its path, such as `consign dead list`.
    fn all(command: &clap::Command, path: &str, found: &mut Vec<(String, String)>) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        found.push((path.to_owned(), help));
        for inner in command.get_subcommands() {
            all(inner, &format!("{path} {}", inner.get_name()), found);
        }
    }

    fn commands() -> Vec<(String, String)> {
        let mut found = Vec::new();
        all(&Cli::command(), "consign", &mut found);
        found
    }

    /// Command lines of examples, without the parts of other programs.
    fn lines(help: &str) -> Vec<String> {
        let text = help.replace("\\\n", " ");
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        let own = lines.filter_map(|line| Some(&line[line.find("consign ").filter(|at| is_command(&line[..*at]))?..]));
        own.map(|line| line.split([')', '|', '>']).next().unwrap_or(line).trim().to_owned()).collect()
    }

    /// True where a command begins after this text: at the beginning of a line, or after `|` or
    /// `<(`.
    fn is_command(before: &str) -> bool {
        let before = before.trim_end();
        before.is_empty() || before.ends_with('|') || before.ends_with("<(")
    }

    fn words(line: &str) -> impl Iterator<Item = OsString> {
        line.split_whitespace().map(|word| OsString::from(word.trim_matches('\'')))
    }

    #[test]
    fn every_command_ends_its_help_with_examples_that_parse() {
        for (command, help) in commands() {
            assert!(help.starts_with("Examples:\n"), "`{command} --help` has no examples");
            let lines = lines(&help);
            assert!((2..=4).contains(&lines.len()), "`{command} --help` has {} examples", lines.len());
            for line in &lines {
                if let Err(problem) = Cli::from_arguments(words(line)) {
                    panic!("`{command} --help` shows `{line}`:\n{problem}");
                }
            }
            let own = format!("{command} ");
            assert!(lines.iter().any(|line| format!("{line} ").starts_with(&own)), "no example of `{command}`");
        }
    }

    #[test]
    fn examples_fit_the_width_of_the_help() {
        for (command, help) in commands() {
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "`{command} --help`: {line}");
            }
        }
    }

    #[test]
    fn a_wrong_example_is_found() {
        let found =
            lines("Examples:\n  # consign fly\n  a | consign enqueue - > x\n  source <(consign fly)\n  man consign x");
        assert_eq!(found, ["consign enqueue -", "consign fly"]);
        assert!(Cli::from_arguments(words(&found[0])).is_ok() && Cli::from_arguments(words(&found[1])).is_err());
    }
}
