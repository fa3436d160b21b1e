//! The broker as producers and customers see it: jobs in, outcomes out, dead letters, the wait
//! queues. Where it is a file, jobs can be offered, and what is in it can be read.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::Value;

use super::embedded::File;
use super::{exported, until};

/// A message that the test took off a queue.
#[derive(Debug, Clone)]
pub struct Message {
    pub routing_key: String,
    pub id: Option<String>,
    pub content_type: Option<String>,
    pub kind: Option<String>,
    pub correlation_id: Option<String>,
    pub user_id: Option<String>,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Message {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// True if it is a copy of the job with this id.
    pub fn is_of(&self, job_id: &str) -> bool {
        let named = || serde_json::from_slice::<Value>(&self.body).is_ok_and(|body| body["id"] == job_id);
        self.id.as_deref() == Some(job_id) || named()
    }

    /// Everything of it as text, for searches.
    pub fn text(&self) -> String {
        format!("{} {:?} {:?} {}", self.routing_key, self.id, self.headers, String::from_utf8_lossy(&self.body))
    }
}

/// The wait queues are called `wait.` and one of these.
pub const RETRY_DELAYS: [&str; 7] = ["5s", "30s", "2m", "10m", "30m", "2h", "12h"];

/// One prefix on one node. Reconnects when the node was restarted.
#[derive(Debug)]
pub struct Broker {
    pub url: String,
    pub prefix: String,
    /// The embedded queue, where it is one.
    pub file: Option<File>,
    channel: tokio::sync::Mutex<Option<(Connection, Channel)>>,
    outcomes: Mutex<Vec<Message>>,
    published: Mutex<Vec<Value>>,
    others: AtomicUsize,
    taken: Mutex<Vec<(String, Message)>>,
}

impl Broker {
    /// The node that all tests share.
    pub fn shared(prefix: &str) -> Self {
        Self::at(exported("CONSIGN_TEST_AMQP_URL"), prefix)
    }

    pub fn at(url: String, prefix: &str) -> Self {
        let file = url.strip_prefix("sqlite:").map(|path| File::at(path.into(), prefix));
        Self {
            url,
            prefix: prefix.to_owned(),
            file,
            channel: tokio::sync::Mutex::default(),
            outcomes: Mutex::default(),
            published: Mutex::default(),
            others: AtomicUsize::new(0),
            taken: Mutex::default(),
        }
    }

    async fn channel(&self) -> Option<Channel> {
        let mut held = self.channel.lock().await;
        if let Some((connection, channel)) = &*held
            && connection.status().connected()
            && channel.status().connected()
        {
            return Some(channel.clone());
        }
        *held = None;
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await.ok()?;
        let channel = connection.create_channel().await.ok()?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.ok()?;
        let given = channel.clone();
        *held = Some((connection, channel));
        Some(given)
    }

    /// Waits for a channel; a node that starts again needs some seconds.
    pub async fn reachable(&self) -> Channel {
        until("the broker answers", Duration::from_secs(60), async || self.channel().await).await
    }

    fn own_queue(&self) -> String {
        format!("{}.test.outcomes", self.prefix)
    }

    /// Binds a queue of the test to the outcomes. The topology must be there.
    pub async fn collect_outcomes(&self) {
        let channel = self.reachable().await;
        let queue = self.own_queue();
        channel
            .queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), FieldTable::default())
            .await
            .unwrap();
        let exchange = format!("{}.outcomes", self.prefix);
        let (queue, key) = (queue.as_str().into(), "transfer.#".into());
        channel
            .queue_bind(queue, exchange.as_str().into(), key, QueueBindOptions::default(), FieldTable::default())
            .await
            .unwrap();
    }

    /// Every job that was published so far, in its order; one that was published twice is there
    /// twice.
    pub fn published(&self) -> Vec<Value> {
        self.published.lock().unwrap().clone()
    }

    /// Number of published messages that are not jobs in their plain form.
    pub fn published_others(&self) -> usize {
        self.others.load(Ordering::Relaxed)
    }

    /// Every message that this test took off a queue of the worker so far, with the queue's name
    /// below the prefix.
    pub fn all_taken(&self) -> Vec<(String, Message)> {
        self.taken.lock().unwrap().clone()
    }

    /// Publishes a job to a lane, confirmed; its id becomes the message id.
    pub async fn publish(&self, lane: &str, job: &Value) {
        self.publish_with(lane, job, &[]).await;
    }

    /// Publishes to lane `scheduled` with headers, as a copy that has waited before.
    pub async fn schedule_with_headers(&self, job: &Value, headers: &[(&str, String)]) {
        self.publish_with("scheduled", job, headers).await;
    }

    async fn publish_with(&self, lane: &str, job: &Value, headers: &[(&str, String)]) {
        let (routing_key, body, properties) = self.note(lane, job, headers);
        self.confirmed(&routing_key, &body, properties).await;
    }

    /// Publishes a job once, and says whether the broker confirmed it; it may have it even where it
    /// did not.
    pub async fn offer(&self, lane: &str, job: &Value) -> bool {
        self.offer_with_reply(lane, job, None).await
    }

    /// As [`Broker::offer`], a job whose outcome goes to this queue as well.
    pub async fn offer_with_reply(&self, lane: &str, job: &Value, reply_to: Option<&str>) -> bool {
        let (routing_key, body, mut properties) = self.note(lane, job, &[]);
        if let Some(queue) = reply_to {
            properties = properties.with_reply_to(queue.into());
        }
        if let Some(file) = &self.file {
            return file.publish(routing_key, job["id"].as_str(), body).await;
        }
        let Some(channel) = self.channel().await else { return false };
        let sent = send(&channel, &self.prefix, &routing_key, &body, properties);
        matches!(sent.await, Ok(Confirmation::Ack(None)))
    }

    /// Takes a job down as published, and makes the message of it.
    fn note(&self, lane: &str, job: &Value, headers: &[(&str, String)]) -> (String, Vec<u8>, BasicProperties) {
        self.published.lock().unwrap().push(job.clone());
        let destination = job["destination"].as_str().or_else(|| job["destination"]["id"].as_str()).unwrap_or("none");
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), AMQPValue::LongString(value.as_str().into()));
        }
        let properties = BasicProperties::default().with_content_type("application/json".into()).with_headers(table);
        let properties = match job["id"].as_str() {
            Some(id) => properties.with_message_id(id.into()),
            None => properties,
        };
        (format!("job.{lane}.{destination}"), serde_json::to_vec(job).unwrap(), properties)
    }

    /// Publishes to lane `scheduled`.
    pub async fn schedule(&self, job: &Value) {
        self.publish("scheduled", job).await;
    }

    /// Publishes any bytes, confirmed.
    pub async fn publish_raw(&self, routing_key: &str, body: &[u8], properties: BasicProperties) {
        self.others.fetch_add(1, Ordering::Relaxed);
        self.confirmed(routing_key, body, properties).await;
    }

    async fn confirmed(&self, routing_key: &str, body: &[u8], properties: BasicProperties) {
        let channel = self.reachable().await;
        let confirmed = send(&channel, &self.prefix, routing_key, body, properties).await.unwrap();
        assert!(matches!(confirmed, Confirmation::Ack(None)), "{routing_key} was not taken: {confirmed:?}");
    }

    /// Puts a message with text headers straight into a queue of this prefix; a job's id becomes
    /// the message id.
    pub async fn put_into(&self, queue: &str, body: &[u8], headers: &[(&str, &str)]) {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), AMQPValue::LongString((*value).into()));
        }
        let id = serde_json::from_slice::<Value>(body).ok().and_then(|body| Some(body["id"].as_str()?.to_owned()));
        let properties = BasicProperties::default().with_headers(table).with_message_id(id.unwrap_or_default().into());
        self.put_form(queue, body, properties).await;
    }

    /// As [`Broker::put_into`], a message of any form with this id.
    pub async fn put_form(&self, queue: &str, body: &[u8], properties: BasicProperties) {
        let (queue, options) = (format!("{}.{queue}", self.prefix), BasicPublishOptions::default());
        let channel = self.reachable().await;
        let sent = channel.basic_publish("".into(), queue.into(), options, body, properties).await.unwrap();
        assert!(matches!(sent.await.unwrap(), Confirmation::Ack(None)));
    }

    /// Forgets what this test took, as if it had been lost.
    pub fn forget_taken(&self) {
        self.taken.lock().unwrap().clear();
    }

    /// Declares a durable queue of the test's own, such as one for answers; gives its whole name.
    pub async fn own(&self, name: &str) -> String {
        let queue = format!("{}.{name}", self.prefix);
        let channel = self.reachable().await;
        let declared =
            channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), FieldTable::default());
        declared.await.unwrap();
        queue
    }

    /// As [`Broker::own`], a quorum queue that holds `most` messages and refuses further ones.
    pub async fn own_bounded(&self, name: &str, most: i64) -> String {
        let queue = format!("{}.{name}", self.prefix);
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(most));
        let channel = self.reachable().await;
        channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
        queue
    }

    /// Deletes a queue, of the test's own or of the worker.
    pub async fn disown(&self, name: &str) {
        let queue = format!("{}.{name}", self.prefix);
        let channel = self.reachable().await;
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }

    /// Takes everything off a queue of this prefix (`dead`, `wait.5s`, `jobs.scheduled`).
    pub async fn take(&self, queue: &str) -> Vec<Message> {
        let messages = match &self.file {
            Some(file) => file.queue(queue),
            None => self.take_from(&format!("{}.{queue}", self.prefix)).await,
        };
        self.taken.lock().unwrap().extend(messages.iter().map(|message| (queue.to_owned(), message.clone())));
        messages
    }

    async fn take_from(&self, queue: &str) -> Vec<Message> {
        let mut taken = Vec::new();
        let Some(channel) = self.channel().await else { return taken };
        while let Ok(Some(message)) = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await {
            taken.push(read(&message.delivery));
        }
        taken
    }

    /// Waits for a message on a queue of this prefix whose body names this job.
    pub async fn taken(&self, queue: &str, job_id: &str) -> Message {
        until(&format!("{job_id} on {queue}"), Duration::from_secs(60), async || {
            self.take(queue).await.into_iter().find(|message| message.text().contains(job_id))
        })
        .await
    }

    /// All outcomes so far, in the order of their arrival.
    pub async fn outcomes(&self) -> Vec<Message> {
        if let Some(file) = &self.file {
            return file.outcomes();
        }
        let fresh = self.take_from(&self.own_queue()).await;
        let mut outcomes = self.outcomes.lock().unwrap();
        outcomes.extend(fresh);
        outcomes.clone()
    }

    /// All outcomes of a job so far.
    pub async fn outcomes_of(&self, job_id: &str) -> Vec<Value> {
        let all = self.outcomes().await;
        all.iter().map(Message::json).filter(|outcome| outcome["subject"] == job_id).collect()
    }

    /// Waits for the terminal outcome of a job.
    pub async fn ended(&self, job_id: &str) -> Value {
        until(&format!("a terminal outcome of {job_id}"), Duration::from_secs(90), async || {
            self.outcomes_of(job_id).await.into_iter().find(|o| o["type"] != "consign.transfer.retrying.v1")
        })
        .await
    }

    /// Waits until so many jobs have a terminal outcome; gives all of them by job id (the first of
    /// each).
    pub async fn all_ended(&self, count: usize, limit: Duration) -> BTreeMap<String, Value> {
        until(&format!("{count} terminal outcomes"), limit, async || {
            let mut ended = BTreeMap::new();
            for outcome in self.outcomes().await.iter().map(Message::json) {
                if outcome["type"] != "consign.transfer.retrying.v1" {
                    ended.entry(outcome["subject"].as_str().unwrap().to_owned()).or_insert(outcome);
                }
            }
            (ended.len() >= count).then_some(ended)
        })
        .await
    }

    /// Deletes the queues of this prefix: a node with thousands of quorum queues is a slow node.
    pub async fn clean(&self) {
        let Some(channel) = self.channel().await else { return };
        let waits = RETRY_DELAYS.map(|rung| format!("wait.{rung}"));
        let names =
            ["jobs.scheduled", "jobs.backfill", "jobs.continued", "dead", "lease", "outcomes.unrouted", "control"];
        for name in names.map(str::to_owned).into_iter().chain(waits).chain(["test.outcomes".to_owned()]) {
            let name = format!("{}.{name}", self.prefix);
            let _ = channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await;
        }
    }
}

async fn send(
    channel: &Channel,
    exchange: &str,
    routing_key: &str,
    body: &[u8],
    properties: BasicProperties,
) -> lapin::Result<Confirmation> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = properties.with_delivery_mode(2);
    channel.basic_publish(exchange.into(), routing_key.into(), options, body, properties).await?.await
}

fn read(delivery: &lapin::message::Delivery) -> Message {
    let properties = &delivery.properties;
    let headers = properties.headers().as_ref().map(|table| {
        table.inner().iter().map(|(name, value)| (name.to_string(), plain(value))).collect::<BTreeMap<_, _>>()
    });
    Message {
        routing_key: delivery.routing_key.to_string(),
        id: properties.message_id().as_ref().map(ToString::to_string),
        content_type: properties.content_type().as_ref().map(ToString::to_string),
        kind: properties.kind().as_ref().map(ToString::to_string),
        correlation_id: properties.correlation_id().as_ref().map(ToString::to_string),
        user_id: properties.user_id().as_ref().map(ToString::to_string),
        headers: headers.unwrap_or_default(),
        body: delivery.data.clone(),
    }
}

fn plain(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => text.to_string(),
        AMQPValue::ShortString(text) => text.to_string(),
        AMQPValue::LongLongInt(number) => number.to_string(),
        AMQPValue::LongInt(number) => number.to_string(),
        AMQPValue::LongUInt(number) => number.to_string(),
        AMQPValue::ShortInt(number) => number.to_string(),
        AMQPValue::Boolean(flag) => flag.to_string(),
        other => format!("{other:?}"),
    }
}
