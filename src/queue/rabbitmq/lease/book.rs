//! Every job that this process has leased, and those that it had lately. Outlives the sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapin::BasicProperties;

use super::judge::{Known, Mark, Standing, Verdict, judge};
use crate::queue::{DeliveryTag, LeaseHolder, QueueError};

/// How long a job that has ended here is remembered while the broker is there: its last lease, and copies of others' leases that
/// were on their way, come back within minutes.
const REMEMBERED: Duration = Duration::from_mins(10);

/// One job.
#[derive(Debug)]
struct Entry {
    ticket: DeliveryTag,
    epoch: u32,
    /// The properties that the delivery came with, for copies.
    properties: Arc<BasicProperties>,
    /// The job's own routing key.
    job_key: Arc<str>,
    standing: Standing,
    /// The highest number that was ever used, and the highest that was confirmed.
    tried: u64,
    latest: u64,
    work: Option<Arc<dyn LeaseHolder>>,
    /// Who had it before, until it is told.
    former: Option<String>,
    /// Whether its leases are to come here, and whether they may.
    wanted: bool,
    bound: bool,
    ended: Option<Instant>,
}

impl Entry {
    fn end(&mut self, standing: Standing) -> Option<Arc<dyn LeaseHolder>> {
        self.standing = standing;
        self.ended = Some(Instant::now());
        self.former = None;
        self.work.take()
    }
}

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<String, Entry>,
    by_ticket: HashMap<DeliveryTag, String>,
    connected: Option<Instant>,
    closed: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::queue::rabbitmq) struct Book(Mutex<Entries>);

/// What is needed to begin a lease.
pub(super) struct Beginning<'a> {
    pub(super) ticket: DeliveryTag,
    pub(super) key: &'a str,
    pub(super) properties: BasicProperties,
    pub(super) job_key: &'a str,
    pub(super) work: Arc<dyn LeaseHolder>,
}

/// A lease that is to be written.
pub(super) struct Writing {
    pub(super) epoch: u32,
    pub(super) seq: u64,
    pub(super) properties: Arc<BasicProperties>,
    pub(super) job_key: Arc<str>,
    pub(super) work: Arc<dyn LeaseHolder>,
}

/// A delivery that is under a lease.
#[derive(Debug, Clone)]
pub(in crate::queue::rabbitmq) struct Leased {
    pub(super) key: String,
    pub(super) epoch: u32,
    pub(super) properties: Arc<BasicProperties>,
    pub(super) lost: bool,
}

/// What closing has to clear up.
#[derive(Debug, Default)]
pub(super) struct Closing {
    /// Keys whose last leases may still come.
    pub(super) ended: Vec<String>,
    /// Whether leases are left that must come to others.
    pub(super) unfinished: bool,
    /// Work that nobody keeps any more.
    pub(super) works: Vec<Arc<dyn LeaseHolder>>,
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a delivery down as leased by `us`, one epoch above all that is known of its key. The work that the key had before
    /// is answered: it has lost the job.
    pub(super) fn begin(&self, us: &str, new: Beginning<'_>) -> Result<Option<Arc<dyn LeaseHolder>>, QueueError> {
        let mark = Mark::read(new.properties.headers().as_ref());
        let mut entries = self.lock();
        if entries.closed {
            return Err(QueueError::Unavailable("the queue is closed".to_owned()));
        }
        let before = entries.by_key.remove(new.key);
        let known = before.as_ref().map_or(0, |entry| entry.epoch);
        let epoch = mark.as_ref().map_or(0, |mark| mark.epoch).max(known).saturating_add(1);
        let entry = Entry {
            ticket: new.ticket,
            epoch,
            properties: Arc::new(new.properties),
            job_key: new.job_key.into(),
            standing: Standing::Working,
            tried: 0,
            latest: 0,
            work: Some(new.work),
            former: mark.filter(|mark| mark.name() != us).map(|mark| mark.owner),
            wanted: true,
            bound: true,
            ended: None,
        };
        entries.by_key.insert(new.key.to_owned(), entry);
        entries.by_ticket.insert(new.ticket, new.key.to_owned());
        Ok(before.filter(|entry| entry.ticket != new.ticket).and_then(|mut entry| entry.work.take()))
    }

    /// The delivery's lease; `None` where it has none, or none that the broker has confirmed.
    pub(in crate::queue::rabbitmq) fn leased(&self, ticket: DeliveryTag) -> Option<Leased> {
        let entries = self.lock();
        let key = entries.by_ticket.get(&ticket)?;
        let entry = entries.by_key.get(key).filter(|entry| entry.ticket == ticket);
        let Some(entry) = entry else {
            // Another delivery of the same run has its place.
            return Some(Leased { key: key.clone(), epoch: 0, properties: Arc::default(), lost: true });
        };
        let lost = entry.standing == Standing::Lost;
        (entry.latest > 0 || lost).then(|| Leased {
            key: key.clone(),
            epoch: entry.epoch,
            properties: Arc::clone(&entry.properties),
            lost,
        })
    }

    /// Other work on the same delivery.
    pub(super) fn replace_work(&self, ticket: DeliveryTag, work: Arc<dyn LeaseHolder>) {
        let mut entries = self.lock();
        let Some(key) = entries.by_ticket.get(&ticket).cloned() else { return };
        if let Some(entry) = entries.by_key.get_mut(&key).filter(|entry| entry.standing == Standing::Working) {
            entry.work = Some(work);
        }
    }

    /// The next lease of a key; `None` when the work does not go on.
    pub(super) fn next(&self, key: &str) -> Option<Writing> {
        let mut entries = self.lock();
        let entry = entries.by_key.get_mut(key).filter(|entry| entry.standing == Standing::Working)?;
        let work = Arc::clone(entry.work.as_ref()?);
        entry.tried += 1;
        let (properties, job_key) = (Arc::clone(&entry.properties), Arc::clone(&entry.job_key));
        Some(Writing { epoch: entry.epoch, seq: entry.tried, properties, job_key, work })
    }

    /// The work on a key that goes on.
    pub(super) fn work(&self, key: &str) -> Option<Arc<dyn LeaseHolder>> {
        self.lock().by_key.get(key).and_then(|entry| entry.work.clone())
    }

    /// The broker has this lease.
    pub(super) fn confirmed(&self, key: &str, epoch: u32, seq: u64) {
        let mut entries = self.lock();
        if let Some(entry) = entries.by_key.get_mut(key).filter(|entry| entry.epoch == epoch) {
            entry.latest = entry.latest.max(seq);
        }
    }

    /// The first lease was not taken, as far as is known: the delivery is as it was.
    pub(in crate::queue::rabbitmq) fn not_begun(&self, ticket: DeliveryTag) {
        self.close_entry(ticket, |entry| {
            entry.end(Standing::Unbegun);
            entry.wanted = false;
        });
    }

    /// The delivery is settled (`TransferResult`) or can't be (`Released`).
    pub(super) fn end(&self, ticket: DeliveryTag, standing: Standing) {
        self.close_entry(ticket, |entry| {
            entry.end(standing);
        });
    }

    fn close_entry(&self, ticket: DeliveryTag, end: impl FnOnce(&mut Entry)) {
        let mut entries = self.lock();
        let Some(key) = entries.by_ticket.remove(&ticket) else { return };
        let entry = entries.by_key.get_mut(&key);
        if let Some(entry) = entry.filter(|entry| entry.ticket == ticket && entry.standing == Standing::Working) {
            end(entry);
        }
    }

    /// A released job is in others' hands.
    pub(super) fn passed_on(&self, key: &str, mark: &Mark) {
        let mut entries = self.lock();
        let released = |entry: &&mut Entry| entry.standing == Standing::Released && entry.epoch == mark.epoch;
        if let Some(entry) = entries.by_key.get_mut(key).filter(released) {
            entry.standing = Standing::TransferResult;
            entry.wanted = false;
        }
    }

    /// Judges what came back, and writes down what follows from it. With `Newer`, the work that has lost its job.
    pub(super) fn judge(&self, us: &str, key: &str, mark: &Mark) -> (Verdict, Option<Arc<dyn LeaseHolder>>) {
        let mut entries = self.lock();
        let entry = entries.by_key.get_mut(key);
        let known = entry.as_deref().map(|e| Known { epoch: e.epoch, latest: e.latest, standing: e.standing });
        let verdict = judge(us, known, mark);
        let Some(entry) = entry else { return (verdict, None) };
        match verdict {
            Verdict::Newer => {
                entry.wanted = false;
                let loses = matches!(entry.standing, Standing::Working | Standing::Released);
                return (verdict, if loses { entry.end(Standing::Lost) } else { None });
            }
            // One whose confirm was never seen may still come.
            Verdict::Last => entry.wanted &= mark.seq() < Some(entry.tried),
            _ => {}
        }
        (verdict, None)
    }

    /// Whom to tell that a job has changed hands.
    pub(super) fn former(&self, key: &str) -> Option<(u32, String)> {
        let entries = self.lock();
        let entry = entries.by_key.get(key)?;
        entry.former.clone().map(|former| (entry.epoch, former))
    }

    /// The former owner is told.
    pub(super) fn told(&self, key: &str, epoch: u32) {
        if let Some(entry) = self.lock().by_key.get_mut(key).filter(|entry| entry.epoch == epoch) {
            entry.former = None;
        }
    }

    /// Whether leases of the key are still to come here.
    pub(super) fn is_wanted(&self, key: &str) -> bool {
        self.lock().by_key.get(key).is_some_and(|entry| entry.wanted)
    }

    /// The key leads here no more.
    pub(super) fn unbound(&self, key: &str) {
        if let Some(entry) = self.lock().by_key.get_mut(key).filter(|entry| !entry.wanted) {
            entry.bound = false;
        }
    }

    /// A session has begun: the keys to bind, and the keys to unbind.
    pub(super) fn connected(&self) -> (Vec<String>, Vec<String>) {
        let mut entries = self.lock();
        entries.connected = Some(Instant::now());
        let bound = entries.by_key.iter().filter(|(_, entry)| entry.bound);
        let (bind, unbind): (Vec<_>, Vec<_>) = bound.partition(|(_, entry)| entry.wanted);
        let keys = |from: Vec<(&String, &Entry)>| from.into_iter().map(|(key, _)| key.clone()).collect();
        (keys(bind), keys(unbind))
    }

    /// The keys of work that goes on.
    pub(super) fn working(&self) -> Vec<String> {
        let entries = self.lock();
        let working = entries.by_key.iter().filter(|(_, entry)| entry.standing == Standing::Working);
        working.map(|(key, _)| key.clone()).collect()
    }

    /// Forgets what has ended long enough ago; the keys that are still bound. The time without a broker does not count.
    pub(super) fn forget(&self) -> Vec<String> {
        let mut entries = self.lock();
        let Some(connected) = entries.connected else { return Vec::new() };
        let over = |ended: Instant| ended.max(connected).elapsed() >= REMEMBERED;
        let mut bound = Vec::new();
        entries.by_key.retain(|key, entry| {
            let forgotten = entry.ended.is_some_and(over);
            if forgotten && entry.bound {
                bound.push(key.clone());
            }
            !forgotten
        });
        let Entries { by_key, by_ticket, .. } = &mut *entries;
        by_ticket.retain(|ticket, key| by_key.get(key).is_some_and(|entry| entry.ticket == *ticket));
        bound
    }

    /// No lease is written any more.
    pub(super) fn close(&self) -> Closing {
        let mut entries = self.lock();
        entries.closed = true;
        let mut closing = Closing::default();
        for (key, entry) in &mut entries.by_key {
            match entry.standing {
                Standing::Working => {
                    closing.unfinished = true;
                    closing.works.extend(entry.end(Standing::Released));
                }
                Standing::Released => closing.unfinished = true,
                _ if entry.bound => closing.ended.push(key.clone()),
                _ => {}
            }
        }
        closing
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lapin::types::{AMQPValue, FieldTable};

    use super::*;
    use crate::domain::lane::Lane;
    use crate::queue::LeaseMessage;
    use crate::queue::rabbitmq::lease::{EPOCH, OWNER, SEQ};

    #[derive(Debug)]
    struct Idle;

    impl LeaseHolder for Idle {
        fn message(&self) -> LeaseMessage {
            LeaseMessage { body: Bytes::new(), content_type: String::new(), headers: [].into() }
        }

        fn lost(&self) {}

        fn outdated(&self, _lease: Bytes) {}
    }

    fn ticket(tag: u64) -> DeliveryTag {
        DeliveryTag { generation: 1, lane: Lane::Scheduled, tag }
    }

    fn table(epoch: u32, owner: &str, seq: Option<u64>) -> FieldTable {
        let mut table = FieldTable::default();
        table.insert(EPOCH.into(), AMQPValue::LongUInt(epoch));
        table.insert(OWNER.into(), AMQPValue::LongString(owner.into()));
        if let Some(seq) = seq {
            table.insert(SEQ.into(), AMQPValue::LongString(seq.to_string().into()));
        }
        table
    }

    fn mark(epoch: u32, owner: &str, seq: u64) -> Mark {
        Mark::read(Some(&table(epoch, owner, Some(seq)))).unwrap()
    }

    fn begin(book: &Book, tag: u64, headers: Option<FieldTable>) -> Option<Arc<dyn LeaseHolder>> {
        let properties = BasicProperties::default().with_headers(headers.unwrap_or_default());
        let new =
            Beginning { ticket: ticket(tag), key: "k", properties, job_key: "job.scheduled.a", work: Arc::new(Idle) };
        book.begin("us", new).unwrap()
    }

    /// Writes and confirms the next lease; its epoch and number.
    fn write(book: &Book) -> Option<(u32, u64)> {
        let writing = book.next("k")?;
        book.confirmed("k", writing.epoch, writing.seq);
        Some((writing.epoch, writing.seq))
    }

    fn verdict(book: &Book, mark: &Mark) -> Verdict {
        book.judge("us", "k", mark).0
    }

    #[test]
    fn a_lease_lives_from_its_first_confirm_to_its_last_return() {
        let book = Book::default();
        assert!(begin(&book, 1, None).is_none());
        assert!(book.leased(ticket(1)).is_none(), "the broker has nothing yet");
        assert_eq!(write(&book), Some((1, 1)));
        assert!(!book.leased(ticket(1)).unwrap().lost);
        assert_eq!(verdict(&book, &mark(1, "us", 1)), Verdict::Renew);
        assert_eq!(write(&book), Some((1, 2)));
        assert_eq!(verdict(&book, &mark(1, "us", 1)), Verdict::Stale);
        book.end(ticket(1), Standing::TransferResult);
        assert!(book.leased(ticket(1)).is_none() && write(&book).is_none() && book.is_wanted("k"));
        assert_eq!(verdict(&book, &mark(1, "us", 2)), Verdict::Last);
        assert!(!book.is_wanted("k"));
        assert_eq!(book.connected(), (vec![], vec!["k".to_owned()]));
        book.unbound("k");
        assert_eq!(book.connected(), (vec![], vec![]));
    }

    #[test]
    fn taking_over_raises_the_epoch_above_all_that_is_known() {
        let book = Book::default();
        begin(&book, 1, Some(table(4, "them", None)));
        assert_eq!(book.former("k"), Some((5, "them".to_owned())));
        assert_eq!(write(&book), Some((5, 1)));
        book.told("k", 5);
        assert_eq!(book.former("k"), None);
        book.end(ticket(1), Standing::TransferResult);
        // The same job again, from a copy of long ago: what is left of the last lease must not look newer.
        begin(&book, 2, Some(table(1, "us", None)));
        assert_eq!(write(&book), Some((6, 1)));
        assert_eq!(book.former("k"), None, "nobody tells itself");
        assert_eq!(verdict(&book, &mark(5, "us", 1)), Verdict::Stale);
    }

    #[test]
    fn work_that_lost_its_job_is_told_once_and_can_only_be_lost() {
        let book = Book::default();
        begin(&book, 1, None);
        write(&book);
        let (first, second) = (book.judge("us", "k", &mark(2, "them", 1)), book.judge("us", "k", &mark(2, "them", 2)));
        assert_eq!((first.0, first.1.is_some()), (Verdict::Newer, true));
        assert_eq!((second.0, second.1.is_some()), (Verdict::Newer, false));
        assert!(book.leased(ticket(1)).unwrap().lost && write(&book).is_none() && !book.is_wanted("k"));
        book.end(ticket(1), Standing::Released);
        assert_eq!(verdict(&book, &mark(1, "us", 1)), Verdict::Past, "a failed settlement gives nothing to others");
    }

    #[test]
    fn what_could_not_be_settled_is_given_to_others_once() {
        let book = Book::default();
        begin(&book, 1, None);
        write(&book);
        book.end(ticket(1), Standing::Released);
        for _ in 0..2 {
            assert_eq!(verdict(&book, &mark(1, "us", 1)), Verdict::Pass, "until it is passed on");
        }
        book.passed_on("k", &mark(1, "us", 1));
        assert_eq!(verdict(&book, &mark(1, "us", 1)), Verdict::Last);
    }

    #[test]
    fn a_lease_that_was_not_taken_leaves_its_delivery_as_it_was() {
        let book = Book::default();
        begin(&book, 1, Some(table(1, "them", Some(4))));
        book.next("k").unwrap();
        book.not_begun(ticket(1));
        assert!(book.leased(ticket(1)).is_none() && !book.is_wanted("k"));
        assert_eq!(verdict(&book, &mark(1, "them", 4)), Verdict::Unknown, "the delivery itself, when it comes again");
        assert_eq!(verdict(&book, &mark(2, "us", 1)), Verdict::Stale, "taken after all");
        begin(&book, 1, Some(table(1, "them", Some(4))));
        assert_eq!(write(&book), Some((3, 1)), "tried again, it is a lease of its own");
        assert_eq!(verdict(&book, &mark(1, "them", 4)), Verdict::Stale);
    }

    #[test]
    fn the_last_one_is_waited_for_even_if_its_confirm_was_not_seen() {
        let book = Book::default();
        begin(&book, 1, None);
        write(&book);
        book.next("k").unwrap();
        book.end(ticket(1), Standing::TransferResult);
        assert_eq!((verdict(&book, &mark(1, "us", 1)), book.is_wanted("k")), (Verdict::Last, true));
        assert_eq!((verdict(&book, &mark(1, "us", 2)), book.is_wanted("k")), (Verdict::Last, false));
    }

    #[test]
    fn another_delivery_of_the_same_run_takes_the_place_of_the_first() {
        let book = Book::default();
        begin(&book, 1, None);
        write(&book);
        assert!(begin(&book, 2, None).is_some(), "the first one's work is to be told");
        write(&book);
        assert!(book.leased(ticket(1)).unwrap().lost);
        book.end(ticket(1), Standing::TransferResult);
        assert!(!book.leased(ticket(2)).unwrap().lost);
        assert_eq!(write(&book), Some((2, 2)));
    }

    #[test]
    fn closing_tells_the_work_and_knows_what_is_left() {
        let book = Book::default();
        begin(&book, 1, None);
        write(&book);
        book.end(ticket(1), Standing::TransferResult);
        let closing = book.close();
        assert_eq!((closing.ended, closing.unfinished, closing.works.len()), (vec!["k".to_owned()], false, 0));
        let book = Book::default();
        begin(&book, 1, None);
        write(&book);
        let closing = book.close();
        assert_eq!((closing.ended, closing.unfinished, closing.works.len()), (vec![], true, 1));
        let new = Beginning {
            ticket: ticket(2),
            key: "l",
            properties: BasicProperties::default(),
            job_key: "j",
            work: Arc::new(Idle),
        };
        assert!(book.begin("us", new).is_err());
    }

    #[test]
    fn the_ended_are_forgotten_only_after_a_while_with_a_broker() {
        let book = Book::default();
        begin(&book, 1, None);
        write(&book);
        book.end(ticket(1), Standing::TransferResult);
        let age = |book: &Book, connected: bool| {
            let mut entries = book.lock();
            let long_ago = Instant::now().checked_sub(REMEMBERED);
            entries.by_key.get_mut("k").unwrap().ended = long_ago;
            entries.connected = if connected { long_ago } else { Some(Instant::now()) };
        };
        age(&book, false);
        assert_eq!(book.forget(), Vec::<String>::new());
        assert_eq!(verdict(&book, &mark(1, "us", 1)), Verdict::Last);
        begin(&book, 2, None);
        book.end(ticket(2), Standing::TransferResult);
        age(&book, true);
        assert_eq!(book.forget(), ["k"]);
        assert_eq!(verdict(&book, &mark(2, "us", 1)), Verdict::Unknown);
    }
}
