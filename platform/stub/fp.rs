//! Floating point and vector state, as the kernel has put it into a signal frame.

use crate::abi::ALT_SIZE;
use crate::{stub_copy, UContext, EFAULT};
use core::ptr::addr_of_mut;

const FP_LEGACY: u64 = 512;
const FP_SW: u64 = 464;
const FP_MAGIC1: u32 = 0x4650_5853;
const XSTATE_HEADER: u64 = 64;

/// Bytes of the frame's floating point state, all included.
pub unsafe fn fp_size(fp: u64) -> u64 {
    // SAFETY: the kernel put at least the legacy area there.
    unsafe {
        if *((fp + FP_SW) as *const u32) != FP_MAGIC1 {
            return FP_LEGACY;
        }
        (*((fp + FP_SW + 4) as *const u32) as u64).clamp(FP_LEGACY, ALT_SIZE / 4)
    }
}

/// Makes the state that the frame will load the initial one.
unsafe fn fp_reset(fp: u64) {
    // SAFETY: as in `fp_size`.
    unsafe {
        let size = fp_size(fp);
        let mut at = 0;
        while at < 416 {
            *((fp + at) as *mut u64) = 0;
            at += 8;
        }
        *(fp as *mut u16) = 0x37f;
        *((fp + 24) as *mut u32) = 0x1f80;
        if size >= FP_LEGACY + XSTATE_HEADER {
            *((fp + FP_LEGACY) as *mut u64) = 0;
        }
    }
}

pub unsafe fn fp_save(uc: *mut UContext, to: u64) -> Result<(), i32> {
    // SAFETY: the frame is this thread's own.
    unsafe {
        let fp = (*uc).fpstate;
        if stub_copy(to, fp, fp_size(fp)) != 0 {
            return Err(EFAULT);
        }
        fp_reset(fp);
        Ok(())
    }
}

/// Loads state from guest memory. The kernel's own marks in the frame stay; what the guest may choose is the legacy
/// area, which components are present (of those this host has), and their contents.
pub unsafe fn fp_restore(uc: *mut UContext, from: u64) -> Result<(), i32> {
    // SAFETY: the frame is this thread's own; copies from guest memory go through `stub_copy`.
    unsafe {
        let fp = (*uc).fpstate;
        if from == 0 {
            fp_reset(fp);
            return Ok(());
        }
        let size = fp_size(fp);
        if stub_copy(fp, from, FP_SW) != 0 {
            fp_reset(fp);
            return Err(EFAULT);
        }
        let mxcsr = (fp + 24) as *mut u32;
        *mxcsr &= 0xffff;
        if size < FP_LEGACY + XSTATE_HEADER + 4 {
            return Ok(());
        }
        let header = (fp + FP_LEGACY) as *mut u64;
        let mut sw = [0u32; 4];
        let short = stub_copy(addr_of_mut!(sw) as u64, from + FP_SW, 16);
        let mut guest_header = [0u64; 1];
        if short != 0 || sw[0] != FP_MAGIC1 || stub_copy(addr_of_mut!(guest_header) as u64, from + FP_LEGACY, 8) != 0 {
            // Only x87 and SSE.
            *header = 3;
            return Ok(());
        }
        let have = *((fp + FP_SW + 8) as *const u64);
        let rest = size - FP_LEGACY - XSTATE_HEADER - 4;
        if stub_copy(fp + FP_LEGACY + XSTATE_HEADER, from + FP_LEGACY + XSTATE_HEADER, rest) != 0 {
            fp_reset(fp);
            return Err(EFAULT);
        }
        *header = guest_header[0] & have;
        Ok(())
    }
}
