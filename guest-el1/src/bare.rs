//! The kernel without a hypervisor: `qemu-system-aarch64 -M virt -kernel guest-el1.img -append WORDS`.
//!
//! It finds the same world as in a domain: start info, a P2M, an M2P at the usual address, tables of 4 KiB pages over
//! [`PAGES`] pages at `VIRT_BASE`. But the tables are mapped writable and the kernel writes them itself, as any kernel does on
//! its own machine; of hypercalls, console output and shutdown are carried out here, the rest answers ENOSYS.
//! So the kernel's operations can be counted with nothing below them, to compare.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use dtoolkit::fdt::Fdt;
use dtoolkit::{Node, Property};
use guest_core::Architecture;
use guest_core::architecture::{PAGE_SIZE, table_index};
use penumbra_abi::start_info::{MAX_GUEST_CMDLINE, SIF_INITDOMAIN, StartInfo};
use penumbra_abi::{Errno, console, hypercall as number, sched};
use zerocopy::FromZeros;

use crate::bare_boot::DEVICES;
use crate::entries;
use crate::machine::{Below, Kernel, VIRT_BASE};

/// No hypervisor.
pub struct Nothing;

/// The kernel on its own.
pub type Bare = Kernel<Nothing>;

/// Pages of memory that it uses: 64 MiB.
const PAGES: u64 = 16384;
/// The PL011 of `virt`: its data register, and the flag register's "transmit FIFO full".
const UART: u64 = DEVICES + 0x900_0000;
const UART_FLAGS: u64 = UART + 0x18;
const TRANSMIT_FULL: u32 = 1 << 5;
/// PSCI 0.2 (DEN 0022).
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
/// Bytes of a device tree that are looked at.
const DEVICE_TREE_LIMIT: usize = 2 << 20;

impl Below for Nothing {
    const NATIVE: bool = true;

    fn hypercall(number: u64, arguments: [u64; 6]) -> u64 {
        let [operation, first, second, ..] = arguments;
        match (number, operation) {
            (number::CONSOLE_IO, console::CONSOLEIO_WRITE) => write_bytes(second, first),
            (number::SCHED_OP, sched::SCHEDOP_SHUTDOWN) => {
                // The reason is the first word of a structure of 4 bytes.
                let reason = Bare::read_word(first & !7) >> (8 * (first & 7));
                power(if reason as u32 == sched::SHUTDOWN_REBOOT { SYSTEM_RESET } else { SYSTEM_OFF })
            }
            (number::SCHED_OP, sched::SCHEDOP_BLOCK | sched::SCHEDOP_YIELD) => {}
            _ => return Errno::ENOSYS.to_return(),
        }
        0
    }
}

/// Set when this kernel has the machine for itself.
static NATIVE: AtomicBool = AtomicBool::new(false);

/// Whether this kernel has the machine for itself.
pub fn is_native() -> bool {
    NATIVE.load(Ordering::Relaxed)
}

fn write_bytes(from: u64, count: u64) {
    for address in (0..count).map(|offset| from + offset) {
        let byte = Bare::read_word(address & !7) >> (8 * (address & 7)) & 0xff;
        if byte == u64::from(b'\n') {
            send(b'\r');
        }
        send(byte as u8);
    }
}

fn send(byte: u8) {
    // SAFETY: the UART's registers, mapped as device memory; nobody else uses them.
    unsafe {
        let mut flags = TRANSMIT_FULL;
        while flags & TRANSMIT_FULL != 0 {
            asm!("ldr {:w}, [{}]", out(reg) flags, in(reg) UART_FLAGS, options(nostack));
        }
        asm!("str {:w}, [{}]", in(reg) u32::from(byte), in(reg) UART, options(nostack));
    }
}

fn power(function: u64) {
    // SAFETY: `virt` without EL2 and EL3 takes PSCI calls by `hvc`; both functions end this kernel.
    unsafe { asm!("hvc #0", inout("x0") function => _, options(nostack)) };
}

/// Where things are, in pages from the start of memory: a bump allocator over what follows the image.
struct Layout {
    next: u64,
    /// Machine address of pseudo-physical frame 0.
    base: u64,
}

impl Layout {
    /// `count` pages of zeros; their first address.
    fn take(&mut self, count: u64) -> u64 {
        let start = VIRT_BASE + self.next * PAGE_SIZE;
        self.next += count;
        (start..start + count * PAGE_SIZE).step_by(8).for_each(|address| Bare::write_word(address, 0));
        start
    }

    fn frame_of(&self, address: u64) -> u64 {
        (address - VIRT_BASE + self.base) / PAGE_SIZE
    }

    /// Maps `address` to machine frame `frame`, in tables under `root`.
    fn map(&mut self, root: u64, address: u64, entry: u64) {
        let mut table = root;
        for level in (2..=4).rev() {
            let slot = table + table_index(address, level) as u64 * 8;
            if Bare::read_word(slot) == 0 {
                let below = self.take(1);
                Bare::write_word(slot, entries::table(self.frame_of(below)));
            }
            table = (Bare::read_word(slot) & entries::FRAME_MASK) - self.base + VIRT_BASE;
        }
        Bare::write_word(table + table_index(address, 1) as u64 * 8, entry);
    }
}

/// Called by the boot code at the kernel's own address, with the machine addresses of the device tree and of RAM's start.
pub extern "C" fn bare_main(device_tree: u64, base: u64) -> ! {
    NATIVE.store(true, Ordering::Relaxed);
    let info = build(device_tree, base);
    guest_core::run_native::<Bare>(info)
}

/// Builds what the domain builder would build, and switches to the new tables.
fn build(device_tree: u64, base: u64) -> &'static StartInfo {
    unsafe extern "C" {
        static __image_end: u8;
    }
    let image_end = (&raw const __image_end) as u64;
    let mut layout = Layout { next: (image_end - VIRT_BASE).div_ceil(PAGE_SIZE), base };
    let (p2m, m2p) = (layout.take(PAGES / 512), layout.take(PAGES / 512));
    let info = layout.take(1);
    let root = layout.take(1);
    let first_frame = base / PAGE_SIZE;
    for page in 0..PAGES {
        Bare::write_word(p2m + page * 8, first_frame + page);
        Bare::write_word(m2p + page * 8, page);
        let entry = entries::executable_leaf(first_frame + page);
        layout.map(root, VIRT_BASE + page * PAGE_SIZE, entry);
    }
    for page in 0..PAGES / 512 {
        let window = Bare::M2P_WINDOW + first_frame * 8 + page * PAGE_SIZE;
        let frame = layout.frame_of(m2p) + page;
        layout.map(root, window, entries::leaf(frame, false));
    }
    // The devices: the same block of 1 GiB as in the boot tables, in the table that the kernel's own pages have made.
    let gigabytes = (Bare::read_word(root + 511 * 8) & entries::FRAME_MASK) - base + VIRT_BASE;
    Bare::write_word(gigabytes, crate::bare_boot::DEVICE_BLOCK);
    let tables = layout.next - (root - VIRT_BASE) / PAGE_SIZE;
    let mut start = StartInfo::new_zeroed();
    start.magic[..16].copy_from_slice(b"bare-4.17-arm64\0");
    (start.nr_pages, start.flags) = (PAGES, SIF_INITDOMAIN);
    (start.pt_base, start.nr_pt_frames, start.mfn_list) = (root, tables, p2m);
    let words = command_line(device_tree - base + VIRT_BASE);
    let length = words.len().min(MAX_GUEST_CMDLINE - 1);
    start.cmd_line[..length].copy_from_slice(&words.as_bytes()[..length]);
    load(base + root - VIRT_BASE);
    let place = core::ptr::with_exposed_provenance_mut::<StartInfo>(info as usize);
    // SAFETY: a page of our own, mapped for ever, that nothing else is told of.
    unsafe {
        place.write(start);
        &*place
    }
}

/// Uses the tables under the root at machine address `root`, and none for the user's half.
fn load(root: u64) {
    const NO_USER_WALKS: u64 = 1 << 7;
    // SAFETY: the tables map the image and the stack where they are.
    unsafe {
        asm!(
            "mrs {tcr}, tcr_el1",
            "orr {tcr}, {tcr}, {off}",
            "msr tcr_el1, {tcr}",
            "dsb ish",
            "isb",
            "msr ttbr1_el1, {root}",
            "isb",
            "tlbi vmalle1",
            "dsb ish",
            "isb",
            tcr = out(reg) _,
            off = in(reg) NO_USER_WALKS,
            root = in(reg) root,
            options(nostack)
        );
    }
}

/// `/chosen/bootargs` of the device tree at `address`, or nothing.
fn command_line(address: u64) -> &'static str {
    let size = (Bare::read_word(address) >> 32) as u32;
    let size = (u32::from_be(size) as usize).min(DEVICE_TREE_LIMIT);
    let start = core::ptr::with_exposed_provenance::<u8>(address as usize);
    // SAFETY: the boot loader has put the blob there, within the first GiB of memory, which the boot tables map; it says itself how long it
    // is, and nobody writes to it.
    let blob = unsafe { core::slice::from_raw_parts(start, size) };
    words_of(blob).unwrap_or("")
}

fn words_of(blob: &'static [u8]) -> Option<&'static str> {
    let chosen = Fdt::new(blob).ok()?.find_node("/chosen")?;
    let value: &'static [u8] = chosen.property("bootargs")?.value_as::<&'static [u8]>().ok()?;
    core::ffi::CStr::from_bytes_until_nul(value).ok()?.to_str().ok()
}
