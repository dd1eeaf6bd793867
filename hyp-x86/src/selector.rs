//! Which segment selectors a guest has, and which of them the hypervisor loads again for it.
//!
//! A data segment register is loaded by the guest and saved and restored by the hypervisor, in ring 0. A restore that faulted
//! would be a fault of the hypervisor's, so what is restored must not depend on a descriptor that may have changed since.

use penumbra_abi::x86_64::{FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64};

/// Selectors of the flat segments for ring 3: their descriptors lie in the hypervisor's page, where nobody changes them.
const FLAT: [u16; 3] = [FLAT_RING3_CS32, FLAT_RING3_SS64, FLAT_RING3_CS64];

/// What to load into a data segment register that held `selector`: the same, if that can't fault, or else nothing.
///
/// Selectors are null with any ring in their lowest two bits. No other can be loaded by a guest as long as it has neither a
/// local table nor descriptors of its own in the global one.
#[inline]
pub const fn restorable(selector: u16) -> u16 {
    let [first, second, third] = FLAT;
    let ring3 = selector | 3;
    if ring3 == 3 || ring3 == first || ring3 == second || ring3 == third { selector } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_and_null_selectors_are_restored() {
        for selector in FLAT.into_iter().chain(0..4) {
            assert_eq!(restorable(selector), selector);
        }
    }

    #[test]
    fn nothing_else_is() {
        let others = (4..=u16::MAX).filter(|selector| !FLAT.contains(&(selector | 3)));
        for selector in others {
            assert_eq!(restorable(selector), 0, "{selector:#x}");
        }
    }
}
