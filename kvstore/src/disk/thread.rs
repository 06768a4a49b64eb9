//! The thread of one shard's disk: a glommio executor that carries out orders.
//!
//! Hashing, verifying and waiting for the device happen here, so that a shard's clients do not wait for
//! them. Each order is a task; none is dropped in the middle. Making room runs beside them, with a tenth
//! of their share of the core. It decides nothing: [`Disk`] does the work, a shard says what.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use glommio::{Latency, LocalExecutorBuilder, Placement, Shares, Task};

use super::Disk;
use super::client::{ORDERS_MAX, Order};
use super::device::Device;
use crate::mesh::{Inbox, Reply};

/// Locked memory that glommio takes for an executor's own rings. The disk's ring is not among them.
pub const RING_BYTES: usize = 4 << 20;
/// Of the core, where reads and writes of clients have glommio's 1000.
const CLEANING_SHARES: usize = 100;

/// A running thread.
#[derive(Debug)]
pub struct DiskThread {
    /// Where it takes orders.
    pub orders: Arc<Inbox<Order>>,
    thread: JoinHandle<()>,
}

impl DiskThread {
    /// Starts the thread called `name`, which opens its disk itself: devices belong to their thread.
    ///
    /// # Errors
    /// What `open` or the system said.
    pub fn start<D: Device>(
        name: &str,
        open: impl FnOnce() -> io::Result<Disk<D>> + Send + 'static,
    ) -> io::Result<DiskThread> {
        let orders = Arc::new(Inbox::new(ORDERS_MAX));
        let taken = orders.clone();
        let (started, start) = std::sync::mpsc::sync_channel(1);
        // Not pinned, also where shards are: hashing a block must not stop the shard it is for.
        let executor = LocalExecutorBuilder::new(Placement::Unbound).name(name);
        let work = move || {
            let executor = match executor.io_memory(RING_BYTES).make() {
                Ok(executor) => executor,
                Err(error) => {
                    let _ = started.send(Err(io::Error::other(error.to_string())));
                    return;
                }
            };
            executor.run(async move {
                match open() {
                    Ok(disk) => {
                        let _ = started.send(Ok(()));
                        serve(Rc::new(disk), &taken).await;
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                    }
                }
            });
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
        match start.recv() {
            Ok(started) => started.map(|()| DiskThread { orders, thread }),
            Err(_) => Err(io::Error::other("its thread ended")),
        }
    }

    /// Waits for its end, which [`Order::End`] asks for.
    pub fn join(self) {
        // A panic ends the process, so a thread that ended has ended well.
        let _ = self.thread.join();
    }
}

/// Until [`Order::End`].
async fn serve<D: Device>(disk: Rc<Disk<D>>, orders: &Inbox<Order>) {
    let cleaning = clean(disk.clone());
    let end = loop {
        if let Some(end) = begin(&disk, orders.receive().await) {
            break end;
        }
    };
    if let Some(cleaning) = cleaning {
        cleaning.cancel().await;
    }
    // Whoever sends the end has had every answer, so this is the last share of the disk.
    drop(disk);
    end.send(());
}

fn clean<D: Device>(disk: Rc<Disk<D>>) -> Option<Task<()>> {
    let shares = Shares::Static(CLEANING_SHARES);
    let queue = glommio::executor().create_task_queue(shares, Latency::NotImportant, "cleaning");
    let work = async move { disk.clean(glommio::timer::sleep).await };
    let task = glommio::spawn_local_into(work, queue);
    task.inspect_err(|error| tracing::error!(%error, "the disk is not cleaned")).ok()
}

/// Begins an order; gives back who waits for the end, if that was it.
fn begin<D: Device>(disk: &Rc<Disk<D>>, order: Order) -> Option<Reply<()>> {
    match order {
        Order::Write { block, reply } => {
            run(disk, async move |disk| reply.send(disk.write(block).await));
        }
        Order::Read { key, place, slot, reply } => {
            run(disk, async move |disk| reply.send(disk.read(key, &place, slot).await));
        }
        Order::Remove { key, place, reply } => {
            run(disk, async move |disk| reply.send(disk.remove(key, &place).await));
        }
        Order::Forget { key, place } => disk.forget(key, &place),
        Order::Close => disk.close(),
        Order::End { reply } => return Some(reply),
    }
    None
}

/// A task of its own: when an operation is dropped in the middle, its segment takes no more.
fn run<D: Device, F: Future<Output = ()> + 'static>(
    disk: &Rc<Disk<D>>,
    work: impl FnOnce(Rc<Disk<D>>) -> F,
) {
    glommio::spawn_local(work(disk.clone())).detach();
}
