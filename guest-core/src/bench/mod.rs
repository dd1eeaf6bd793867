//! What each operation costs, in executed instructions.
//!
//! The word `bench` measures every row, and prints a line for each: `BENCH name instructions`, or `BENCH name absent ERRNO`
//! for what this hypervisor doesn't do (yet). The machine must count instructions (`-icount shift=0,sleep=off`); then the
//! figures repeat to the digit, on Penumbra as on Xen, since both run this very kernel.
//!
//! What a loop, its arguments and its checks cost is measured by the same loop without the `syscall` or `hvc`, and taken
//! away: a hypercall's figure is that one instruction and all that the hypervisor executes for it. Where the guest's own
//! handler belongs to the operation (a fault, an upcall), the figure holds that handler, too: it is a handful of
//! instructions, and the same on every hypervisor.

mod calls;
mod direct;
pub mod given_back;
mod grants;
mod memory;
mod meter;
pub mod multicalls;
mod pinning;
mod roots;
pub mod stretches;
mod tables;
mod then_superpage;
pub mod upcall;
pub mod window;

use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::{hypercalls, say};
use penumbra_abi::Errno;

/// Measures one row: instructions for one operation.
type Row<A> = (&'static str, fn(&Guest<A>) -> Result<u64, Errno>);

/// A row that only one architecture has: it does the operation so many times and says how many units of the counter that
/// took, its loop apart.
pub type ArchitectureRow<A> = (&'static str, fn(&Guest<A>, u64) -> Result<u64, Errno>);

/// Rows of both architectures, in the order in which they are printed.
fn rows<A: Architecture>() -> [Row<A>; 28] {
    [
        ("null-hypercall", calls::null),
        ("unknown-hypercall", calls::unknown),
        ("mmu-update-map", tables::update_map),
        ("mmu-update-unmap", tables::update_unmap),
        ("batch-map", tables::batch_map),
        ("batch-unmap", tables::batch_unmap),
        ("batch-ro-to-rw", tables::batch_read_only_to_writable),
        ("batch-rw-to-ro", tables::batch_writable_to_read_only),
        ("va-mapping-map", tables::va_map),
        ("va-mapping-unmap", tables::va_unmap),
        ("multicall-map", tables::multicall_map),
        ("multicall-unmap", tables::multicall_unmap),
        ("emulated-map", direct::single_map),
        ("emulated-unmap", direct::single_unmap),
        ("row-of-writes-map", direct::row_map),
        ("row-of-writes-unmap", direct::row_unmap),
        ("out-and-in", direct::out_and_in),
        ("pin-l1", pinning::pin_table),
        ("unpin-l1", pinning::unpin_table),
        ("pin-tree", pinning::pin_tree),
        ("unpin-tree", pinning::unpin_tree),
        ("root-same", roots::same),
        ("root-other", roots::other),
        ("invlpg-local", calls::invalidate_page),
        ("flush-local", calls::flush),
        ("reservation", memory::decrease_increase),
        ("yield", calls::yield_cpu),
        ("multicall-null", calls::multicall_null),
    ]
}

/// Measures every row.
pub fn run<A: Architecture>(guest: &Guest<A>) {
    for (name, row) in rows::<A>() {
        print::<A>(name, row(guest));
    }
    run_native(guest);
}

/// Measures the rows that only this architecture has: all there are without a hypervisor.
pub fn run_native<A: Architecture>(guest: &Guest<A>) {
    for &(name, row) in A::BENCHES {
        print::<A>(
            name,
            meter::least(|| row(guest, meter::REPETITIONS))
                .map(|t| meter::each(t * A::COUNTER_UNIT, meter::REPETITIONS)),
        );
    }
    say!(A, "BENCH end");
}

/// Measures the row `name` once, when somebody has got ready for that and presses a key (`cargo xtask profile`).
pub fn profile<A: Architecture>(guest: &Guest<A>, name: &str) {
    meter::measure_once();
    say!(A, "PROFILE ready");
    let mut key = [0];
    while !matches!(hypercalls::console_read::<A>(&mut key), Ok(1)) {
        hypercalls::yield_cpu::<A>();
    }
    if let Some((name, row)) = rows::<A>().into_iter().find(|row| row.0 == name) {
        print::<A>(name, row(guest));
    }
    if let Some((name, row)) = A::BENCHES.iter().find(|row| row.0 == name) {
        print::<A>(name, row(guest, 16).map(|t| meter::each(t * A::COUNTER_UNIT, 16)));
    }
    say!(A, "PROFILE end");
}

fn print<A: Architecture>(name: &str, result: Result<u64, Errno>) {
    match result {
        Ok(value) => say!(A, "BENCH {name} {}", value),
        Err(error) => say!(A, "BENCH {name} absent {error}"),
    }
}
