//! The memory devices (mem(4), null(4), full(4), random(4)).

use crate::error::{Errno, Result, SysResult};
use crate::fs::file::{File, FileOps, MapSource};
use crate::mm::io::{Dst, Src};
use std::any::Any;

/// Random bytes generated per request to the host.
const CHUNK: usize = 64 * 1024;

/// The parts that the devices share: the position does not matter, and `lseek` returns 0.
macro_rules! mem_device {
    ($($body:tt)*) => {
        fn as_any(&self) -> &dyn Any {
            self
        }
        fn seekable(&self) -> bool {
            true
        }
        fn seek(&self, _: &File, _: i64, _: i32, _: u64) -> Result<u64> {
            Ok(0)
        }
        $($body)*
    };
}

fn swallow(src: &Src<'_>) -> SysResult<(usize, u64)> {
    Ok((src.remaining(), 0))
}

pub struct Null;
impl FileOps for Null {
    mem_device! {
        fn read(&self, _: &File, _: &mut Dst<'_>, _: u64) -> SysResult<usize> {
            Ok(0)
        }
        fn write(&self, _: &File, src: &mut Src<'_>, _: u64) -> SysResult<(usize, u64)> {
            swallow(src)
        }
    }
}

pub struct Zero;
impl FileOps for Zero {
    mem_device! {
        fn read(&self, _: &File, dst: &mut Dst<'_>, _: u64) -> SysResult<usize> {
            Ok(dst.put_zeros(dst.remaining())?)
        }
        fn write(&self, _: &File, src: &mut Src<'_>, _: u64) -> SysResult<(usize, u64)> {
            swallow(src)
        }
        fn map(&self, _: &File, _: bool) -> Result<MapSource> {
            Ok(MapSource::Anon)
        }
    }
}

pub struct Full;
impl FileOps for Full {
    mem_device! {
        fn read(&self, _: &File, dst: &mut Dst<'_>, _: u64) -> SysResult<usize> {
            Ok(dst.put_zeros(dst.remaining())?)
        }
        fn write(&self, _: &File, _: &mut Src<'_>, _: u64) -> SysResult<(usize, u64)> {
            Err(Errno::ENOSPC.into())
        }
    }
}

/// `/dev/random` and `/dev/urandom`, from the host's generator. Writes are discarded: the guest must not influence the
/// host's entropy pool.
pub struct Random;
impl FileOps for Random {
    mem_device! {
        fn read(&self, _: &File, dst: &mut Dst<'_>, _: u64) -> SysResult<usize> {
            let mut done = 0;
            while dst.remaining() > 0 {
                let n = dst.fill(CHUNK, &mut |buf| {
                    platform::host::getrandom(buf);
                    Ok(buf.len())
                });
                match n {
                    Ok(0) => break,
                    Ok(n) => done += n,
                    Err(_) if done > 0 => break,
                    Err(e) => return Err(e.into()),
                }
            }
            Ok(done)
        }
        fn write(&self, _: &File, src: &mut Src<'_>, _: u64) -> SysResult<(usize, u64)> {
            swallow(src)
        }
        fn ioctl(&self, _: &File, task: &crate::kernel::Task, cmd: u32, arg: u64) -> SysResult<u64> {
            const RNDGETENTCNT: u32 = 0x8004_5200;
            if cmd == RNDGETENTCNT {
                task.mem().write(arg, &256i32)?;
                return Ok(0);
            }
            Err(Errno::EINVAL.into())
        }
    }
}
