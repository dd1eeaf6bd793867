//! The operations that are measured, and their targets.
//!
//! The general target is half of what Xen takes for the same operation in the same emulator; some rows have a fixed limit
//! as well. `quoted` are the figures of Xen 4.17 that were measured before this benchmark existed, by another program: they
//! are here to see whether two ways of measuring agree, and stand in for Xen where it wasn't run.

use crate::cli::Arch;

/// One operation.
pub struct Row {
    /// Its name in the guest's output.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// At most so many instructions, whatever Xen takes.
    pub limit: Option<u64>,
    /// What Xen was measured to take, elsewhere.
    pub quoted: Option<u64>,
}

impl Row {
    /// Whether it is an operation that only Penumbra has, so that Xen's figure for the same instructions says nothing.
    pub fn is_ours_alone(&self) -> bool {
        self.name == "out-and-in"
    }

    /// Whether it is the guest kernel's own business, in which the hypervisor has no part.
    pub fn is_native(&self) -> bool {
        self.name.starts_with("native-")
    }
}

const fn row(name: &'static str, what: &'static str, limit: u64, quoted: u64) -> Row {
    Row {
        name,
        what,
        limit: if limit == 0 { None } else { Some(limit) },
        quoted: if quoted == 0 { None } else { Some(quoted) },
    }
}

/// The rows of one architecture.
pub const fn of(arch: Arch) -> &'static [Row] {
    match arch {
        Arch::Aarch64 => AARCH64,
        Arch::X86_64 => X86_64,
    }
}

/// The names of one architecture's rows.
pub fn names(arch: Arch) -> Vec<&'static str> {
    of(arch).iter().map(|row| row.name).collect()
}

/// Operations that one hypercall of row `name` does.
pub fn operations_of(arch: Arch, name: &str) -> u64 {
    let known = of(arch).iter().any(|row| row.name == name);
    let batches =
        [("batch-", 128), ("multicall-", 32), ("row-of-writes-", 512), ("pin-l1", 512), ("unpin-l1", 512)];
    batches.iter().find(|(start, _)| known && name.starts_with(start)).map_or(1, |(_, count)| *count)
}

const X86_64: &[Row] = &[
    row("null-hypercall", "null hypercall", 110, 274),
    row("unknown-hypercall", "unknown hypercall", 0, 0),
    row("page-fault-iretq", "#PF to guest handler, back by iretq", 160, 400),
    row("int3", "int3 to guest handler, back by iretq", 0, 337),
    row("page-fault-iret-hypercall", "#PF to guest handler, back by iret hypercall", 0, 710),
    row("mmu-update-map", "mmu_update, map one", 0, 989),
    row("mmu-update-unmap", "mmu_update, unmap one", 0, 921),
    row("batch-map", "batch of 128, map, per entry", 150, 549),
    row("batch-unmap", "batch of 128, unmap, per entry", 150, 481),
    row("batch-ro-to-rw", "batch of 128, RO to RW, per entry", 150, 636),
    row("batch-rw-to-ro", "batch of 128, RW to RO, per entry", 150, 661),
    row("va-mapping-map", "update_va_mapping, map", 0, 842),
    row("va-mapping-unmap", "update_va_mapping, unmap", 0, 781),
    row("multicall-map", "multicall of 32, map, per entry", 200, 779),
    row("multicall-unmap", "multicall of 32, unmap, per entry", 200, 718),
    row("multicall-null", "multicall of 32, nothing, per entry", 0, 0),
    row("emulated-map", "one direct write to a table page, map", 600, 1657),
    row("emulated-unmap", "the same, unmap", 600, 1640),
    row("row-of-writes-map", "512 direct writes in a row to one table, map, per entry", 0, 0),
    row("row-of-writes-unmap", "the same, unmap", 0, 0),
    row("out-and-in", "of these, unhooking a table and hooking it in, once", 0, 0),
    row("pin-l1", "pin an L1 table of 512 entries", 60 * 512, 104_643),
    row("unpin-l1", "unpin it", 0, 91_863),
    row("pin-tree", "pin a 4-level tree (512 mappings)", 0, 152_167),
    row("unpin-tree", "unpin it", 0, 143_054),
    row("root-same", "new_baseptr, same root", 350, 600),
    row("root-other", "new_baseptr, other root", 350, 1038),
    row("invlpg-local", "invlpg local", 0, 478),
    row("flush-local", "flush local", 0, 492),
    row("reservation", "decrease + increase reservation, 1 page", 0, 2665),
    row("event-upcall", "event to itself, upcall delivered", 0, 880),
    row("yield", "sched yield", 0, 2002),
    row("system-call", "user system call through the hypervisor, extra", 0, 684),
];

const AARCH64: &[Row] = &[
    row("null-hypercall", "null hypercall", 160, 421),
    row("unknown-hypercall", "unknown hypercall", 0, 372),
    row("mmu-update-map", "mmu_update, map one", 0, 0),
    row("mmu-update-unmap", "mmu_update, unmap one", 0, 0),
    row("batch-map", "batch of 128, map, per entry", 150, 0),
    row("batch-unmap", "batch of 128, unmap, per entry", 150, 0),
    row("batch-ro-to-rw", "batch of 128, RO to RW, per entry", 150, 0),
    row("batch-rw-to-ro", "batch of 128, RW to RO, per entry", 150, 0),
    row("va-mapping-map", "update_va_mapping, map", 0, 0),
    row("va-mapping-unmap", "update_va_mapping, unmap", 0, 0),
    row("multicall-map", "multicall of 32, map, per entry", 200, 0),
    row("multicall-unmap", "multicall of 32, unmap, per entry", 200, 0),
    row("multicall-null", "multicall of 32, nothing, per entry", 0, 0),
    row("pin-l1", "pin an L1 table of 512 entries", 60 * 512, 0),
    row("unpin-l1", "unpin it", 0, 0),
    row("pin-tree", "pin a 4-level tree (512 mappings)", 0, 0),
    row("unpin-tree", "unpin it", 0, 0),
    row("root-same", "new_baseptr, same root", 350, 0),
    row("root-other", "new_baseptr, other root", 350, 0),
    row("invlpg-local", "invlpg local", 0, 0),
    row("flush-local", "flush local", 0, 0),
    row("reservation", "decrease + increase reservation, 1 page", 0, 0),
    row("event-upcall", "event to itself, upcall delivered", 0, 0),
    row("yield", "sched yield", 0, 0),
    row("native-system-call", "the guest's own: system call from EL0 and back", 0, 0),
    row("native-page-fault", "the guest's own: page fault to its handler and back", 0, 0),
    row("native-flush-page", "the guest's own: TLB maintenance, one page", 0, 0),
    row("native-flush-all", "the guest's own: TLB maintenance, everything", 0, 0),
];
