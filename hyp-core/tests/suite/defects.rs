//! Defects that the core once had, each as the test that found it.

use crate::common::{self, POOL, Rig, SELF, frame, leaf, place, table};
use hyp_core::domain::Life;
use hyp_core::fake::{self, kernel};
use hyp_core::machine::Mmu;
use penumbra_abi::{hypercall as number, mmu};
use zerocopy::IntoBytes;

/// update.rs `write_plain` takes nothing off the budget: a batch of plain writes (any own writable frame) of 2^31 - 1 entries,
/// in a buffer of one page mapped many times, is never preempted.
#[test]
fn a_batch_of_plain_writes_is_preempted() {
    let rig = Rig::new(1);
    let target = rig.pool(1, 0);
    let updates = vec![mmu::MmuUpdate { pointer: place(target, 0), value: 0 }; 256];
    rig.give(1, 4096, updates.as_bytes());
    let source = rig.domains[1].p2m[common::SCRATCH as usize + 1];
    for pfn in POOL + 24..POOL + 60 {
        rig.remap(1, pfn, leaf(source, false)).unwrap();
    }
    let arguments = [common::address(POOL + 24), 36 * 256, 0, SELF, 0, 0];
    assert!(rig.call_once(1, number::MMU_UPDATE, arguments).is_err(), "9216 updates in one go, budget 4096");
}

/// teardown.rs `drop_claims`: `put_unmapped` frees without a flush, but a foreign mapping may have gone after the one flush
/// at the end of `drop_pins`.
#[test]
fn a_frame_unmapped_by_the_control_domain_during_a_teardown_is_flushed_before_it_is_free() {
    let rig = Rig::new(1);
    let at = rig.builder_entry(0, POOL);
    let mfn = *rig.domains[1].p2m.iter().max().unwrap();
    rig.update_for(0, &[(place(at.0, at.1), leaf(mfn, true))], 1).unwrap();
    rig.hv.kill(rig.domains[1].vcpu(), format_args!("a test"));
    // Until claims are being dropped: then the last flush is over.
    let first = *rig.domains[1].p2m.iter().min().unwrap();
    while rig.hv.frames().hold(first).unwrap().allocated {
        assert!(rig.hv.background());
    }
    rig.update(0, &[(place(at.0, at.1), 0)]).unwrap();
    let flushes = rig.hv.machine().flushes();
    while rig.hv.background() {}
    assert_eq!(rig.domains[1].domain.life(), Life::Vacant);
    assert!(rig.hv.machine().flushes() > flushes, "free, while a stale writable translation is cached");
}

/// builder.rs `shared_info`: the hypervisor writes to that page on its own, so it must hold a *writable* use of it (as Xen's
/// share_xen_page_with_guest). Without one the guest makes it a page table.
#[test]
fn the_page_that_the_hypervisor_writes_to_never_becomes_a_table() {
    let rig = Rig::new(1);
    let shared = rig.domains[1].domain.shared_info().unwrap();
    assert!(rig.pin(1, shared, 1).is_err(), "the shared-info page is a validated page table");
}

/// builder.rs `lay_out`/layout.rs: VIRT_BASE outside of the address space (here: 24 bits) is accepted; the vCPU would start
/// at an address that is none (on x86 a non-canonical RIP).
#[test]
fn a_kernel_outside_of_the_address_space_is_refused() {
    let hv = fake::hypervisor(common::MACHINE);
    for base in [1u64 << 40, 0x50_0000] {
        let mut file = kernel::image(4096);
        let old = kernel::VIRT_BASE;
        for at in (0..400).step_by(4) {
            if let Some(slot) = file.get_mut(at..at + 8) {
                let value = u64::from_le_bytes((&*slot).try_into().unwrap());
                if value >= old && value < old + 0x2000 {
                    slot.copy_from_slice(&(value - old + base).to_le_bytes());
                }
            }
        }
        let plan = hyp_core::domain::builder::Plan {
            kernel: &file,
            ramdisk: b"",
            arguments: "",
            pages: 1024,
            control: false,
        };
        assert!(hv.build_domain(&plan).is_err(), "VIRT_BASE {base:#x}");
    }
}

/// audit.rs: "every table must be complete or accounted for" isn't checked: a complete table may lead to an incomplete one.
#[test]
fn the_auditor_sees_an_incomplete_table_below_a_complete_one() {
    let rig = Rig::new(1);
    let (one, _) = rig.builder_entry(1, POOL);
    rig.hv.frames().set_progress(one, 16);
    assert!(rig.hv.audit().findings > 0);
}

/// audit.rs doesn't look at whose the frames are that entries lead to.
#[test]
fn the_auditor_sees_a_guests_mapping_of_a_foreign_frame() {
    let rig = Rig::new(2);
    let (one, index) = rig.builder_entry(1, POOL);
    let foreign = rig.pool(2, 0);
    let own = rig.pool(1, 0);
    rig.hv.frames().get_writable(foreign, rig.domains[2].id(), rig.hv.machine()).unwrap();
    rig.hv.frames().put_use(own, rig.hv.machine());
    rig.hv.machine().write_entry(one, index, leaf(foreign, true));
    assert!(rig.hv.audit().findings > 0);
}

/// audit.rs doesn't look at superpages, at reserved slots, or at forbidden bits.
#[test]
fn the_auditor_sees_what_stands_in_the_reserved_slots() {
    let rig = Rig::new(1);
    let root = rig.domains[1].root;
    rig.hv.machine().write_entry(root, 10, table(frame((rig.entry(root, 16) >> 20) & 0x3fff_ffff)));
    assert!(rig.hv.audit().findings > 0);
}

/// audit/totals.rs: a frame that is neither free nor anybody's went unseen.
#[test]
fn the_auditor_sees_a_lost_frame() {
    let rig = Rig::new(1);
    rig.hv.frames().free_map().unwrap().take().unwrap();
    assert_ne!(rig.hv.audit().findings, 0);
}

/// hypervisor.rs `start_domains`: when the control domain's module is missing, the next kernel took its place.
#[test]
fn a_further_domains_kernel_never_becomes_the_control_domain() {
    use hyp_core::{BootError, BootInformation, Module, ModuleKind};
    let hv = fake::hypervisor(common::MACHINE);
    let file = kernel::image(4096);
    let guest = Module { content: &file, arguments: "domain=guest memory=4M", kind: ModuleKind::Kernel };
    let boot = BootInformation { command_line: "", modules: &[guest] };
    assert_eq!(hv.start_domains(&boot), Err(BootError::NotFirst));
}
