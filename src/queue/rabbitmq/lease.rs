//! Leases: a long transfer is kept by a message of its own, so that neither a closed channel nor
//! the broker's acknowledgement timeout redelivers it, and a worker that disappears loses no job.
//!
//! # Renewal
//! ```text
//! acquire -> consign.lease (TTL 2 min) -> consign.owners -- key is bound --> consign.owner.<address> -> renewal, then ack
//!                                                       \- else ---------> consign.orphans -> consign.jobs.continued -> another worker
//! ```
//! A worker acquires a lease by publishing it to `consign.lease` (confirmed) and acknowledging the
//! delivery. The lease expires after 2 min and returns to the owner's queue. The owner publishes
//! the next lease, with the current checkpoint, and acknowledges the returned one after the
//! confirm. So the broker always has at least one lease of the job. If the owner's queue is not
//! consumed for a minute, its messages expire to lane `continued` as well.
//!
//! # Key, owner, epoch
//! * The **key** is the routing key of the lease and names the run of the job. The worker that
//!   takes the job over binds the key to its own queue before it publishes its first lease. So an
//!   outdated lease returns to the current owner and ends there.
//! * The **owner** (`consign-lease-owner`) is the address of the owner's queue: a unique name per
//!   process, with a suffix after a change of address. A process changes its address when the
//!   broker does not bring its queue up ([`owner`]).
//! * The **epoch** (`consign-lease-epoch`) counts take-overs: each worker that acquires the job
//!   uses one above all that it knows. The highest epoch owns the job; of two equal ones, the
//!   greater name.
//! * The **sequence number** (`consign-lease-seq`) counts the leases of one epoch, to recognize
//!   superseded ones.
//!
//! [`decision`] classifies a returned message by these, and [`table`] records what this process
//! knows. A lease that reaches lane `continued` while its owner was only disconnected, and is
//! delivered to that owner first, is renewed there.
//!
//! # Take-over and notices
//! A lease in lane `continued` is a job for any worker. The worker that acquires it publishes its
//! own lease, then a **notice** (`consign-lease-notice`) to the address of the former owner, and
//! then unbinds the key from the queues of the former owner: if that is alive, it stops at once,
//! and if it is dead, its queue must not return copies of the new leases. A notice is not a job; a
//! worker that receives one in `continued` drops it. A former owner that was disconnected for
//! longer than a notice lasts binds its keys again when it returns, and learns of the take-over
//! from the next lease that expires.
//!
//! # Hand-off and end
//! A settlement publishes its outcomes and its copy like any other. Then the lease is finished in
//! memory, and its last message is acknowledged when it returns. A settlement that fails releases
//! the lease: the returned message is forwarded to lane `continued`, once.
//!
//! A first lease that is not confirmed may be in the broker all the same. Its key stays bound to
//! this process, where it ends, and a redelivery is leased with a higher epoch.
//!
//! On close, running transfers lose their leases, which then expire to other workers. The keys of
//! settled jobs are bound to a queue that discards their last leases
//! (`consign.owner.<address>.ended`), so that no job that was delivered or handed off reaches
//! another worker. A process that is killed within two minutes of a settlement can't do that: the
//! job is delivered again, as any redelivery may be. The owner's queue is deleted on close unless
//! leases remain that other workers must receive.
//!
//! # Departures from the contract, section 4
//! * "The routing key is the owner": here it is the key of the job's run. Under the owner's name,
//!   an outdated lease would leave a dead owner's queue and reach a third worker, which would
//!   transfer the same bytes again.
//! * "x-expires 15 min": here an unused owner's queue lasts a day. The broker deletes a queue with
//!   its messages, and an outage counts as time without use: a lease that expired during an outage
//!   of 20 min was lost in the queue of a dead owner.

mod context;
mod decision;
mod entry;
mod owner;
mod owner_queue;
mod renewer;
mod session;
mod table;

pub(super) use context::LeaseContext;
pub(super) use decision::LeaseState;
pub(super) use entry::LeasedDelivery;
pub(super) use owner::OwnerIdentity;
pub(super) use renewer::LeaseRenewer;
pub(super) use table::LeaseTable;
