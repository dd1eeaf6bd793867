//! Which segment selectors a guest has, and which of them the hypervisor loads again for it.
//!
//! A data segment register is loaded by the guest and saved and restored by the hypervisor, in ring 0. What ring 3 could load must not
//! become more than that: so what is restored asks for ring 3's rights, and a load that faults, because the descriptor has
//! changed since, is caught (`cpu.rs`).

/// What to load into a data segment register that held `selector`: null as it was, and everything else for ring 3.
#[inline]
pub const fn restorable(selector: u16) -> u16 {
    if selector & !3 == 0 { selector } else { selector | 3 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use penumbra_abi::x86_64::{FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64};

    #[test]
    fn flat_and_null_selectors_are_restored() {
        for selector in [FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64].into_iter().chain(0..4) {
            assert_eq!(restorable(selector), selector);
        }
    }

    /// With a lower ring in the selector, ring 0 could load a segment that is ring 0's.
    #[test]
    fn nothing_is_loaded_with_more_rights_than_ring_3_has() {
        for selector in 4..=u16::MAX {
            assert_eq!(restorable(selector) & 3, 3, "{selector:#x}");
            assert_eq!(restorable(selector) & !3, selector & !3);
        }
    }
}
