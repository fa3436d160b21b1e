//! How fast jobs are published at most, written the same way for every command.

use std::num::NonZeroU32;
use std::time::Duration;

/// So many jobs in a second, a minute or an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    count: NonZeroU32,
    per: Duration,
}

impl Rate {
    /// Reads `30/s`, `30/min` (or `/m`), `30/h`.
    ///
    /// # Errors
    /// How a rate is written.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "a rate is a whole number from 1 and a unit of time: 30/s, 30/min or 30/h".to_owned();
        let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
        let per = match unit {
            "s" => Duration::from_secs(1),
            "m" | "min" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            _ => return Err(wrong()),
        };
        Ok(Self { count: count.parse().map_err(|_| wrong())?, per })
    }

    /// When the job of this number may be published, from the start.
    pub(super) fn due(self, number: u64) -> Duration {
        self.per.mul_f64(f64::from(u32::try_from(number).unwrap_or(u32::MAX)) / f64::from(self.count.get()))
    }

    /// The time between two jobs.
    pub(super) fn pause(self) -> Duration {
        self.per / self.count.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Rate {
        Rate::parse(text).unwrap()
    }

    #[test]
    fn a_rate_says_when_each_job_is_due() {
        assert_eq!(rate("10/s").due(0), Duration::ZERO);
        assert_eq!(rate("10/s").due(25), Duration::from_millis(2500));
        assert_eq!(rate("30/min").due(1), Duration::from_secs(2));
        assert_eq!(rate("1/h").due(2), Duration::from_hours(2));
    }

    #[test]
    fn a_rate_is_a_pause() {
        assert_eq!(rate("10/s").pause(), Duration::from_millis(100));
        assert_eq!((rate("30/min").pause(), rate("30/m")), (Duration::from_secs(2), rate("30/min")));
    }

    #[test]
    fn what_is_no_rate_is_told_how_one_is_written() {
        for wrong in ["10", "0/s", "-1/s", "10/d", "1.5/s", "/s", "10/", ""] {
            let said = Rate::parse(wrong).unwrap_err();
            assert!(said.contains("30/s, 30/min or 30/h"), "{wrong}: {said}");
        }
    }
}
