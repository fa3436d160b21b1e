//! The dead letters on RabbitMQ: the suite of all queues, and what only a broker makes hard.

use std::collections::BTreeSet;
use std::time::Duration;

use consign::queue::rabbitmq::RabbitMqDeadLetters;
use consign::queue::{self, DeadLetters as _, QueueError};
use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable};

use super::{LIMIT, Rabbit};
use crate::queue_conformance;
use crate::testbed::until;

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_keeps_its_dead_letters_as_every_queue_must() {
    queue_conformance::dead_letters::suite(Rabbit::new).await;
}

impl Rabbit {
    /// Puts dead letters straight into their queue.
    async fn bury(&self, names: &[String]) {
        for name in names {
            let properties = BasicProperties::default().with_message_id(name.as_str().into()).with_delivery_mode(2);
            let options = BasicPublishOptions::default();
            let (exchange, key) = (self.name("dlx"), "job.scheduled.acme".into());
            self.channel.basic_publish(exchange.into(), key, options, b"{}", properties).await.unwrap();
        }
        until("they are there", LIMIT, async || {
            let dead = queue::admin(&self.config, "test").depths().await.unwrap().dead;
            (dead == u64::try_from(names.len()).unwrap()).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pass_at_the_same_time_is_refused() {
    let rabbit = Rabbit::new("alone").await;
    let first = queue::admin(&rabbit.config, "test").dead_letters().await.unwrap();
    let second = queue::admin(&rabbit.config, "test").dead_letters().await;
    let Err(QueueError::Busy(said)) = second else { panic!("two at once") };
    assert!(said.contains("another `consign dead` is working on"), "{said}");
    first.close().await;
    queue::admin(&rabbit.config, "test").dead_letters().await.unwrap().close().await;
}

/// The broker takes a channel for dead that holds a message for too long.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_pass_requeues_its_letters_and_still_returns_each_once() {
    let rabbit = Rabbit::new("long").await;
    let names: Vec<_> = (0..30).map(|n| format!("job-{n}")).collect();
    rabbit.bury(&names).await;
    let letters = RabbitMqDeadLetters::open_for(Duration::from_millis(40), &rabbit.config, "test").await;
    let mut letters = Box::new(letters.unwrap());
    let (mut seen, mut requeued) = (Vec::new(), 0);
    while let Some(letter) = letters.next().await.unwrap() {
        seen.push(letter.job_id().unwrap().to_owned());
        if seen.len() % 3 == 0 {
            letters.requeue(None).await.unwrap();
            requeued += 1;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    letters.close().await;
    assert_eq!(seen.len(), names.len(), "{seen:?}");
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), names.into_iter().collect());
    let counted = queue::admin(&rabbit.config, "test").depths().await.unwrap();
    let waiting: u64 = counted.lanes.iter().map(|(_, count)| count).sum();
    assert_eq!((waiting, counted.dead), (requeued, 20));
    let got = rabbit.channel.basic_get(rabbit.name("dead").into(), BasicGetOptions { no_ack: true }).await.unwrap();
    let headers = got.unwrap().delivery.properties.headers().clone().unwrap_or_default();
    let returned = headers.inner().get("x-delivery-count").cloned();
    assert!(
        matches!(returned, Some(AMQPValue::LongLongInt(times)) if times > 1),
        "it was not given back: {returned:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_of_the_broker_is_read_and_requeued_with_its_binary_headers() {
    let rabbit = Rabbit::new("expired").await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(0));
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(rabbit.name("dlx").into()));
    let (short, durable) = (rabbit.name("seen-short"), QueueDeclareOptions { exclusive: true, ..Default::default() });
    rabbit.channel.queue_declare(short.as_str().into(), durable, arguments).await.unwrap();
    let (jobs, key) = (rabbit.config.prefix.clone(), "job.scheduled.acme");
    let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
    rabbit.channel.queue_bind(short.into(), jobs.as_str().into(), key.into(), bind, none).await.unwrap();
    let mut headers = FieldTable::default();
    let list = AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::LongInt(1)]));
    headers.insert("list".into(), list.clone());
    headers.insert("x-attempt".into(), AMQPValue::LongInt(4));
    let properties = BasicProperties::default().with_headers(headers).with_priority(3);
    let options = BasicPublishOptions::default();
    rabbit.channel.basic_publish(jobs.into(), key.into(), options, b"{}", properties).await.unwrap();
    rabbit.take(&rabbit.name("jobs.scheduled")).await;
    until("it is given up", LIMIT, async || {
        (queue::admin(&rabbit.config, "test").depths().await.unwrap().dead == 1).then_some(())
    })
    .await;
    let mut letters = queue::admin(&rabbit.config, "test").dead_letters().await.unwrap();
    let letter = letters.next().await.unwrap().unwrap();
    assert_eq!((letter.reason(), letter.class(), letter.routing_key()), ("expired", "broker", key));
    assert!(letter.message().contains("seen-short") && letter.died_at().is_some(), "{letter:?}");
    letters.requeue(None).await.unwrap();
    letters.close().await;
    let job = rabbit.take(&rabbit.name("jobs.scheduled")).await;
    let headers = job.properties.headers().as_ref().unwrap().inner();
    assert_eq!(headers.get("list"), Some(&list));
    assert_eq!(headers.get("consign-run"), Some(&AMQPValue::LongString("1".into())));
    assert!(!headers.contains_key("x-attempt") && !headers.contains_key("x-death"), "{headers:?}");
    assert_eq!(*job.properties.priority(), Some(3));
}
