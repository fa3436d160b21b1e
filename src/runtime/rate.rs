//! Publishing rate, written the same way for every command.

use std::num::NonZeroU32;
use std::time::Duration;

/// Upper bound of published jobs per second, minute or hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishRate {
    count: NonZeroU32,
    per: Duration,
}

impl PublishRate {
    /// Parses `30/s`, `30/min` (or `/m`), `30/h`.
    ///
    /// # Errors
    /// A description of the format.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid = || "write a rate of at least 1, such as 30/s, 30/min or 30/h".to_owned();
        let (count, unit) = text.split_once('/').ok_or_else(invalid)?;
        let per = match unit {
            "s" => Duration::from_secs(1),
            "m" | "min" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            _ => return Err(invalid()),
        };
        Ok(Self { count: count.parse().map_err(|_| invalid())?, per })
    }

    /// Returns the earliest time, from the start, at which job `number` may be published.
    pub fn due(self, number: u64) -> Duration {
        self.per.mul_f64(f64::from(u32::try_from(number).unwrap_or(u32::MAX)) / f64::from(self.count.get()))
    }

    /// Returns the time between two jobs.
    pub fn interval(self) -> Duration {
        self.per / self.count.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> PublishRate {
        PublishRate::parse(text).unwrap()
    }

    #[test]
    fn each_job_has_a_due_time() {
        assert_eq!(rate("10/s").due(0), Duration::ZERO);
        assert_eq!(rate("10/s").due(25), Duration::from_millis(2500));
        assert_eq!(rate("30/min").due(1), Duration::from_secs(2));
        assert_eq!(rate("1/h").due(2), Duration::from_hours(2));
    }

    #[test]
    fn a_rate_has_an_interval() {
        assert_eq!(rate("10/s").interval(), Duration::from_millis(100));
        assert_eq!((rate("30/min").interval(), rate("30/m")), (Duration::from_secs(2), rate("30/min")));
    }

    #[test]
    fn the_error_describes_the_format() {
        for wrong in ["10", "0/s", "-1/s", "10/d", "1.5/s", "/s", "10/", ""] {
            let error = PublishRate::parse(wrong).unwrap_err();
            assert!(error.contains("30/s, 30/min or 30/h"), "{wrong}: {error}");
        }
    }
}
