//! The hardware beneath the core: CPUs whose walkers, TLBs and caches are as careless as architecture allows.
//!
//! Two models of translation caches stand side by side:
//!
//! * [`reach`] is *maximal*: for each CPU and each tag, everything that a TLB, a superpage entry or a walk cache could hold by now. Whatever
//!   a walker could have met since it was last made to forget is in there: each entry of each table that it can reach
//!   is taken in the moment it is written, and a table that was met once goes on being walked, though nothing leads to it any more. What must
//!   never be cached is judged against this set, so no luck is needed to find a missing flush.
//! * [`tlb`] is *concrete*: a few entries with addresses, which guests' accesses and the hypervisor's copies really use, stale as they may
//!   be. It shows whether a flush that was promised to a guest has happened.
//!
//! [`former`] goes with the first: entries that were made absent and are remembered nevertheless. [`content`] is what frames hold: as the coherent caches have it, and as memory itself has it.

pub mod content;
pub mod former;
pub mod reach;
pub mod tlb;
