//! Events for containerd. They are sent in their order by a thread of their own, and again for a while when containerd
//! is not there: it may be restarted at any time.

use super::lock;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{MessageField, MessageFull};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::ttrpc::context;
use containerd_shim_protos::{Client, EventsClient};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Events that wait for a containerd that is away; then the oldest are lost.
const KEPT: usize = 4096;
/// How often one is sent again, and after what time.
const ATTEMPTS: u32 = 60;
const PAUSE: Duration = Duration::from_secs(1);
/// For one attempt.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Queue {
    events: VecDeque<Envelope>,
    closed: bool,
    /// The thread has ended.
    done: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

pub struct Publisher {
    namespace: String,
    shared: Arc<Shared>,
}

impl Publisher {
    /// `address`: containerd's ttrpc socket.
    pub fn start(address: &str, namespace: &str) -> std::io::Result<Publisher> {
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let address = match address.contains("://") {
            true => address.to_owned(),
            false => format!("unix://{address}"),
        };
        std::thread::Builder::new().name("events".into()).spawn(move || of_thread.send_all(&address))?;
        Ok(Publisher { namespace: namespace.into(), shared })
    }

    pub fn publish<M: MessageFull>(&self, topic: &str, event: &M) {
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.into(),
            event: MessageField::some(to_any(event)),
            ..Default::default()
        };
        let mut queue = lock(&self.shared.queue);
        if queue.events.len() >= KEPT {
            queue.events.pop_front();
        }
        queue.events.push_back(envelope);
        self.shared.changed.notify_all();
    }

    /// Waits a little until all have been sent.
    pub fn finish(&self) {
        let mut queue = lock(&self.shared.queue);
        queue.closed = true;
        self.shared.changed.notify_all();
        let done = self.shared.changed.wait_timeout_while(queue, PATIENCE, |q| !q.done);
        drop(done.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Shared {
    fn send_all(&self, address: &str) {
        let mut client = None;
        while let Some(event) = self.next() {
            for _ in 0..ATTEMPTS {
                match send(&mut client, address, &event) {
                    Ok(()) => break,
                    Err(e) => {
                        log::warn!("event {}: {e}", event.topic);
                        client = None;
                        std::thread::sleep(PAUSE);
                    }
                }
            }
        }
        lock(&self.queue).done = true;
        self.changed.notify_all();
    }

    fn next(&self) -> Option<Envelope> {
        let mut queue = lock(&self.queue);
        loop {
            match queue.events.pop_front() {
                Some(event) => return Some(event),
                None if queue.closed => return None,
                None => queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

fn send(client: &mut Option<EventsClient>, address: &str, event: &Envelope) -> Result<(), String> {
    let connected = match client {
        Some(client) => client,
        None => client.insert(EventsClient::new(Client::connect(address).map_err(|e| e.to_string())?)),
    };
    let request = ForwardRequest { envelope: MessageField::some(event.clone()), ..Default::default() };
    connected.forward(context::with_duration(PATIENCE), &request).map(drop).map_err(|e| e.to_string())
}

/// As containerd's typeurl packs a message.
pub fn to_any<M: MessageFull>(message: &M) -> Any {
    Any {
        type_url: M::descriptor().full_name().into(),
        // A message of ours is complete, so that this cannot fail.
        value: message.write_to_bytes().unwrap_or_default(),
        ..Default::default()
    }
}

pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        ..Default::default()
    }
}
