//! The hypervisor's own prompt: one key, one answer.

use crate::hypervisor::Hypervisor;
use crate::machine::Machine;

impl<M: Machine> Hypervisor<M> {
    /// A key was typed while the input goes to the hypervisor.
    #[inline(never)]
    pub(super) fn key(&self, key: u8) {
        match key {
            b'?' | b'h' => log::info!("keys: ? this help, q domains, m memory, a audit, r reboot"),
            b'q' => self.log_domains(),
            b'm' => self.log_memory(),
            b'a' => log::info!("{}", self.audit()),
            b'r' => {
                log::info!("reboot, as asked on the console");
                self.machine.reboot();
            }
            b'\r' | b'\n' => {}
            other => log::info!("no such key: {:?}; ? lists them", char::from(other)),
        }
    }

    fn log_domains(&self) {
        for domain in self.domains.iter().filter(|domain| domain.is_present()) {
            log::info!("{domain}, {} now", domain.pages(&self.frames));
        }
    }

    fn log_memory(&self) {
        let (first, end) = self.frames.extent();
        let free = self.frames.free_frames();
        log::info!(
            "memory: frames {first:#x} to {end:#x}, {free} free ({} MiB); 16 bytes a frame",
            free.checked_shr(8).unwrap_or(0)
        );
    }
}
