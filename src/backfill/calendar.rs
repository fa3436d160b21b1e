//! Steps of a range, by the calendar and the clocks of a time zone.
//!
//! * Days, weeks and months are counted from the first step: 31 January, then 28 February, then
//!   31 March.
//! * Hours follow the wall clock: `6h` is 00, 06, 12 and 18, also on the days on which the clocks
//!   change. `1h` is every hour that exists: 23 on the day that skips one, 25 on the day that
//!   repeats one.
//! * A step at a time that the clocks skip is taken at the time to which they jump, once.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Span, Unit, ZonedDateTime};

/// Upper bound of steps. Larger backfills take longer steps or several ids.
const MAX_STEPS: usize = 1_000_000;

/// Interval between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    count: i64,
    /// Hour, day, week or month.
    unit: Unit,
}

impl Interval {
    /// Parses `1d`, `6h`, `2w`, `1month`.
    ///
    /// # Errors
    /// A description of the format.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid = || "write 1h, 6h, 1d, 1w or 1month".to_owned();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (count, unit) = text.split_at(digits);
        let unit = match unit {
            "h" | "hour" | "hours" => Unit::Hour,
            "d" | "day" | "days" => Unit::Day,
            "w" | "week" | "weeks" => Unit::Week,
            "month" | "months" => Unit::Month,
            "m" => return Err("write 1month for a month; minutes are not supported".to_owned()),
            _ => return Err(invalid()),
        };
        let count = if digits == 0 { 1 } else { count.parse().map_err(|_| invalid())? };
        if (1..=10_000).contains(&count) {
            Ok(Self { count, unit })
        } else {
            Err("give a number from 1 to 10,000 before the unit".to_owned())
        }
    }

    /// Returns the time from the first step to step `number`.
    fn offset_of(self, number: i64) -> Option<Span> {
        let count = self.count.checked_mul(number)?;
        let span = Span::new();
        match self.unit {
            Unit::Hour => span.try_hours(count),
            Unit::Day => span.try_days(count),
            Unit::Week => span.try_weeks(count),
            _ => span.try_months(count),
        }
        .ok()
    }
}

impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = match self.unit {
            Unit::Hour => "h",
            Unit::Day => "d",
            Unit::Week => "w",
            _ => "month",
        };
        write!(f, "{}{unit}", self.count)
    }
}

/// Bound of a range: a day, or a time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// A whole day.
    Day(Date),
    /// A time in the zone of the range.
    Time(DateTime),
}

impl Bound {
    /// Parses `2026-01-31` or `2026-01-31T06:00`.
    ///
    /// # Errors
    /// A description of the format.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid = |what: &str| {
            format!("is not a valid {what}; write 2026-01-31, or 2026-01-31T06:00 in the time zone of --time-zone")
        };
        match text.split_once(['T', ' ']) {
            None => text.parse().map(Self::Day).map_err(|_| invalid("date")),
            Some((date, time)) => {
                let date: Date = date.parse().map_err(|_| invalid("date"))?;
                let time = if time.len() == 2 { format!("{time}:00") } else { time.to_owned() };
                let time: Time = time.parse().map_err(|_| invalid("time of day"))?;
                Ok(Self::Time(date.to_datetime(time)))
            }
        }
    }

    fn first(self) -> DateTime {
        match self {
            Self::Day(day) => day.to_datetime(Time::midnight()),
            Self::Time(time) => time,
        }
    }

    /// Inclusive: the end of a day.
    fn last(self) -> DateTime {
        match self {
            Self::Day(day) => day.to_datetime(Time::MAX),
            Self::Time(time) => time,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Day(day) => day.fmt(f),
            Self::Time(time) => time.fmt(f),
        }
    }
}

/// One step of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalendarStep {
    /// Its time in the zone of the range.
    pub at: ZonedDateTime,
    hourly: bool,
}

impl CalendarStep {
    /// Returns the offset from UTC: `+02:00`.
    pub fn offset(&self) -> String {
        let seconds = self.at.offset().seconds();
        let (sign, minutes) = (if seconds < 0 { '-' } else { '+' }, seconds.unsigned_abs() / 60);
        format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60)
    }

    /// Returns the unique name of the step: the date, and for hours also the time with its offset.
    pub fn stamp(&self) -> String {
        let date = self.at.date();
        if self.hourly || self.at.time() != Time::midnight() {
            format!("{date}T{:02}:{:02}{}", self.at.hour(), self.at.minute(), self.offset())
        } else {
            date.to_string()
        }
    }
}

/// Range of time, divided into steps.
#[derive(Debug, Clone)]
pub struct CalendarRange {
    /// First step.
    pub from: Bound,
    /// Last step, inclusive.
    pub to: Bound,
    /// Interval between two steps.
    pub every: Interval,
    /// Time zone of the bounds and steps.
    pub zone: TimeZone,
}

impl CalendarRange {
    /// Returns all steps, newest first.
    ///
    /// # Errors
    /// The range is empty, or has too many steps.
    pub fn steps(&self) -> Result<Vec<CalendarStep>, String> {
        self.check_order()?;
        let (first, last) = (self.from.first(), self.to.last());
        let mut steps: Vec<CalendarStep> = Vec::new();
        for number in 0.. {
            let civil = self.every.offset_of(number).and_then(|span| first.checked_add(span).ok());
            let Some(civil) = civil.filter(|civil| *civil <= last) else { break };
            for at in self.instants(civil)? {
                if steps.last().is_none_or(|before| before.at < at) {
                    steps.push(CalendarStep { at, hourly: self.every.unit == Unit::Hour });
                }
            }
            if steps.len() > MAX_STEPS {
                return Err(format!(
                    "{} to {} in steps of {} are more than 1,000,000 jobs; give a shorter range, or a longer step with --every",
                    self.from, self.to, self.every
                ));
            }
        }
        steps.reverse();
        Ok(steps)
    }

    /// Checks that the range is not empty.
    ///
    /// # Errors
    /// It ends before it begins.
    pub fn check_order(&self) -> Result<(), String> {
        if self.from.first() <= self.to.last() {
            return Ok(());
        }
        Err(format!("--from {} is after --to {}; give the earlier one first", self.from, self.to))
    }

    /// Returns the instants at which the clocks of the zone show this time.
    fn instants(&self, civil: DateTime) -> Result<Vec<ZonedDateTime>, String> {
        let ambiguous = self.zone.to_ambiguous_zoned_datetime(civil);
        let every_hour = self.every == Interval { count: 1, unit: Unit::Hour };
        let twice = every_hour && matches!(ambiguous.offset(), AmbiguousOffset::Fold { .. });
        let later = if twice { Some(ambiguous.clone().later()) } else { None };
        std::iter::once(ambiguous.compatible())
            .chain(later)
            .map(|at| at.map_err(|problem| format!("{civil}: {problem}")))
            .collect()
    }
}

/// Returns the time zone with this IANA name.
///
/// # Errors
/// The name is unknown.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| format!("`{name}` is not a time zone; write an IANA name, such as Europe/Berlin"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(in crate::backfill) fn range(from: &str, to: &str, every: &str, name: &str) -> CalendarRange {
        let (from, to) = (Bound::parse(from).unwrap(), Bound::parse(to).unwrap());
        CalendarRange { from, to, every: Interval::parse(every).unwrap(), zone: zone(name).unwrap() }
    }

    /// Oldest first, which is easier to read.
    pub(in crate::backfill) fn steps(from: &str, to: &str, every: &str, name: &str) -> Vec<CalendarStep> {
        let mut steps = range(from, to, every, name).steps().unwrap();
        steps.reverse();
        steps
    }

    fn stamps(from: &str, to: &str, every: &str, name: &str) -> Vec<String> {
        steps(from, to, every, name).iter().map(CalendarStep::stamp).collect()
    }

    /// In seconds.
    fn apart(one: &CalendarStep, other: &CalendarStep) -> i64 {
        other.at.timestamp().as_second() - one.at.timestamp().as_second()
    }

    #[test]
    fn both_ends_are_included_and_the_newest_is_first() {
        let newest_first: Vec<_> = range("2026-01-30", "2026-02-02", "1d", "UTC").steps().unwrap();
        let newest_first: Vec<_> = newest_first.iter().map(CalendarStep::stamp).collect();
        assert_eq!(newest_first, ["2026-02-02", "2026-02-01", "2026-01-31", "2026-01-30"]);
        assert_eq!(stamps("2026-01-01", "2026-01-01", "1d", "UTC"), ["2026-01-01"]);
        assert_eq!(stamps("2026-01-01", "2026-01-16", "1w", "UTC"), ["2026-01-01", "2026-01-08", "2026-01-15"]);
        assert_eq!(steps("2023-11-23", "2026-11-21", "1d", "Europe/Berlin").len(), 1095);
    }

    #[test]
    fn a_day_as_the_end_is_the_whole_day() {
        let day = stamps("2026-01-01", "2026-01-01", "6h", "UTC");
        assert_eq!(day.len(), 4);
        assert_eq!(day[3], "2026-01-01T18:00+00:00");
        assert_eq!(stamps("2026-01-01T06", "2026-01-01T12:00", "6h", "UTC").len(), 2);
    }

    #[test]
    fn months_are_counted_from_the_first_step() {
        let last_days = stamps("2026-01-31", "2026-04-30", "1month", "UTC");
        assert_eq!(last_days, ["2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30"]);
        assert_eq!(stamps("2024-02-29", "2025-03-01", "12months", "UTC"), ["2024-02-29", "2025-02-28"]);
    }

    #[test]
    fn one_hour_steps_cover_every_hour_that_exists() {
        let spring = stamps("2026-03-29", "2026-03-29", "1h", "Europe/Berlin");
        assert_eq!(spring.len(), 23);
        assert_eq!(spring[1..3], ["2026-03-29T01:00+01:00", "2026-03-29T03:00+02:00"]);
        let autumn = stamps("2026-10-25", "2026-10-25", "1h", "Europe/Berlin");
        assert_eq!(autumn.len(), 25);
        assert_eq!(autumn[2..4], ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00"]);
        let mut instants: Vec<_> = steps("2026-10-24", "2026-10-26", "1h", "Europe/Berlin");
        instants.dedup_by_key(|step| step.at.timestamp());
        assert_eq!(instants.len(), 24 + 25 + 24);
        assert!(instants.windows(2).all(|pair| apart(&pair[0], &pair[1]) == 3600));
    }

    #[test]
    fn several_hours_follow_the_wall_clock() {
        for day in ["2026-03-29", "2026-10-25", "2026-07-01"] {
            let hours: Vec<_> = steps(day, day, "6h", "Europe/Berlin").iter().map(|step| step.at.hour()).collect();
            assert_eq!(hours, [0, 6, 12, 18], "{day}");
        }
        // 02:00 does not exist on that day.
        let hours: Vec<_> =
            steps("2026-03-29", "2026-03-29", "2h", "Europe/Berlin").iter().map(|s| s.at.hour()).collect();
        assert_eq!(hours[..3], [0, 3, 4]);
    }

    #[test]
    fn days_follow_the_calendar_when_the_clocks_change() {
        let days = steps("2026-03-28", "2026-03-30", "1d", "Europe/Berlin");
        assert!(days.iter().all(|step| step.at.hour() == 0));
        assert_eq!([apart(&days[0], &days[1]), apart(&days[1], &days[2])], [24 * 3600, 23 * 3600]);
        // Sao Paulo has no midnight on 4 November 2018, and Apia no 30 December 2011.
        assert_eq!(steps("2018-11-03", "2018-11-05", "1d", "America/Sao_Paulo")[1].at.hour(), 1);
        assert_eq!(stamps("2011-12-29", "2011-12-31", "1d", "Pacific/Apia"), ["2011-12-29", "2011-12-31"]);
    }

    #[test]
    fn invalid_texts_and_ranges_are_rejected() {
        for text in ["", "d1", "0d", "1m", "1y", "-1d", "1.5h", "99999d"] {
            assert!(Interval::parse(text).is_err(), "{text}");
        }
        for text in ["", "2026-13-01", "2026-02-30", "yesterday", "2026-01-01T25:00", "2026-01-01T06:00Z"] {
            assert!(Bound::parse(text).is_err(), "{text}");
        }
        assert!(zone("Mars/Olympus").unwrap_err().contains("IANA"));
        let backwards = range("2026-01-02", "2026-01-01", "1d", "UTC").steps().unwrap_err();
        assert!(backwards.contains("--from 2026-01-02 is after --to 2026-01-01"), "{backwards}");
        let many = range("1800-01-01", "2026-01-01", "1h", "UTC").steps().unwrap_err();
        assert!(many.contains("more than 1,000,000 jobs"), "{many}");
    }
}
