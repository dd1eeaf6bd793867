//! Loading roots.

use super::meter;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::{address_of, mmuext};
use penumbra_abi::mmu::{MMUEXT_NEW_BASEPTR, MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE, MmuextOp};
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// Loads the root that is loaded.
pub fn same<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    alternate::<A>([guest.root_frame(); 2])
}

/// Loads another root, which is pinned: two of them in turn.
pub fn other<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    let copy = guest.copy_of_root().ok_or(Errno::ENOMEM)?;
    guest.set_writable(&copy, false)?;
    let frame = guest.frame(&copy);
    mmuext::<A>(MMUEXT_PIN_L4_TABLE, frame, 0)?;
    let result = alternate::<A>([frame, guest.root_frame()]);
    mmuext::<A>(MMUEXT_NEW_BASEPTR, guest.root_frame(), 0)?;
    mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0)?;
    guest.release(copy)?;
    result
}

fn alternate<A: Architecture>(frames: [u64; 2]) -> Result<u64, Errno> {
    let operations =
        frames.map(|frame| MmuextOp { command: MMUEXT_NEW_BASEPTR, pad: 0, argument1: frame, argument2: 0 });
    let [first, second] = [address_of(&operations[0]), address_of(&operations[1])];
    meter::simple_calls::<A>(|issue, index| {
        let operation = if index % 2 == 0 { first } else { second };
        issue(number::MMUEXT_OP, [operation, 1, 0, DOMID_SELF.into(), 0, 0])
    })
}
