//! Address spaces and guest memory.

pub mod io;
pub mod space;
pub mod stack;
pub mod text;
pub mod usage;
pub mod user;
pub mod vma;

pub use space::Mm;
pub use user::UserMem;
