//! `set_callbacks`, `callback_op` and `nmi_op`: where a guest's kernel is entered.

use core::cell::Cell;

use hyp_core::hypercall::Call;
use hyp_x86::layout;
use penumbra_abi::callback as abi;
use penumbra_abi::errno::Errno;

use crate::bounce::MASK_EVENTS;
use crate::context::GuestContext;
use crate::machine::X86;
use crate::non_maskable;

/// An entry point's address: any canonical one; it is the guest's own loss if it isn't its own.
pub fn code_address(address: u64) -> Result<u64, Errno> {
    if layout::is_canonical(address) { Ok(address) } else { Err(Errno::EINVAL) }
}

/// `set_callbacks`: those for events, for failures and for system calls; the latter two without masking events. As in Xen, one whose address
/// isn't canonical stays as it was, and nobody hears of that.
pub fn set_all(context: &GuestContext, [event, failsafe, syscall, ..]: [u64; 6]) {
    for (kind, address) in [
        (abi::CALLBACKTYPE_EVENT, event),
        (abi::CALLBACKTYPE_FAILSAFE, failsafe),
        (abi::CALLBACKTYPE_SYSCALL, syscall),
    ] {
        let _ = code_address(address).and_then(|address| register(context, kind, address, false));
    }
}

/// `nmi_op`: the callback for non-maskable interrupts by itself, as it was set before there was `callback_op`.
///
/// # Errors
/// ENOSYS: no such operation. EINVAL: an address that isn't canonical. EFAULT.
pub fn non_maskable(
    call: &Call<'_, X86>,
    context: &GuestContext,
    operation: u64,
    place: u64,
) -> Result<(), Errno> {
    match operation as u32 {
        abi::XENNMI_REGISTER_CALLBACK => {
            let [address, _pad]: [u64; 2] = call.read(place)?;
            set_non_maskable(context, code_address(address)?, MASK_EVENTS)
        }
        abi::XENNMI_UNREGISTER_CALLBACK => set_non_maskable(context, 0, 0),
        _ => Err(Errno::ENOSYS),
    }
}

/// `callback_op`
///
/// # Errors
/// ENOSYS: no such operation or callback. EINVAL: an address that isn't canonical, or a callback that can't be taken away. EFAULT.
pub fn operation(
    call: &Call<'_, X86>,
    context: &GuestContext,
    operation: u64,
    place: u64,
) -> Result<(), Errno> {
    match operation {
        abi::CALLBACKOP_REGISTER => {
            let request: abi::CallbackRegister = call.read(place)?;
            let masks = request.flags & abi::CALLBACKF_MASK_EVENTS != 0;
            register(context, request.kind, code_address(request.address)?, masks)
        }
        abi::CALLBACKOP_UNREGISTER => {
            let [kind, _]: [u16; 2] = call.read(place)?;
            unregister(context, kind)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn register(context: &GuestContext, kind: u16, address: u64, masks: bool) -> Result<(), Errno> {
    let callbacks = &context.callbacks;
    if kind == abi::CALLBACKTYPE_NMI {
        return set_non_maskable(context, address, MASK_EVENTS);
    }
    let none = Cell::new(false);
    let (callback, flag) = match kind {
        abi::CALLBACKTYPE_EVENT => (&callbacks.event, &none),
        abi::CALLBACKTYPE_FAILSAFE => (&callbacks.failsafe, &callbacks.failsafe_masks),
        abi::CALLBACKTYPE_SYSCALL => (&callbacks.syscall, &callbacks.syscall_masks),
        abi::CALLBACKTYPE_SYSCALL32 => (&callbacks.syscall32, &callbacks.syscall32_masks),
        abi::CALLBACKTYPE_SYSENTER => (&callbacks.sysenter, &none),
        _ => return Err(Errno::ENOSYS),
    };
    callback.set(address);
    flag.set(masks);
    Ok(())
}

/// As in Xen, only the one for non-maskable interrupts can be taken away.
fn unregister(context: &GuestContext, kind: u16) -> Result<(), Errno> {
    match kind {
        abi::CALLBACKTYPE_NMI => set_non_maskable(context, 0, 0),
        abi::CALLBACKTYPE_EVENT
        | abi::CALLBACKTYPE_FAILSAFE
        | abi::CALLBACKTYPE_SYSCALL
        | abi::CALLBACKTYPE_SYSENTER
        | abi::CALLBACKTYPE_SYSCALL32 => Err(Errno::EINVAL),
        _ => Err(Errno::ENOSYS),
    }
}

/// Events are masked there whatever the guest says.
fn set_non_maskable(context: &GuestContext, address: u64, flags: u8) -> Result<(), Errno> {
    if let Some(handler) = context.traps.get(non_maskable::VECTOR as usize) {
        handler.set(address, flags);
    }
    Ok(())
}
