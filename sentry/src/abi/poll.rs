//! Poll events (poll(2), epoll_ctl(2), `include/uapi/linux/eventpoll.h`).

bitflags::bitflags! {
    /// What is ready at a file, or what a waiter asks for. The bits of `poll` and `epoll` are the same.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PollEvents: u32 {
        const IN = 0x1;
        const PRI = 0x2;
        const OUT = 0x4;
        const ERR = 0x8;
        const HUP = 0x10;
        const NVAL = 0x20;
        const RDNORM = 0x40;
        const RDBAND = 0x80;
        const WRNORM = 0x100;
        const WRBAND = 0x200;
        const MSG = 0x400;
        const RDHUP = 0x2000;
    }
}

impl PollEvents {
    /// Data can be read.
    pub const READABLE: Self = Self::IN.union(Self::RDNORM);
    /// Data can be written.
    pub const WRITABLE: Self = Self::OUT.union(Self::WRNORM);
    /// Data can be written to a socket.
    pub const SOCKET_WRITABLE: Self = Self::WRITABLE.union(Self::WRBAND);
    /// Reported whether asked for or not.
    pub const ALWAYS: Self = Self::ERR.union(Self::HUP);
    /// Ends the wait of a reader.
    pub const READ_WAIT: Self = Self::IN.union(Self::ALWAYS).union(Self::RDHUP);
    /// Ends the wait of a writer.
    pub const WRITE_WAIT: Self = Self::OUT.union(Self::ALWAYS);

    /// The events as the guest or the host gives them, bits without a name included.
    pub const fn from_raw(bits: u32) -> Self {
        Self::from_bits_retain(bits)
    }
}
