//! Other ways into a kernel: 32-bit and x32 calls, `sysenter`, 32-bit code, the vsyscall page.

use super::raw::*;
use super::*;

/// Code in the lowest 4 GiB, in reach of a 32-bit program, followed by room for data.
unsafe fn low(code: &[u8]) -> *mut u8 {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT;
    let p = ok(mmap(std::ptr::null_mut(), 4 * PAGE, RW | PROT_EXEC, flags, -1, 0)).cast::<u8>();
    std::ptr::copy_nonoverlapping(code.as_ptr(), p, code.len());
    p
}

/// int 0x80 with the registers of `call`: eax, ebx, ecx, edx, esi, edi.
unsafe fn int80(gate: *const u8, nr: u32, a: [u64; 5]) -> i64 {
    let r: i64;
    std::arch::asm!("push rbx", "mov rbx, {b}", "call {g}", "pop rbx",
        b = in(reg) a[0], g = in(reg) gate, inout("rax") nr as i64 => r,
        in("rcx") a[1], in("rdx") a[2], in("rsi") a[3], in("rdi") a[4],
        out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    r
}

/// Reports a call that reached the host's kernel although it must not.
fn not_for_us(r: i64, what: &str) {
    // 32-bit results come with or without sign extension.
    if (r as u64) < 0xffff_f001 || (r as u64 > 0xffff_ffff && r >= 0) {
        got(&format!("{r:#x} from {what}"));
    }
}

pub unsafe fn entries() {
    raw::arm();
    // int 0x80; ret / mov ecx, edx ... as each call needs
    let int = low(&[0xcd, 0x80, 0xc3]);
    let secret = format!("{}/secret\0", outside());
    std::ptr::copy_nonoverlapping(secret.as_ptr(), int.add(PAGE), secret.len());
    let (path, room) = (int.add(PAGE) as u64, int.add(2 * PAGE) as u64);
    let victim = host_pids()[0] as u64;
    // i386: exit fork read write open close execve chmod mknod mount getpid ptrace kill dup pipe socketcall clone
    // mprotect mmap2 ...
    let calls: [(u32, [u64; 5]); 24] = [
        (3, [0, room, 16, 0, 0]),
        (4, [1, room, 0, 0, 0]),
        (4, [2, room, 0, 0, 0]),
        (5, [path, 0, 0, 0, 0]),
        (11, [path, 0, 0, 0, 0]),
        (15, [path, 0o777, 0, 0, 0]),
        (20, [0; 5]),
        (24, [0; 5]),
        (26, [16, victim, 0, 0, 0]),
        (37, [victim, 9, 0, 0, 0]),
        (41, [0; 5]),
        (42, [room, 0, 0, 0, 0]),
        (64, [0; 5]),
        (102, [1, room, 0, 0, 0]),
        (120, [17, 0, 0, 0, 0]),
        (2, [0; 5]),
        (125, [TEXT, 0x1000, 7, 0, 0]),
        (192, [0, 0x1000, 7, 0x22, u64::MAX]),
        (224, [0; 5]),
        (295, [0xffff_ff9c, path, 0, 0, 0]),
        (348, [victim, room, 1, room, 1]),
        (354, [1, 0, room, 0, 0]),
        (359, [1, 1, 0, 0, 0]),
        (u32::MAX, [0; 5]),
    ];
    survive(calls.len(), |i| {
        let (nr, args) = calls[i];
        not_for_us(int80(int, nr, args), &format!("int 0x80, call {nr}"));
    });
    // The same from bytes in the stub, if it has any.
    for bytes in [[0xcdu8, 0x80], [0x0f, 0x34]] {
        let found = find(&bytes);
        survive(found.len(), |i| {
            jump(found[i], [20, 0, 0, 0, 0, 0, 0]);
        });
    }

    // x32, through the guest's own `syscall`.
    let x32 = [
        SYS_getpid, SYS_getuid, SYS_open, SYS_openat, SYS_write, SYS_kill, SYS_fork, SYS_mmap, 512, 515, 519, 520, 521,
        535, 545,
    ];
    survive(x32.len(), |i| {
        let r = syscall(x32[i] | 0x4000_0000, path, 0u64, 0u64, 0u64, 0u64, 0u64);
        if r != -1 || errno() != ENOSYS {
            got(&format!("{r} from x32 call {}", x32[i]));
        }
    });
    survive(4, |i| {
        // On Linux the upper half of the number is ignored: it is the same call.
        let nr = SYS_getppid | [1i64 << 32, 1 << 62, i64::MIN, 0xffff_ffffi64 << 32][i];
        let r = syscall(nr);
        if r != getppid() as i64 {
            got(&format!("{r} from call {nr:#x}"));
        }
    });

    // sysenter, with the stack pointer in ecx/ebp like in the vDSO.
    let enter = low(&[0x0f, 0x34, 0xc3]);
    let stack = low(&[]) as u64 + 0x2000;
    survive(4, |i| {
        let nr = [20, 24, 5, 102][i];
        jump(enter as u64, [nr, path, 0, stack, 0, 0, 0]);
    });

    // 32-bit code: far return to the selector, then each way in.
    let ways: [&[u8]; 4] = [&[0xcd, 0x80], &[0x0f, 0x05], &[0x0f, 0x34], &[0x90]];
    survive(ways.len() * 3, |i| {
        // mov eax, nr; mov ebx, path; xor ecx, ecx; the way in; mov [room], eax; jmp far 0x33:back; back: ret
        let code = low(&[]);
        let nr = [20u32, 5, 24][i / ways.len()];
        let (base, result) = (code as u32, code as u32 + 3 * PAGE as u32);
        let mut bytes = vec![0xb8];
        bytes.extend(nr.to_le_bytes());
        bytes.push(0xbb);
        bytes.extend((path as u32).to_le_bytes());
        bytes.extend([0x31, 0xc9]);
        bytes.extend(ways[i % ways.len()]);
        bytes.push(0xa3);
        bytes.extend(result.to_le_bytes());
        let back = base + bytes.len() as u32 + 7;
        bytes.push(0xea);
        bytes.extend(back.to_le_bytes());
        bytes.extend([0x33, 0]);
        bytes.push(0xc3);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), code, bytes.len());
        let cell = result as *mut u32;
        *cell = 0xffff_ffda;
        // push 0x23; push code; retfq
        let mut far = vec![0x6a, 0x23, 0x68];
        far.extend(base.to_le_bytes());
        far.extend([0x48, 0xcb]);
        let far = low(&far);
        jump(far as u64, [0; 7]);
        let r = *cell;
        // eax was the call's own number if no call was made.
        if r != nr && r < 0xffff_f001 {
            got(&format!("{r:#x} from 32-bit code, way {}", i % ways.len()));
        }
    });
    // Other selectors: user data, kernel code, TSS, LDT, garbage. And a guest's own LDT.
    let selectors = [0x00u64, 0x03, 0x07, 0x08, 0x10, 0x18, 0x1b, 0x23, 0x2b, 0x3b, 0x40, 0x43, 0x63, 0x7b, 0xffff];
    survive(selectors.len(), |i| {
        // push selector; push address; retfq
        let mut far = vec![0x68];
        far.extend((selectors[i] as u32).to_le_bytes());
        far.push(0x68);
        far.extend((int as u32 + 2).to_le_bytes());
        far.extend([0x48, 0xcb]);
        jump(low(&far) as u64, [0; 7]);
        let descriptor = [0u32, 0, 0xfffff, 0x51];
        if syscall(SYS_modify_ldt, 1, descriptor.as_ptr(), 16) == 0 {
            got("a descriptor in an LDT");
        }
        for segment in 0..4 {
            // mov ds/es/fs/gs, esi; ret
            let load = low(&[0x8e, [0xde, 0xc6, 0xe6, 0xee][segment], 0xc3]);
            jump(load as u64, [39, 0, selectors[i], 0, 0, 0, 0]);
            syscall(SYS_getppid);
        }
    });

    // The vsyscall page answers like the kernel's or faults, at any offset.
    survive(3 * 4, |i| {
        let at = 0xffff_ffff_ff60_0000 + (i as u64 % 3) * 0x400 + [0, 1, 9, 0x3ff][i / 3];
        let out = anon(PAGE, RW) as u64;
        let r = jump(at, [0, out, out + 64, 0, 0, 0, 0]);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        if SIGNAL.load(SeqCst) == 0 && i < 3 {
            let seconds = if i == 0 { *(out as *const i64) } else { now };
            let seconds = if i == 1 { r } else { seconds };
            if r >= 0 && (seconds - now).abs() > 100 {
                got(&format!("{r} and {seconds} from vsyscall {i}"));
            }
        }
    });
    // Privileged instructions fault: hlt, cli, in, out, rdmsr, lgdt, mov cr3, invlpg, swapgs, sysret, iret with
    // garbage, wrpkru ...
    let privileged: [&[u8]; 16] = [
        &[0xf4],
        &[0xfa],
        &[0xe4, 0x80],
        &[0xe6, 0x80],
        &[0x0f, 0x32],
        &[0x0f, 0x30],
        &[0x0f, 0x01, 0x17],
        &[0x0f, 0x01, 0x1f],
        &[0x0f, 0x22, 0xd8],
        &[0x0f, 0x01, 0x3f],
        &[0x0f, 0x01, 0xf8],
        &[0x48, 0x0f, 0x07],
        &[0x48, 0xcf],
        &[0x0f, 0x01, 0xef],
        &[0x0f, 0x01, 0xc1],
        &[0xcd, 0x03],
    ];
    survive(privileged.len(), |i| {
        let code: Vec<u8> = privileged[i].iter().copied().chain([0xc3]).collect();
        jump(low(&code) as u64, [0, path, 0, 0, 0, 0, 0]);
        syscall(SYS_getppid);
    });
}
