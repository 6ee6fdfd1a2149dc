//! Constants and flag sets of Linux's interface that several modules share: the lowest floor of the tree, which imports nothing of it.

mod poll;

pub use poll::PollEvents;
