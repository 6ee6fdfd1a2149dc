//! Overlay (stub).
pub struct OvlInode;
