//! Clocks and timers.

pub mod clock;
pub mod timer;

pub use clock::Clock;
pub use timer::Timer;
