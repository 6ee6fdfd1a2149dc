//! Handles on a guest thread for other threads: to interrupt it, to check its progress, to set its stub's own
//! answers.

use super::*;

pub(super) fn settled(shared: &Shared, area: &Area, exit_state: &ExitState, slot: usize) -> bool {
    area.ops_done(slot) == shared.seq.load(Relaxed) || exit_state.dead().is_some()
}

pub(super) struct CellAnswers {
    pub(super) area: Arc<Area>,
    pub(super) slot: usize,
    pub(super) shared: Arc<Shared>,
}

impl LocalAnswers for CellAnswers {
    fn answer(&self, nr: u64, value: Option<u32>) {
        if let Some(nr) = usize::try_from(nr).ok().filter(|nr| *nr < abi::ANSWERS) {
            self.area.set_answer(self.slot, nr, value);
        }
    }
    fn filtered(&self, on: bool) {
        self.shared.filtered.store(on, SeqCst);
        self.area.set_filtered(self.slot, on);
    }
}

pub(super) struct Interrupt {
    pub(super) space: Weak<Space>,
    pub(super) watched: Arc<Watched>,
    pub(super) shared: Arc<Shared>,
}

impl Interrupter for Interrupt {
    fn interrupt(&self) {
        if self.shared.running.load(SeqCst) {
            if let Some(space) = self.space.upgrade() {
                space.interrupt(&self.watched);
            }
        }
    }
    fn sleeps(&self) -> bool {
        self.watched.state() == abi::state::WAITING
    }
    fn pin(&self, cores: Option<&[u64]>) {
        if let Some(space) = self.space.upgrade() {
            space.inner.executor.pin(&self.watched, cores);
        }
    }
    fn park(&self) {
        if !self.shared.running.load(SeqCst) {
            if let Some(space) = self.space.upgrade() {
                if space.inner.executor.parks() {
                    self.watched.area.park(self.watched.slot);
                }
            }
        }
    }
}
