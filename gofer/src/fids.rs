//! The table of files held for the client.
//!
//! A fid is a slot's index (plus one, so that it is never zero) below the slot's generation. Releasing a file
//! advances its slot to the next generation; a slot that has used them all is retired. So no fid is ever reused.

use std::os::fd::OwnedFd;

use protocol::{Fid, FileKind};
use rustix::io::Errno;

/// A file held for the client.
#[derive(Debug)]
pub struct File {
    /// Its `O_PATH` descriptor.
    pub fd: OwnedFd,
    /// Its kind, which cannot change: the descriptor holds the inode.
    pub kind: FileKind,
    /// Index of its tree.
    pub tree: usize,
    /// Whether changes in that tree are refused.
    pub read_only: bool,
}

impl File {
    /// Fails with `EROFS` in a read-only tree.
    pub fn check_writable(&self) -> Result<(), Errno> {
        if self.read_only {
            Err(Errno::ROFS)
        } else {
            Ok(())
        }
    }

    /// Fails with `ENOTDIR` unless this is a directory.
    pub fn check_directory(&self) -> Result<(), Errno> {
        if self.kind == FileKind::Directory {
            Ok(())
        } else {
            Err(Errno::NOTDIR)
        }
    }
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    file: Option<File>,
}

/// The table.
#[derive(Debug)]
pub struct Fids {
    slots: Vec<Slot>,
    free: Vec<u32>,
    max: u32,
}

impl Fids {
    /// An empty table for at most `max` files.
    pub fn new(max: u32) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), max }
    }

    /// `EMFILE` if the table is full.
    pub fn check_room(&self) -> Result<(), Errno> {
        if self.free.is_empty() && u32::try_from(self.slots.len()).map_or(true, |n| n >= self.max) {
            return Err(Errno::MFILE);
        }
        Ok(())
    }

    /// Holds `file`. `EMFILE` if the table is full.
    pub fn insert(&mut self, file: File) -> Result<Fid, Errno> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.slots.len()).map_err(|_| Errno::MFILE)?;
                if index >= self.max {
                    return Err(Errno::MFILE);
                }
                self.slots.push(Slot { generation: 1, file: None });
                index
            }
        };
        let slot = usize::try_from(index).ok().and_then(|i| self.slots.get_mut(i)).ok_or(Errno::MFILE)?;
        slot.file = Some(file);
        Fid::new(u64::from(slot.generation) << 32 | (u64::from(index) + 1)).ok_or(Errno::MFILE)
    }

    /// The file of this fid. `EBADF` if there is none (any more).
    pub fn get(&self, fid: Fid) -> Result<&File, Errno> {
        let (index, generation) = parts(fid).ok_or(Errno::BADF)?;
        match self.slots.get(index) {
            Some(Slot { generation: g, file: Some(file) }) if *g == generation => Ok(file),
            _ => Err(Errno::BADF),
        }
    }

    /// Releases a file. No effect if there is none with that fid.
    pub fn release(&mut self, fid: Fid) {
        let Some((index, generation)) = parts(fid) else { return };
        let Some(slot) = self.slots.get_mut(index) else { return };
        if slot.generation != generation || slot.file.take().is_none() {
            return;
        }
        if let (Some(next), Ok(index)) = (generation.checked_add(1), u32::try_from(index)) {
            slot.generation = next;
            self.free.push(index);
        }
    }
}

fn parts(fid: Fid) -> Option<(usize, u32)> {
    let raw = fid.raw();
    let index = u32::try_from(raw & u64::from(u32::MAX)).ok()?.checked_sub(1)?;
    Some((usize::try_from(index).ok()?, u32::try_from(raw >> 32).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        let fd = std::fs::File::open("/dev/null").unwrap().into();
        File { fd, kind: FileKind::CharDevice, tree: 0, read_only: true }
    }

    #[test]
    fn a_fid_is_never_reused() {
        let mut fids = Fids::new(2);
        let a = fids.insert(file()).unwrap();
        let b = fids.insert(file()).unwrap();
        assert_eq!(fids.insert(file()), Err(Errno::MFILE));
        fids.release(a);
        fids.release(a);
        let c = fids.insert(file()).unwrap();
        assert!(c != a && c != b);
        assert!(fids.get(a).is_err() && fids.get(b).is_ok() && fids.get(c).is_ok());
        assert_eq!(fids.insert(file()), Err(Errno::MFILE));
    }

    #[test]
    fn a_worn_out_slot_is_retired() {
        let mut fids = Fids::new(2);
        let a = fids.insert(file()).unwrap();
        fids.slots[0].generation = u32::MAX;
        fids.release(Fid::new(u64::from(u32::MAX) << 32 | 1).unwrap());
        assert!(fids.get(a).is_err());
        assert_eq!(parts(fids.insert(file()).unwrap()), Some((1, 1)));
        assert_eq!(fids.insert(file()), Err(Errno::MFILE));
    }

    #[test]
    fn unknown_fids_are_refused() {
        let mut fids = Fids::new(2);
        fids.insert(file()).unwrap();
        for raw in [1, 2, u64::MAX, 1 << 32, 1 << 63, 0x1_0000_0003] {
            let fid = Fid::new(raw).unwrap();
            assert_eq!(fids.get(fid).err(), Some(Errno::BADF), "{raw:#x}");
            fids.release(fid);
        }
    }
}
