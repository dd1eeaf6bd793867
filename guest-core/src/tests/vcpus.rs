//! A second vCPU: started on tables of its own, told by and telling the first, and both edit one table at once.
//!
//! Needs a second vCPU (the hypervisor's word `dom0_max_vcpus=2`). Runs on Xen, too.

use super::check::Check;
use crate::architecture::{Architecture, PAGE_SHIFT, ROOT_LEVEL};
use crate::events::{self, Events, bind_ipi, send, unmask};
use crate::guest::Guest;
use crate::hypercalls::{address_of, block, call, mmuext, update_va_mapping, yield_cpu};
use core::sync::atomic::{AtomicU64, Ordering};
use penumbra_abi::mmu::MMUEXT_NEW_BASEPTR;
use penumbra_abi::vcpu::{
    RegisterVcpuInfo, VCPUOP_DOWN, VCPUOP_INITIALISE, VCPUOP_IS_UP, VCPUOP_REGISTER_VCPU_INFO, VCPUOP_UP,
};
use penumbra_abi::{Errno, hypercall as number};

/// Bytes of the second vCPU's stack.
const STACK_BYTES: usize = 32 << 10;
/// Each vCPU changes its page's mapping so often.
const EDITS: u64 = 20_000;
/// How often vCPU 0 yields while it waits for the other.
const PATIENCE: u32 = 4_000_000;

/// Memory that the second vCPU uses for good: what is registered is the hypervisor's to write from then on.
#[repr(C, align(4096))]
struct Words<const COUNT: usize>([AtomicU64; COUNT]);

static STACK: Words<{ STACK_BYTES / 8 }> = Words([const { AtomicU64::new(0) }; STACK_BYTES / 8]);
static INFO: Words<512> = Words([const { AtomicU64::new(0) }; 512]);
/// Where in its page the `vcpu_info` lies.
const INFO_OFFSET: u32 = 1024;

/// What the second vCPU is to do, and how far it is.
static EDITED_PAGE: AtomicU64 = AtomicU64::new(0);
static EDITED_FRAME: AtomicU64 = AtomicU64::new(0);
static FIRST_ROOT: AtomicU64 = AtomicU64::new(0);
static TELL: AtomicU64 = AtomicU64::new(0);
static STARTED: AtomicU64 = AtomicU64::new(0);
static TOLD: AtomicU64 = AtomicU64::new(0);
static EDITS_DONE: AtomicU64 = AtomicU64::new(0);
static EDITS_REFUSED: AtomicU64 = AtomicU64::new(0);
/// Where its port is counted, in the page that the handler writes.
static PORT: AtomicU64 = AtomicU64::new(0);

/// Runs the test `vcpus`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let up = |operation, vcpu| call::<A>(number::VCPU_OP, &[operation, vcpu]);
    if check.done("there is a second vCPU", up(VCPUOP_IS_UP, 1)) != Some(0) {
        return check.that("it hasn't been started", false);
    }
    check.refused("there is no third", up(VCPUOP_IS_UP, 2), &[Errno::ENOENT]);
    check.refused("it has no registers yet", up(VCPUOP_UP, 1), &[Errno::EINVAL]);
    let (Some(events), Some(root)) = (Events::open(guest), guest.copy_of_root()) else {
        return check.that("there are pages for the test", false);
    };
    check.done("make the second root read-only", guest.set_writable(&root, false));
    register(guest, check);
    refusals(guest, check, guest.frame(&root));
    let (Some(ours), Some(theirs)) = (guest.pages.allocate(), guest.pages.allocate()) else {
        return check.that("there are pages to edit", false);
    };
    EDITED_PAGE.store(guest.address(&theirs), Ordering::Relaxed);
    EDITED_FRAME.store(guest.frame(&theirs), Ordering::Relaxed);
    FIRST_ROOT.store(guest.root_frame(), Ordering::Relaxed);
    let ports = [0, 1].map(|vcpu| check.done("a port for each vCPU", bind_ipi::<A>(vcpu)).unwrap_or(0));
    let [to_first, to_second] = ports;
    TELL.store(to_first.into(), Ordering::Relaxed);
    PORT.store(to_second.into(), Ordering::Relaxed);
    check.that("ports are unmasked", ports.iter().all(|port| unmask::<A>(*port).is_ok()));
    let stack = address_of(&STACK) + STACK_BYTES as u64;
    check.done("start it", A::initialise_vcpu(1, guest.frame(&root), second::<A>, stack));
    check.refused(
        "start it twice",
        A::initialise_vcpu(1, guest.frame(&root), second::<A>, stack),
        &[Errno::EEXIST],
    );
    check.refused("its root is a table", guest.set_writable(&root, true), super::REFUSED_TABLE);
    check.done("up", up(VCPUOP_UP, 1));
    check.that("it is up", up(VCPUOP_IS_UP, 1) == Ok(1));
    events.wait_until(|| events.count(to_first) >= 1);
    check.that("it has told the first", STARTED.load(Ordering::Relaxed) == 1 && events.taker(to_first) == 0);
    check.done("tell it", send::<A>(to_second));
    // Both edit entries of one table now; the tick sees to it that neither waits for the other.
    let refused = edit::<A>(guest.address(&ours), guest.frame(&ours));
    check.that("every edit of ours was done", refused == 0);
    let finished = (0..PATIENCE).any(|_| {
        yield_cpu::<A>();
        up(VCPUOP_IS_UP, 1) == Ok(0)
    });
    check.that("it has gone down by itself", finished);
    check.that("it was told", TOLD.load(Ordering::Relaxed) == 1 && events.taker(to_second) == 1);
    let edits = (EDITS_DONE.load(Ordering::Relaxed), EDITS_REFUSED.load(Ordering::Relaxed));
    check.that("and has edited as much", edits == (EDITS, 0));
    for port in ports {
        check.done("close", events::close::<A>(port));
    }
    check.done("its root is a page again", guest.release(root));
    check.done("our page", guest.release(ours));
    check.done("its page", guest.release(theirs));
    check.done("give the shared page back", events.close());
}

/// The second vCPU's `vcpu_info` goes to a page of ours, once.
fn register<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let address = address_of(&INFO);
    let Some(frame) = guest.mapping(address).map(|mapping| mapping.frame) else {
        return check.that("the page has a frame", false);
    };
    let register = |vcpu: u64, mfn: u64, offset: u32| {
        let request = RegisterVcpuInfo { mfn, offset, rsvd: 0 };
        call::<A>(number::VCPU_OP, &[VCPUOP_REGISTER_VCPU_INFO, vcpu, address_of(&request)])
    };
    check.refused("a vcpu_info across pages", register(1, frame, 4064), &[Errno::ENXIO]);
    check.refused("a vcpu_info in a table", register(1, guest.root_frame(), 0), &[Errno::EINVAL]);
    check.refused("a vcpu_info in a device", register(1, A::DEVICE_FRAME, 0), &[Errno::EINVAL]);
    check.done("register its vcpu_info", register(1, frame, INFO_OFFSET));
    check.refused("register it twice", register(1, frame, 0), &[Errno::EINVAL]);
    events::set_info(1, address + u64::from(INFO_OFFSET));
    // Taken here, so that the second vCPU takes nothing but its own events.
    let word = |index: usize| INFO.0.get(INFO_OFFSET as usize / 8 + index);
    let all_selected = word(1).map(|word| word.swap(0, Ordering::Relaxed)) == Some(!0);
    let upcall = word(0).map(|word| word.fetch_and(!0xff, Ordering::Relaxed) & 0xff) == Some(1);
    check.that("anything may be pending", all_selected && upcall);
    let table = update_va_mapping::<A>(address, A::leaf(frame, false))
        .and_then(|()| mmuext::<A>(penumbra_abi::mmu::MMUEXT_PIN_L1_TABLE, frame, 0));
    check.refused("make a table of that page", table, super::REFUSED_TABLE);
    check.done("map it as it was", update_va_mapping::<A>(address, A::leaf(frame, true)));
}

/// What a vCPU can't start with.
fn refusals<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, root: u64) {
    let stack = address_of(&STACK) + STACK_BYTES as u64;
    let start = |root| A::initialise_vcpu(1, root, second::<A>, stack);
    let below = guest.walk(guest.info.pt_base).find(|step| step.level + 1 == ROOT_LEVEL);
    check.refused(
        "a table of a lower level as root",
        start(below.map_or(0, |step| step.table_frame)),
        &[Errno::EINVAL],
    );
    check.refused("a frame that is no memory of ours", start(A::DEVICE_FRAME), &[Errno::EINVAL]);
    check.refused("a frame that can't be", start(!0 >> PAGE_SHIFT), &[Errno::EINVAL]);
    // What Xen takes would start the vCPU there, once and for all.
    let taken_by_xen = A::STARTS_THAT_XEN_TAKES.iter().filter(|_| guest.on_penumbra);
    for bad in A::FORBIDDEN_STARTS.iter().chain(taken_by_xen) {
        check.refused("a state that guests must not have", bad(1, root, stack), &[Errno::EINVAL]);
    }
    let nowhere = call::<A>(number::VCPU_OP, &[VCPUOP_INITIALISE, 1, 8]);
    check.refused("registers from nowhere", nowhere, &[Errno::EFAULT]);
}

/// Changes a page's mapping again and again; how often that was refused.
fn edit<A: Architecture>(address: u64, frame: u64) -> u64 {
    let edits = (0..EDITS).map(|turn| update_va_mapping::<A>(address, A::leaf(frame, turn % 2 == 1)));
    edits.filter(Result::is_err).count() as u64
}

/// Where the second vCPU starts.
extern "C" fn second<A: Architecture>(vcpu: u64) -> ! {
    A::install_events(vcpu);
    STARTED.store(1, Ordering::Relaxed);
    let tell = |port: &AtomicU64| send::<A>(port.load(Ordering::Relaxed) as u32);
    let _ = tell(&TELL);
    let port = PORT.load(Ordering::Relaxed) as u32;
    // `block` lets events through.
    while events::count_at(port) == 0 {
        block::<A>();
    }
    TOLD.store(1, Ordering::Relaxed);
    let refused = edit::<A>(EDITED_PAGE.load(Ordering::Relaxed), EDITED_FRAME.load(Ordering::Relaxed));
    EDITS_REFUSED.store(refused, Ordering::Relaxed);
    EDITS_DONE.store(EDITS, Ordering::Relaxed);
    // Back on the first root, so that nothing holds the other.
    let _ = mmuext::<A>(MMUEXT_NEW_BASEPTR, FIRST_ROOT.load(Ordering::Relaxed), 0);
    loop {
        let _ = call::<A>(number::VCPU_OP, &[VCPUOP_DOWN, vcpu]);
    }
}
