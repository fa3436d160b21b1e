//! Keeps the leases of this process for the time of one session: the queue they come back to, and what is done with them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use lapin::message::Delivery as Message;
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{Acker, Channel, Connection, Consumer};
use tokio_util::sync::CancellationToken;

use super::judge::{Mark, Verdict};
use super::{EPOCH, OWNER, SEQ};
use crate::queue::QueueError;
use crate::queue::rabbitmq::connection::{self, call};
use crate::queue::rabbitmq::consumer::Fetched;
use crate::queue::rabbitmq::declare::{self, short};
use crate::queue::rabbitmq::publish::Publisher;
use crate::queue::rabbitmq::session::{self, Health, Shared};
use crate::queue::rabbitmq::settle::{self, Content};
use crate::queue::rabbitmq::topology::Queue;
use crate::queue::rabbitmq::{acknowledge, give_back};

/// Leases that came back and are not answered yet. Each may have 2 MiB.
const PREFETCH: u16 = 8;
/// How often what has ended long ago is looked for.
const TIDY: Duration = Duration::from_mins(1);
/// Before a lease that could not be renewed is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// How long a notice may take: a queue that confirms nothing must not end this session.
const TELLING: Duration = Duration::from_secs(10);

/// How long the broker may take to bring the owner's queue up. A queue that was declared moments before its broker was killed can
/// stay without a leader for ever (seen on 3.10): then the process takes another, at once. One too many is a queue too many.
const OPENING: Duration = Duration::from_secs(5);
/// How many are tried in one session.
const QUEUES: usize = 2;

/// See the module.
pub(in crate::queue::rabbitmq) struct Keeper {
    shared: Arc<Shared>,
    publisher: Arc<Publisher>,
    channel: Channel,
    address: String,
    stopped: CancellationToken,
}

impl Keeper {
    /// Declares the owner's queue, binds it to every lease that is to come to it, and consumes. Whatever the configuration says of
    /// declaring: the queue is this process's own.
    pub(in crate::queue::rabbitmq) async fn open(
        shared: &Arc<Shared>,
        connection: &Connection,
        publisher: &Arc<Publisher>,
    ) -> Result<(Arc<Self>, Consumer), QueueError> {
        for _ in 0..QUEUES {
            let (shared, publisher) = (Arc::clone(shared), Arc::clone(publisher));
            // The channel of a call that is not answered is of no more use.
            let channel = session::lane_channel(connection, PREFETCH).await?;
            let address = shared.process.address();
            let keeper = Self { shared, publisher, channel, address, stopped: CancellationToken::new() };
            if let Ok(consumer) = tokio::time::timeout(OPENING, keeper.settle_in()).await {
                return Ok((Arc::new(keeper), consumer?));
            }
            tracing::warn!(queue = keeper.queue(), "the queue for leases does not answer; taking another");
            keeper.shared.process.move_on();
        }
        Err(QueueError::Unavailable("no queue for leases answers".to_owned()))
    }

    async fn settle_in(&self) -> Result<Consumer, QueueError> {
        let (names, ttl) = (&self.shared.names, self.shared.timing.owner_ttl);
        let (bind, unbind) = self.shared.leases.connected();
        if let Some(former) = self.shared.process.former_address() {
            // What leads to a sick queue keeps everybody's leases waiting.
            for key in bind.iter().chain(&unbind) {
                self.unbind_from(&names.owner(&former), key).await?;
            }
        }
        self.declare(&Queue::owner(names, &self.address, ttl)).await?;
        // Its address, for notices.
        self.bind_to(&self.queue(), &self.queue()).await?;
        for key in &bind {
            self.bind(key).await?;
        }
        for key in &unbind {
            self.unbind_from(&self.queue(), key).await?;
            self.shared.leases.unbound(key);
        }
        let (queue, tag) = (short(&self.queue())?, self.tag()?);
        let consumer = self.channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default());
        call(&format!("consuming from {}", self.queue()), consumer).await
    }

    fn us(&self) -> &str {
        self.shared.process.name()
    }

    fn queue(&self) -> String {
        self.shared.names.owner(&self.address)
    }

    fn tag(&self) -> Result<lapin::types::ShortString, QueueError> {
        short(&format!("{} leases", self.address))
    }

    /// Whether its channel lives.
    pub(in crate::queue::rabbitmq) fn is_connected(&self) -> bool {
        self.channel.status().connected()
    }

    async fn declare(&self, queue: &Queue) -> Result<(), QueueError> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let arguments = declare::table(&queue.arguments);
        let declared = self.channel.queue_declare(short(&queue.name)?, options, arguments);
        call(&format!("declaring {}", queue.name), declared).await.map(drop)
    }

    /// From now on, leases of this key come here.
    pub(super) async fn bind(&self, key: &str) -> Result<(), QueueError> {
        self.bind_to(&self.queue(), key).await
    }

    async fn bind_to(&self, queue: &str, key: &str) -> Result<(), QueueError> {
        let (queue, exchange) = (short(queue)?, short(&self.shared.names.owners_exchange())?);
        let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
        let bound = self.channel.queue_bind(queue, exchange, short(key)?, options, arguments);
        call("binding a lease", bound).await
    }

    /// Also where there is no such queue or binding.
    async fn unbind_from(&self, queue: &str, key: &str) -> Result<(), QueueError> {
        let (queue, exchange) = (short(queue)?, short(&self.shared.names.owners_exchange())?);
        let unbound = self.channel.queue_unbind(queue, exchange, short(key)?, FieldTable::default());
        call("unbinding a lease", unbound).await
    }

    /// A key that no lease is to come by any more. What fails is done by the next session.
    pub(super) async fn unbind_unwanted(&self, key: &str) {
        if self.shared.leases.is_wanted(key) {
            return;
        }
        match self.unbind_from(&self.queue(), key).await {
            Ok(()) => self.shared.leases.unbound(key),
            Err(error) => tracing::debug!(%error, key, "a lease's key is still bound"),
        }
    }

    /// Answers what comes back, until the session ends.
    pub(in crate::queue::rabbitmq) async fn run(self: Arc<Self>, mut consumer: Consumer, health: Arc<Health>) {
        if self.shared.process.former_address().is_some() {
            self.write_all().await;
        }
        let mut tidy = tokio::time::interval(TIDY);
        loop {
            tokio::select! {
                item = consumer.next() => match item {
                    Some(Ok(message)) => self.came_back(message).await,
                    Some(Err(error)) => return health.end(&connection::text(&error)),
                    None => break,
                },
                _ = tidy.tick() => {
                    for key in self.shared.leases.forget() {
                        let _ = self.unbind_from(&self.queue(), &key).await;
                    }
                }
            }
        }
        if !self.stopped.is_cancelled() {
            health.end(&format!("the broker ended the consumer of {} (was the queue deleted?)", self.queue()));
        }
    }

    /// After a move: what was in the queue before may be gone.
    async fn write_all(&self) {
        for key in self.shared.leases.working() {
            if let Err(error) = self.write(&key).await {
                tracing::warn!(%error, key, "a lease could not be written anew");
            }
        }
    }

    /// A message of the owner's queue.
    async fn came_back(&self, message: Message) {
        let mark = Mark::read(message.properties.headers().as_ref());
        let routing_key = message.routing_key.to_string();
        let Some((mark, key)) = mark.as_ref().and_then(|mark| Some((mark, mark.key(&routing_key)?))) else {
            return self.pass_on(&message, None).await;
        };
        match self.judge(key, mark) {
            Verdict::Renew => self.renew(key, &message.acker).await,
            Verdict::Pass | Verdict::Unknown if !mark.is_notice() => self.pass_on(&message, Some((key, mark))).await,
            verdict => {
                if verdict == Verdict::Stale && !mark.is_notice() {
                    self.tell_outdated(key, &message);
                }
                acknowledge_quietly(&message.acker).await;
            }
        }
        self.unbind_unwanted(key).await;
    }

    /// Looks at a delivery of lane `continued`: a lease of work that goes on here, or one that is out of date, ends here. Answers
    /// what is work.
    pub(in crate::queue::rabbitmq) async fn screen(&self, fetched: Fetched) -> Option<Fetched> {
        let message = fetched.message();
        let mark = Mark::read(message.properties.headers().as_ref());
        let routing_key = message.routing_key.to_string();
        let Some((mark, key)) = mark.as_ref().and_then(|mark| Some((mark, mark.key(&routing_key)?))) else {
            return Some(fetched);
        };
        let verdict = self.judge(key, mark);
        let work = match verdict {
            _ if mark.is_notice() => None,
            // Told to the work that goes on; without any, the worker looks at it.
            Verdict::Stale => (!self.tell_outdated(key, message)).then_some(()),
            Verdict::Renew | Verdict::Last => None,
            Verdict::Past | Verdict::Newer | Verdict::Pass | Verdict::Unknown => Some(()),
        };
        if verdict == Verdict::Renew {
            self.renew(key, &message.acker).await;
        } else if work.is_none() {
            acknowledge_quietly(&message.acker).await;
        }
        if verdict != Verdict::Unknown {
            self.unbind_unwanted(key).await;
        }
        work.map(|()| fetched)
    }

    /// Whether there was work to be told.
    fn tell_outdated(&self, key: &str, message: &Message) -> bool {
        let work = self.shared.leases.work(key);
        if let Some(work) = &work {
            work.outdated(Bytes::copy_from_slice(&message.data));
        }
        work.is_some()
    }

    fn judge(&self, key: &str, mark: &Mark) -> Verdict {
        let (verdict, lost) = self.shared.leases.judge(self.us(), key, mark);
        tracing::debug!(key, ?mark, ?verdict, "a lease came back");
        if let Some(work) = lost {
            tracing::warn!(key, owner = mark.owner, "another worker has a job that was leased here");
            work.lost();
        }
        verdict
    }

    /// The next lease, and then the end of this one. What can't be published now comes again after a pause.
    async fn renew(&self, key: &str, returned: &Acker) {
        match self.write(key).await {
            // Without work there is no next one; the message is judged anew.
            Ok(false) => give_back(returned).await,
            Ok(true) => acknowledge_quietly(returned).await,
            Err(error) => {
                tracing::warn!(%error, key, "a lease could not be renewed; trying again");
                tokio::time::sleep(PAUSE).await;
                give_back(returned).await;
            }
        }
        self.tell_former(key).await;
    }

    /// Publishes the next lease of a key, confirmed. False when the work does not go on.
    pub(super) async fn write(&self, key: &str) -> Result<bool, QueueError> {
        let Some(writing) = self.shared.leases.next(key) else { return Ok(false) };
        let said = writing.work.message();
        let mut set = said.headers;
        set.insert(EPOCH.to_owned(), writing.epoch.to_string());
        set.insert(OWNER.to_owned(), self.address.clone());
        set.insert(SEQ.to_owned(), writing.seq.to_string());
        let content = Content { body: &said.body, content_type: Some(&said.content_type) };
        let keys = (key, &*writing.job_key);
        let lease = settle::lease(&self.shared.names, keys, content, &writing.properties, set)?;
        self.publisher.publish(&lease).await?;
        self.shared.leases.confirmed(key, writing.epoch, writing.seq);
        Ok(true)
    }

    async fn pass_on(&self, message: &Message, known: Option<(&str, &Mark)>) {
        let passed = match settle::passed_on(&self.shared.names, message) {
            Ok(copy) => self.publisher.publish(&copy).await,
            Err(error) => Err(error),
        };
        if let Err(error) = passed {
            tracing::warn!(%error, "a job could not be given to other workers; trying again");
            tokio::time::sleep(PAUSE).await;
            return give_back(&message.acker).await;
        }
        if let Some((key, mark)) = known {
            self.shared.leases.passed_on(key, mark);
        }
        acknowledge_quietly(&message.acker).await;
    }

    /// Tells the former owner of a job that it has changed hands, and unbinds its queues. What fails is tried at the next renewal.
    pub(super) async fn tell_former(&self, key: &str) {
        let Some((epoch, former)) = self.shared.leases.former(key) else { return };
        match tokio::time::timeout(TELLING, self.tell(key, epoch, &former)).await {
            Ok(Ok(())) => self.shared.leases.told(key, epoch),
            Ok(Err(error)) => tracing::debug!(%error, key, former, "the former owner is still to be told"),
            Err(_) => tracing::debug!(key, former, "the former owner's queue does not answer; it is still to be told"),
        }
    }

    /// First the notice: one that is alive must hear of it, and unbound it would not.
    async fn tell(&self, key: &str, epoch: u32, former: &str) -> Result<(), QueueError> {
        let names = &self.shared.names;
        let set = [(EPOCH.to_owned(), epoch.to_string()), (OWNER.to_owned(), self.address.clone())].into();
        self.publisher.publish(&settle::notice(names, former, key, set)?).await?;
        self.unbind_from(&names.owner(former), key).await?;
        self.unbind_from(&names.ended(former), key).await
    }

    /// The queue closes: what has ended must not come out any more, what has not must.
    pub(super) async fn retire(&self, ended: &[String], unfinished: bool) -> Result<(), QueueError> {
        self.stopped.cancel();
        call("cancelling a consumer", self.channel.basic_cancel(self.tag()?, BasicCancelOptions::default())).await?;
        if !ended.is_empty() {
            let nothing = Queue::ended(&self.shared.names, &self.address);
            self.declare(&nothing).await?;
            for key in ended {
                self.bind_to(&nothing.name, key).await?;
            }
        }
        if unfinished {
            for key in ended {
                self.unbind_from(&self.queue(), key).await?;
            }
            return Ok(());
        }
        // Nothing that anybody waits for can be in it, or come to it.
        let deleted = self.channel.queue_delete(short(&self.queue())?, QueueDeleteOptions::default());
        call("deleting a queue", deleted).await.map(drop)
    }
}

async fn acknowledge_quietly(acker: &Acker) {
    if acknowledge(acker, true).await.is_err() {
        tracing::debug!("a lease that is over comes again; its channel is gone");
    }
}
