//! Where the instruction stands that a guest executes next, and whether it is a 64-bit one.
//!
//! The flat 64-bit segment is told by its selector. Of any other one the descriptor is read, from the window by which the processor sees the
//! guest's tables: in 32-bit and 16-bit code its base counts. A descriptor that has changed since the guest loaded it makes the guest's own bytes
//! be looked for at another address of the guest's, which is the guest's own affair.

use hyp_x86::layout;
use hyp_x86::segment::{self, Place};
use penumbra_abi::x86_64::FLAT_RING3_CS64;

use crate::access;
use crate::context::GuestContext;

/// In a selector: it is one of the local table.
const LOCAL: u64 = 1 << 2;

/// Whether it is a 64-bit instruction, which stands where rip says.
#[inline(always)]
pub fn is_long(context: &GuestContext) -> bool {
    context.frame.cs.get() == FLAT_RING3_CS64.into()
        || place_by_descriptor(context).is_some_and(|code| code.is_long)
}

/// Where it stands. `None`: there is no such segment any more.
#[inline(always)]
pub fn place(context: &GuestContext) -> Option<Place> {
    match context.frame.cs.get() == FLAT_RING3_CS64.into() {
        true => Some(Place { address: context.frame.rip.get(), is_long: true }),
        false => place_by_descriptor(context),
    }
}

#[cold]
#[inline(never)]
fn place_by_descriptor(context: &GuestContext) -> Option<Place> {
    let selector = context.frame.cs.get() & 0xffff;
    let offset = selector & !7;
    let page = match selector & LOCAL {
        0 => 0,
        _ if offset < u64::from(context.local_entries.get()) * 8 => layout::LOCAL_TABLE_PAGE,
        _ => return None,
    };
    let descriptor = access::read_descriptor(page * 4096 + offset).ok()?;
    Some(segment::place(descriptor, context.frame.rip.get()))
}
