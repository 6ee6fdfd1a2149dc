//! The map of one guest address space: what is mapped where, decided here, carried out by the stub.

use parking_lot::Mutex;
use platform::AddressSpace;
use std::sync::Arc;

pub struct Mm {
    space: Mutex<Arc<dyn AddressSpace>>,
}

impl Mm {
    pub fn space(&self) -> Arc<dyn AddressSpace> {
        self.space.lock().clone()
    }
}
