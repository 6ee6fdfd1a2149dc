//! The Sentry's side of the control protocol ([`super::protocol`]): clients' connections, and the containers that they
//! manage.
//!
//! All of it runs on the executor: a connection is read when it is ready ([`connection`]), requests that wait (`exec`,
//! `wait`, `pause`) are futures, the others are answered at once ([`requests`]).

mod connection;
mod requests;

use connection::{Buffers, Closed, Frame};
use platform::executor::WatchHandle;
use sentry::container::Container;
use sentry::kernel::{Kernel, ThreadGroup};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::protocol::{Reply, Request, VERSION};

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 256;
/// Most requests of a connection that wait at a time.
const MAX_PENDING: usize = 16;

/// The containers of this sandbox, and the clients that manage them.
pub struct Server {
    kernel: Arc<Kernel>,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    first: OnceLock<Arc<Container>>,
    connections: Mutex<BTreeMap<u64, Arc<Connection>>>,
    next: AtomicU64,
}

pub struct Connection {
    id: u64,
    server: Weak<Server>,
    socket: Arc<OwnedFd>,
    buffers: Mutex<Buffers>,
    state: Mutex<State>,
    watch: Mutex<Option<WatchHandle>>,
}

#[derive(Default)]
struct State {
    greeted: bool,
    /// The process that this connection has started by `exec`.
    own: Option<Arc<ThreadGroup>>,
    /// It is killed when the connection ends: it is of this container.
    tied: Option<Arc<Container>>,
    ended: bool,
    /// The container that this connection has created, which ends with it.
    created: Option<Created>,
    /// Requests that are not answered yet.
    pending: usize,
}

/// A container with its Gofer's connection, which ends with both.
struct Created {
    container: Arc<Container>,
    _gofer: WatchHandle,
}

/// No panic can have left these in between: release builds abort.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    pub fn new(kernel: Arc<Kernel>) -> Arc<Server> {
        Arc::new(Server {
            kernel,
            containers: Mutex::default(),
            first: OnceLock::new(),
            connections: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    pub fn add_container(&self, container: Arc<Container>) {
        let _ = self.first.set(container.clone());
        lock(&self.containers).insert(container.id.clone(), container);
    }

    /// Ends a container that is not the first.
    fn remove_container(&self, container: &Arc<Container>) {
        lock(&self.containers).remove(&container.id);
        container.signal_all(&self.kernel, libc::SIGKILL);
    }

    fn container(&self, id: &str) -> Option<Arc<Container>> {
        lock(&self.containers).get(id).cloned()
    }

    /// Takes a connection that the monitor has accepted and checked.
    pub fn connect(self: &Arc<Self>, socket: OwnedFd) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let socket = Arc::new(socket);
        let connection = Arc::new(Connection {
            id,
            server: Arc::downgrade(self),
            socket: socket.clone(),
            buffers: Mutex::default(),
            state: Mutex::default(),
            watch: Mutex::new(None),
        });
        {
            let mut all = lock(&self.connections);
            if all.len() >= MAX_CONNECTIONS {
                log::warn!("a client was turned away: there are {MAX_CONNECTIONS} connections");
                return;
            }
            all.insert(id, connection.clone());
        }
        let weak = Arc::downgrade(&connection);
        let events = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP) as u32;
        let ready = move |_| {
            if let Some(connection) = weak.upgrade() {
                connection.ready();
            }
        };
        let handle = self.kernel.executor.watch(socket, events, Arc::new(ready));
        *lock(&connection.watch) = Some(handle);
        // What arrived before the watch.
        connection.ready();
    }
}

impl Connection {
    /// Takes up what has arrived, and sends what was kept.
    fn ready(self: &Arc<Self>) {
        let frames = {
            let mut buffers = lock(&self.buffers);
            match Self::take(&mut buffers, &self.socket) {
                Ok(frames) => frames,
                Err(e) => {
                    drop(buffers);
                    return self.close(&e);
                }
            }
        };
        for frame in frames {
            if let Err(e) = self.handle(frame) {
                return self.close(&e);
            }
        }
    }

    fn take(buffers: &mut Buffers, socket: &OwnedFd) -> Result<Vec<Frame>, Closed> {
        buffers.flush(socket)?;
        let mut frames = Vec::new();
        loop {
            let more = buffers.receive(socket);
            while let Some(frame) = buffers.next()? {
                frames.push(frame);
            }
            match more {
                Ok(true) => {}
                Ok(false) => return Ok(frames),
                // Its last requests are carried out before its end is noticed.
                Err(e) if frames.is_empty() => return Err(e),
                Err(_) => return Ok(frames),
            }
        }
    }

    fn handle(self: &Arc<Self>, frame: Frame) -> Result<(), Closed> {
        let greeted = lock(&self.state).greeted;
        match frame.request {
            Request::Hello { version } if !greeted && version == VERSION => {
                lock(&self.state).greeted = true;
                self.reply(&Reply::Hello { version: VERSION });
                Ok(())
            }
            Request::Hello { version } => Err(Closed::Malformed(format!("a hello of version {version}"))),
            _ if !greeted => Err(Closed::Malformed("no hello".into())),
            request => {
                if let Some(server) = self.server.upgrade() {
                    requests::carry_out(&server, self, request, frame.descriptors);
                }
                Ok(())
            }
        }
    }

    /// Counts one more request that waits; false: there are too many.
    fn begin(&self) -> bool {
        let mut state = lock(&self.state);
        let room = state.pending < MAX_PENDING;
        state.pending += usize::from(room);
        room
    }

    /// Answers a request that has waited.
    fn finish(self: &Arc<Self>, reply: &Reply) {
        lock(&self.state).pending -= 1;
        self.reply(reply);
    }

    fn reply(self: &Arc<Self>, reply: &Reply) {
        let sent = lock(&self.buffers).reply(&self.socket, reply);
        if let Err(e) = sent {
            self.close(&e);
        }
    }

    /// Kills the process that must not outlive the connection, once that has ended.
    fn kill_tied(&self) {
        let (own, container) = {
            let state = lock(&self.state);
            match (&state.own, &state.tied) {
                (Some(own), Some(container)) if state.ended => (own.pid, container.clone()),
                _ => return,
            }
        };
        if let Some(server) = self.server.upgrade() {
            let _ = container.signal_process(&server.kernel, own, libc::SIGKILL);
        }
    }

    fn close(self: &Arc<Self>, why: &Closed) {
        if !matches!(why, Closed::ByPeer) {
            log::warn!("a control connection was ended: {why}");
        }
        let watch = lock(&self.watch).take();
        drop(watch);
        lock(&self.state).ended = true;
        self.kill_tied();
        let created = lock(&self.state).created.take();
        if let Some(server) = self.server.upgrade() {
            lock(&server.connections).remove(&self.id);
            if let Some(created) = created {
                server.remove_container(&created.container);
            }
        }
    }
}
