//! The documented experiment.
//!
//! Xen 2.0's documentation describes direct-mode paging by what one can see: the page-table entry in memory holds a
//! machine frame number, `pte_val` shows the pseudo-physical one, the control domain's GETMEMLIST lists the machine
//! frames, and no guest can make an entry to a frame that it doesn't own, or a writable one to a page table. The tour
//! does this with real numbers, in two domains that hand over to each other in a page of domain 1:
//!
//! 1. domain 1 shows an address, its entry and its frame numbers, and publishes them;
//! 2. the control domain finds them in the list of domain 1's frames;
//! 3. domain 1 tries what it may not do: to reach frames ([`attempts`]), and to make the control domain's calls
//!    ([`control_calls`]);
//! 4. the control domain prints the hypervisor's log, has everything recounted, and gives the verdict.

pub mod attempts;
mod control;
mod control_calls;
mod domain;
mod published;
mod subject;

pub use control::control;
pub use domain::{domain, spin};
pub use published::Word;
pub use subject::Subject;
