//! The strings that a program is started with. A guest may give hundreds of thousands of them to each of many programs at once, and programs
//! wait for a process to run in while they hold them.

use super::wait::{WaitError, WaitQueue};
use super::Task;
use platform::budget::{Budget, Charge};
use std::sync::LazyLock;

/// Strings one after the other, each with its NUL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    bytes: Vec<u8>,
    count: usize,
}

impl Strings {
    /// Adds one, which `put` appends without its NUL.
    pub fn push_by<E>(&mut self, put: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        put(&mut self.bytes)?;
        self.bytes.push(0);
        self.count += 1;
        Ok(())
    }
    pub fn push(&mut self, s: &[u8]) {
        self.bytes.extend_from_slice(s);
        self.bytes.push(0);
        self.count += 1;
    }
    /// Each with its NUL.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.split_inclusive(|&b| b == 0)
    }
    pub fn len(&self) -> usize {
        self.count
    }
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// These in place of the first one.
    pub fn replace_first(&mut self, with: &[&[u8]]) {
        let first = self.iter().next().map_or(0, <[u8]>::len);
        let mut new = Strings { bytes: Vec::with_capacity(self.bytes.len() + 1024), count: 0 };
        for s in with {
            new.push(s);
        }
        new.bytes.extend_from_slice(self.bytes.get(first..).unwrap_or_default());
        new.count += self.count.saturating_sub(1);
        *self = new;
    }
}

impl FromIterator<Vec<u8>> for Strings {
    fn from_iter<T: IntoIterator<Item = Vec<u8>>>(all: T) -> Self {
        let mut out = Strings::default();
        for s in all {
            out.push(&s);
        }
        out
    }
}

/// Most bytes that a program may be given, its pointers included.
pub const MAX: usize = 6 << 20;
/// Each program may have as much without being counted.
const FREE: usize = 16 << 10;
/// Room is taken in such steps.
const STEP: u64 = 256 << 10;
/// Bytes of the Sentry for each of a string: the list, with room to grow, and the stack that is made of it.
const COPIES: u64 = 3;

static ALL: Budget = Budget::new(128 << 20);
static FREED: LazyLock<WaitQueue> = LazyLock::new(WaitQueue::new);

/// What the strings of one program take until it runs.
pub struct Room(Charge);

impl Default for Room {
    fn default() -> Self {
        Room(ALL.nothing())
    }
}

impl Room {
    /// Whether there is room for strings of this many bytes.
    pub fn holds(&mut self, bytes: usize) -> bool {
        let need = bytes.saturating_sub(FREE) as u64 * COPIES;
        need <= self.0.amount() || self.0.set(need.next_multiple_of(STEP))
    }

    /// Waits until there is room for any program. Whoever waits holds nothing.
    pub async fn wait(task: &Task) -> Result<(), WaitError> {
        let most = (MAX as u64 * COPIES).next_multiple_of(STEP);
        task.wait_killable(&FREED, || (ALL.left() >= most).then_some(())).await
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.0.amount() > 0 {
            self.0.set(0);
            FREED.wake_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(all: &[&str]) -> Strings {
        all.iter().map(|s| s.as_bytes().to_vec()).collect()
    }

    #[test]
    fn the_first_is_replaced() {
        let mut l = list(&["script", "", "b"]);
        assert_eq!(l.iter().collect::<Vec<_>>(), [&b"script\0"[..], b"\0", b"b\0"]);
        l.replace_first(&[b"sh", b"-x", b"./script"]);
        assert_eq!(l, list(&["sh", "-x", "./script", "", "b"]));
        assert_eq!((l.len(), l.bytes()), (5, &b"sh\0-x\0./script\0\0b\0"[..]));
        let mut none = list(&[]);
        none.replace_first(&[b"sh", b"name"]);
        assert_eq!(none, list(&["sh", "name"]));
    }

    #[test]
    fn few_large_ones_at_a_time_and_small_ones_always() {
        let mut held = Vec::new();
        loop {
            let mut room = Room::default();
            if !(0..=MAX).step_by(1 << 20).all(|n| room.holds(n)) {
                break;
            }
            held.push(room);
        }
        assert!(!held.is_empty() && held.len() < 10);
        let mut other = Room::default();
        assert!(other.holds(FREE) && !other.holds(MAX));
        drop(held);
        assert!(other.holds(MAX));
    }
}
