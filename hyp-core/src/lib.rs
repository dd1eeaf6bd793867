//! The shared core of Penumbra.
//!
//! What is the same on every architecture lives here: who owns a machine frame and what it may be used as
//! (`frame`), which page-table entries may stand where the MMU can see them (`paging`), domains and how they are
//! built and torn down (`domain`), the hypercalls (`hypercall`), the console, and the scheduler. The core
//! reaches the machine only through the traits of [`machine`], which are implemented three times: by `hyp-el2`,
//! by `hyp-x86`, and by the fake machine of the tests.
#![cfg_attr(not(any(test, feature = "fake-machine")), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod address;
mod boot;
pub mod console;
mod context;
pub mod domain;
pub mod event;
#[cfg(any(test, feature = "fake-machine"))]
#[allow(
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test's machine: it is given nothing by a guest that the core has not checked"
)]
pub mod fake;
pub mod frame;
pub mod grant;
pub mod hypercall;
pub mod hypervisor;
pub mod machine;
pub mod options;
pub mod paging;
pub mod sched;
pub(crate) mod store;
mod stretch;
pub mod sync;
pub mod time;

pub use boot::{BootError, BootInformation, Module, ModuleKind};
pub use domain::vcpu::Vcpu;
pub use hypervisor::Hypervisor;
pub use sched::Next;
