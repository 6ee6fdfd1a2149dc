//! Values that the host passed to this process at exec (getauxval(3)), and random bytes.

/// A value of the auxiliary vector (`AT_*`); 0 if the host does not provide it.
pub fn auxval(kind: u64) -> u64 {
    // SAFETY: getauxval reads a vector that the kernel placed in this process and that never changes; any key is
    // allowed.
    unsafe { libc::getauxval(kind) }
}

/// Fills `buf` with random bytes from the host (getrandom(2)).
pub fn random(buf: &mut [u8]) {
    let mut done = 0;
    while done < buf.len() {
        let rest = &mut buf[done..];
        // SAFETY: pointer and length are those of `rest`, a live exclusive borrow.
        let n = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(n) {
            Ok(n) => done += n,
            Err(_) if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            // Without an entropy source no guest can be protected.
            Err(_) => std::process::abort(),
        }
    }
}
