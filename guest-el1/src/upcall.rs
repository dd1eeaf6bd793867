//! The handler of an event that the kernel sends to itself: see [`guest_core::bench::upcall`]. [`crate::bench`]'s vectors lead here.
//!
//! The interrupt stays pending until the hypervisor has looked again, so the handler asks it for the version before it goes back: that
//! hypercall is a part of what an upcall costs.

use core::arch::global_asm;
use core::mem::offset_of;

use guest_core::bench::upcall::{Handler, SHARED_INFO, UPCALLS};
use penumbra_abi::aarch64::HVC_IMMEDIATE;
use penumbra_abi::hypercall::XEN_VERSION;
use penumbra_abi::shared_info::ArmSharedInfo;

use crate::{bench, events, traps};

global_asm!(
    r#"
    .section .text.traps, "ax"
    .globl bench_upcall
    bench_upcall:
        stp x0, x1, [sp, #-48]!
        stp x2, x3, [sp, #16]
        str x16, [sp, #32]
        adrp x1, {shared_info}
        ldr x1, [x1, :lo12:{shared_info}]
        strb wzr, [x1]
        str xzr, [x1, #8]
        str xzr, [x1, #{pending}]
        adrp x2, {upcalls}
        ldr x3, [x2, :lo12:{upcalls}]
        add x3, x3, #1
        str x3, [x2, :lo12:{upcalls}]
        mov x0, #0
        mov x16, #{version}
        hvc #{tag}
        ldr x16, [sp, #32]
        ldp x2, x3, [sp, #16]
        ldp x0, x1, [sp], #48
        eret
    "#,
    shared_info = sym SHARED_INFO,
    upcalls = sym UPCALLS,
    pending = const offset_of!(ArmSharedInfo, evtchn_pending),
    version = const XEN_VERSION,
    tag = const HVC_IMMEDIATE,
);

/// The handler.
pub const HANDLER: Handler = Handler {
    install: || {
        bench::install();
        Ok(())
    },
    mask: |_, masked| events::mask(masked),
    remove: traps::install,
};
