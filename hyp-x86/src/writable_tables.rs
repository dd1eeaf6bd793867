//! Page faults that a guest never hears of: its writes to its own tables, and accesses to what an unhooked table maps.
//!
//! The instruction is taken from the guest's memory, decoded and worked out by `hyp_x86::table_write`, and the core validates what it
//! makes of the entry (`Hypervisor::write_table`). Whatever can't be done that way stays the guest's page fault.

use hyp_core::Vcpu;
use hyp_core::address::GuestVirtual;
use hyp_core::paging::table_write::TableWrite;
use hyp_x86::table_write::{self, Effect, Operation, Source, Write};
use penumbra_abi::vm_assist::VMASST_TYPE_WRITABLE_PAGETABLES;

use crate::access::{self, Hooked};
use crate::context::{Frame, GuestContext};
use crate::machine::{HYPERVISOR, X86};
use crate::{bounce, carried_out, code, cpu, trap};

/// In a page fault's error code: the page is present (bit 0), and the access was a write (bit 1).
const WRITE_TO_PRESENT: u64 = 0b11;

/// Whether the page fault is a kernel's write to a page that it can read, and it wants such writes to tables carried out.
#[inline(always)]
pub fn may_emulate(context: &GuestContext) -> bool {
    context.frame.error.get() & WRITE_TO_PRESENT == WRITE_TO_PRESENT
        && !context.user_mode.get()
        && cpu::domain().is_some_and(|domain| domain.assists(VMASST_TYPE_WRITABLE_PAGETABLES))
}

/// Deals with a page fault of a domain that has unhooked tables, or for which [`may_emulate`] says `true`. Returns who goes on.
#[inline(never)]
pub fn fault(
    vcpu: &'static Vcpu<X86>,
    context: &GuestContext,
    address: u64,
    may_emulate: bool,
) -> *const GuestContext {
    let place = GuestVirtual::new(address);
    if cpu::has_unhooked() && HYPERVISOR.hook_for_fault(vcpu, place) {
        return trap::go_on(context);
    }
    if !may_emulate {
        return hand_on(vcpu, context, address);
    }
    let written = match instruction(vcpu, context) {
        Ok(write) => emulate(vcpu, context, place, write),
        Err(otherwise) => otherwise,
    };
    match written {
        TableWrite::Done => carried_out::go_on(vcpu, context),
        TableWrite::Again => trap::go_on(context),
        TableWrite::NotATable | TableWrite::Refused => hand_on(vcpu, context, address),
    }
}

/// The instruction at which the guest stands, or what there is to do if it is none of those that are emulated.
#[inline(always)]
fn instruction(vcpu: &Vcpu<X86>, context: &GuestContext) -> Result<Write, TableWrite> {
    if !code::is_long(context) {
        return Err(TableWrite::NotATable);
    }
    let mut bytes = [0; 16];
    let address = context.frame.rip.get();
    let in_page = 4096 - (address % 4096) as usize;
    if in_page >= bytes.len() {
        let code =
            access::read_code(address, &mut bytes).ok().and_then(|()| table_write::decode_words(&bytes));
        return code.ok_or(TableWrite::NotATable);
    }
    // Its end may lie on the next page, which an unhooked table may map.
    if Hooked::now().is_none() {
        HYPERVISOR.hook_some(vcpu);
        return Err(TableWrite::Again);
    }
    let available = access::read_code_over_two_pages(address, &mut bytes, in_page);
    bytes.get(..available).and_then(table_write::decode).ok_or(TableWrite::NotATable)
}

fn emulate(vcpu: &Vcpu<X86>, context: &GuestContext, place: GuestVirtual, write: Write) -> TableWrite {
    let frame = &context.frame;
    let source = match write.source {
        Source::Register(number) => frame.general(number).get(),
        Source::HighByte(number) => frame.general(number).get() >> 8,
        Source::Constant(value) => value,
    };
    if write.operation != Operation::Move || write.size != 8 || place.bytes() & 7 != 0 {
        return emulate_any(vcpu, frame, place, write, source);
    }
    // A whole entry: whatever stood there, and no register or flag changes.
    let written = HYPERVISOR.write_table(vcpu, place, |_| Some(source));
    if written == TableWrite::Done {
        carried_out::pass(frame, write.length.into());
    }
    written
}

/// As [`emulate`], of an instruction that changes a part of an entry, or makes something of what stands there.
#[inline(never)]
fn emulate_any(
    vcpu: &Vcpu<X86>,
    frame: &Frame,
    place: GuestVirtual,
    write: Write,
    source: u64,
) -> TableWrite {
    let offset = place.bytes() & 7;
    // A write over the end of an entry concerns two: that is none that is emulated.
    if table_write::part(0, offset, write.size).is_none() {
        return TableWrite::NotATable;
    }
    let accumulator = frame.rax.get();
    let mut effect = None;
    let written = HYPERVISOR.write_table(vcpu, place, |entry| {
        let memory = table_write::part(entry, offset, write.size)?;
        let result = write.effect(memory, source, accumulator);
        effect = Some(result);
        result.memory.map(|value| table_write::with_part(entry, offset, write.size, value))
    });
    if let (TableWrite::Done, Some(effect)) = (written, effect) {
        finish(frame, write, effect);
    }
    written
}

/// Makes the registers what they are after the instruction.
fn finish(frame: &Frame, write: Write, effect: Effect) {
    if let Some(value) = effect.register {
        let (register, high) = match (write.operation, write.source) {
            (Operation::CompareExchange, _) | (_, Source::Constant(_)) => (&frame.rax, false),
            (_, Source::Register(number)) => (frame.general(number), false),
            (_, Source::HighByte(number)) => (frame.general(number), true),
        };
        let before = register.get();
        register.set(match high {
            true => before & !0xff00 | (value & 0xff) << 8,
            false => table_write::merged(before, value, write.size),
        });
    }
    frame.rflags.set(effect.flags.apply(frame.rflags.get()));
    carried_out::pass(frame, write.length.into());
}

/// The fault is the guest's. While tables are unhooked, some are hooked in, and the guest executes the instruction again: nothing has
/// become of it so far. So the way back to the guest is the preemption point between the tables.
fn hand_on(vcpu: &'static Vcpu<X86>, context: &GuestContext, address: u64) -> *const GuestContext {
    match Hooked::now() {
        Some(hooked) => bounce::page_fault(vcpu, context, address, hooked),
        None => {
            HYPERVISOR.hook_some(vcpu);
            trap::go_on(context)
        }
    }
}
