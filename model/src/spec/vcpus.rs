//! Virtual CPUs: each with roots of its own.

use penumbra_abi::errno::Errno;

use super::errors::Errors;
use super::operations::Foreseen;
use super::{Domain, Life};
use crate::format::Hardware;
use crate::hardware::content::slot;

/// vCPUs of each domain.
pub const VCPUS: usize = 3;
/// Bytes of a page that a `vcpu_info` can begin in.
const LAST_INFO: u64 = 4096 - 64;

/// What is known of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vcpu {
    /// Its kernel's root.
    pub kernel: Option<usize>,
    /// Its user mode's root.
    pub user: Option<usize>,
    /// Whether it was given its first registers.
    pub initialised: bool,
    /// Whether it runs, or waits.
    pub up: bool,
    /// The page that was registered for its `vcpu_info`.
    pub info: Option<usize>,
}

impl Domain {
    /// The vCPU that has its turn.
    pub fn vcpu(&self) -> &Vcpu {
        &self.vcpus[self.turn]
    }

    /// As [`Self::vcpu`], to be changed.
    pub fn vcpu_mut(&mut self) -> &mut Vcpu {
        &mut self.vcpus[self.turn]
    }

    /// The vCPUs that are up.
    pub fn up(&self) -> impl Iterator<Item = usize> + '_ {
        (0..VCPUS).filter(|at| self.vcpus[*at].up)
    }
}

/// An operation on a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnVcpu {
    /// Gives it its first registers: where it begins, and numbers of its roots' frames (no user root: 0).
    Initialise {
        /// First instruction.
        entry: u64,
        /// The kernel's root.
        kernel: u64,
        /// The user mode's.
        user: u64,
    },
    /// Starts it.
    Up,
    /// Stops it.
    Down,
    /// Asks whether it was started.
    IsUp,
    /// Says where its `vcpu_info` shall lie: a frame, and the offset in it.
    RegisterInfo {
        /// The frame.
        frame: u64,
        /// Bytes.
        offset: u32,
    },
}

impl Foreseen<'_> {
    /// `vcpu_op` on vCPU `number`; what it answers. A first root that could be held stays with the vCPU though the second one is refused.
    ///
    /// # Errors
    /// What it may be refused with.
    pub fn on_vcpu<F: Hardware>(
        &mut self,
        domain: usize,
        number: u64,
        operation: OnVcpu,
    ) -> Result<u64, Errors> {
        let at = usize::try_from(number).ok().filter(|at| *at < VCPUS).ok_or(Errors::only(Errno::ENOENT))?;
        let refused = Errors::only(Errno::EINVAL);
        let known = self.known.domains[domain].vcpus[at];
        match operation {
            OnVcpu::Initialise { entry, kernel, user } => {
                // The first two have a place in the shared page.
                if at >= 2 && known.info.is_none() {
                    return Err(refused);
                }
                if known.initialised {
                    return Err(Errors::only(Errno::EEXIST));
                }
                if entry == 0 {
                    return Err(refused);
                }
                self.give_roots::<F>(domain, at, kernel, user).map_err(|_| refused)?;
                self.change().known.domains[domain].vcpus[at].initialised = true;
            }
            OnVcpu::Up if !known.initialised => return Err(refused),
            OnVcpu::Up => self.known.domains[domain].vcpus[at].up = true,
            OnVcpu::Down => {
                if self.known.domains[domain].up().all(|up| up == at) {
                    self.known.domains[domain].life = Life::Dying;
                }
                self.known.domains[domain].vcpus[at].up = false;
            }
            OnVcpu::IsUp => return Ok(u64::from(known.up)),
            OnVcpu::RegisterInfo { frame, offset } => {
                let offset = u64::from(offset);
                let runs = known.up && at != self.known.domains[domain].turn;
                if offset > LAST_INFO {
                    return Err(Errors::only(Errno::ENXIO));
                }
                let world = self.world::<F>();
                let free = |at: &usize| {
                    world.owner(&self.known, *at) == Some(domain)
                        && world.table[*at] + world.descriptors[*at] == 0
                };
                let frame = slot(frame).filter(free).ok_or(refused)?;
                if !offset.is_multiple_of(8) || runs || known.info.is_some() {
                    return Err(refused);
                }
                self.change().known.domains[domain].vcpus[at].info = Some(frame);
            }
        }
        Ok(0)
    }

    fn give_roots<F: Hardware>(
        &mut self,
        domain: usize,
        at: usize,
        kernel: u64,
        user: u64,
    ) -> Result<(), Errors> {
        if self.known.domains[domain].vcpus[at].kernel != slot(kernel) || slot(kernel).is_none() {
            let root = self.may_hold::<F>(domain, kernel, F::LEVELS)?;
            self.change().known.domains[domain].vcpus[at].kernel = Some(root);
        }
        let user = match user {
            0 => None,
            held if slot(held).is_some() && self.known.domains[domain].vcpus[at].user == slot(held) => {
                slot(held)
            }
            wanted => Some(self.may_hold::<F>(domain, wanted, F::LEVELS)?),
        };
        self.change().known.domains[domain].vcpus[at].user = user;
        Ok(())
    }
}
