//! What guests hear of the processor from `cpuid`, where the hypervisor answers.
//!
//! Of each leaf a guest sees the bits that are listed here, if the processor has them, and no others: what is new is hidden until somebody
//! has looked at it. Left out is what a ring-3 kernel can't have (superpages, global pages, fast system entry, memory-type ranges,
//! supervisor-mode protections, virtualization), what needs state that isn't switched (extended state and all that rests on it, protection
//! keys), registers that aren't given (speculation control, performance counters, thermal monitoring), and the processor's place among
//! others. (Where the processor can't let it fault, a `cpuid` without prefix asks the processor itself.)
//!
//! Leaves from 0x40000000 on are the hypervisor's own, as Xen's (`arch-x86/cpuid.h`).
//!
//! Source: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.

/// eax, ebx, ecx, edx.
pub type Registers = [u32; 4];

/// First of the leaves that describe the hypervisor.
pub const XEN_LEAVES: u32 = 0x4000_0000;
/// One beyond the last that anybody looks for a hypervisor at.
pub const XEN_LEAVES_END: u32 = 0x4001_0000;
/// "XenVMMXenVMM", as the signature of the first leaf: ebx, ecx, edx.
const SIGNATURE: [u32; 3] = [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e];
/// The version that leaf 1 tells: 4.17, whose ABI this is.
const VERSION: u32 = 4 << 16 | 17;
/// How many of these leaves there are, beyond the first.
const MOST_XEN_LEAVES: u32 = 5;
/// Leaf 2, ecx: `mmu_update` preserves accessed and dirty bits (`XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD`).
const PRESERVES_ACCESSED_AND_DIRTY: u32 = 1;
/// Leaf 3, eax: the processor's counter counts evenly, which guests may rely on.
const COUNTER_IS_SAFE: u32 = 1 << 1;

const NOTHING: Registers = [0; 4];

const fn bits<const COUNT: usize>(numbers: [u32; COUNT]) -> u32 {
    let (mut all, mut index) = (0, 0);
    while index < COUNT {
        all |= 1 << numbers[index];
        index += 1;
    }
    all
}

/// Leaf 1, ecx: sse3, pclmulqdq, ssse3, cx16, sse4.1, sse4.2, movbe, popcnt, aes, rdrand, hypervisor.
const BASIC_C: u32 = bits([0, 1, 9, 13, 19, 20, 22, 23, 25, 30, HYPERVISOR]);
/// Leaf 1, edx: fpu, vme, de, tsc, msr, pae, mce, cx8, apic, mca, cmov, pat, clflush, mmx, fxsr, sse, sse2, ss, htt.
const BASIC_D: u32 = bits([0, 1, 2, 4, 5, 6, 7, 8, 9, 14, 15, 16, 19, 23, 24, 25, 26, 27, 28]);
/// Leaf 7, ebx: bmi1, fdp_excptn_only, bmi2, erms, zero_fcs_fds, rdseed, adx, clflushopt, clwb, sha.
const STRUCTURED_B: u32 = bits([3, 6, 8, 9, 13, 18, 19, 23, 24, 29]);
/// Leaf 7, ecx: gfni, movdiri, movdir64b.
const STRUCTURED_C: u32 = bits([8, 27, 28]);
/// Leaf 7, edx: fsrm, md_clear, serialize.
const STRUCTURED_D: u32 = bits([4, 10, 14]);
/// Leaf 0x80000001, ecx: lahf, cmp_legacy, abm, sse4a, misalignsse, 3dnowprefetch.
const EXTENDED_C: u32 = bits([0, 1, 5, 6, 7, 8]);
/// Leaf 0x80000001, edx: as leaf 1's where they are the same; syscall, nx, mmxext, lm, 3dnowext, 3dnow.
const EXTENDED_D: u32 = bits([0, 1, 2, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 20, 22, 23, 24, 29, 30, 31]);
/// Leaf 0x80000008, ebx: clzero.
const WIDTHS_B: u32 = 1;
/// In leaf 1, ecx.
const HYPERVISOR: u32 = 31;

/// Highest leaves that a guest is told of.
const LAST_BASIC: u32 = 0xd;
const LAST_EXTENDED: u32 = 0x8000_001c;

/// What a guest's virtual CPU number `vcpu` sees of a leaf of which the processor says `host`.
pub fn visible(leaf: u32, subleaf: u32, host: Registers, vcpu: u16) -> Registers {
    let [a, b, c, d] = host;
    match leaf {
        0 => [a.min(LAST_BASIC), b, c, d],
        // The local APIC's number is even, so that no two vCPUs pass for one core's threads.
        1 => {
            let number = u32::from(vcpu).wrapping_mul(2) << 24;
            [a, b & 0x00ff_ffff | number, c & BASIC_C | 1 << HYPERVISOR, d & BASIC_D]
        }
        2 => host,
        // Caches; not how many share them.
        4 => [a & 0x3fff, b, c, d],
        7 if subleaf == 0 => [0, b & STRUCTURED_B, c & STRUCTURED_C, d & STRUCTURED_D],
        0x8000_0000 => [a.min(LAST_EXTENDED), b, c, d],
        0x8000_0001 => [a, b, c & EXTENDED_C, d & EXTENDED_D],
        // The name; caches and translation caches of AMD's.
        0x8000_0002..=0x8000_0006 | 0x8000_0019 | 0x8000_001a => host,
        0x8000_0008 => [a, b & WIDTHS_B, 0, 0],
        _ => NOTHING,
    }
}

/// What the hypervisor's own leaves tell of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// The time-stamp counter's frequency (kHz).
    pub counter_khz: u32,
    /// Its scale, as in `vcpu_info`.
    pub multiplier: u32,
    /// Its shift.
    pub shift: i8,
    /// Bits of a machine address, memory that could be added included.
    pub address_bits: u32,
}

/// The hypervisor's own leaf.
pub fn own(leaf: u32, subleaf: u32, machine: Machine) -> Registers {
    let [b, c, d] = SIGNATURE;
    match (leaf.wrapping_sub(XEN_LEAVES), subleaf) {
        (0, _) => [XEN_LEAVES + MOST_XEN_LEAVES, b, c, d],
        (1, _) => [VERSION, 0, 0, 0],
        // One page of hypercalls, which the register of that number fills.
        (2, _) => [1, XEN_LEAVES, PRESERVES_ACCESSED_AND_DIRTY, 0],
        (3, 0) => [COUNTER_IS_SAFE, 0, machine.counter_khz, 0],
        (3, 1) => [0, 0, machine.multiplier, machine.shift as u32],
        (3, 2) => [machine.counter_khz, 0, 0, 0],
        (5, 0) => [0, machine.address_bits & 0xff, 0, 0],
        _ => NOTHING,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const ALL: Registers = [!0; 4];
    const MACHINE: Machine =
        Machine { counter_khz: 1_000_000, multiplier: 1 << 31, shift: -1, address_bits: 40 };

    #[test]
    fn what_a_ring_3_kernel_cannot_have_is_hidden() {
        let [_, _, c, d] = visible(1, 0, ALL, 0);
        for (name, bit) in [("pse", 3), ("sep", 11), ("mtrr", 12), ("pge", 13), ("pse36", 17)] {
            assert_eq!(d >> bit & 1, 0, "{name}");
        }
        for (name, bit) in
            [("monitor", 3), ("vmx", 5), ("pcid", 17), ("x2apic", 21), ("xsave", 26), ("avx", 28)]
        {
            assert_eq!(c >> bit & 1, 0, "{name}");
        }
        let [_, b, c, d] = visible(7, 0, ALL, 0);
        for (name, bit) in [("fsgsbase", 0), ("avx2", 5), ("smep", 7), ("invpcid", 10), ("smap", 20)] {
            assert_eq!(b >> bit & 1, 0, "{name}");
        }
        for (name, bit) in [("umip", 2), ("pku", 3), ("la57", 16), ("rdpid", 22)] {
            assert_eq!(c >> bit & 1, 0, "{name}");
        }
        assert_eq!(d >> 26, 0, "speculation control");
        let [_, _, c, d] = visible(0x8000_0001, 0, ALL, 0);
        assert_eq!((c >> 2 & 1, d >> 26 & 1, d >> 3 & 1), (0, 0, 0), "svm, pages of 1 GiB, pse");
    }

    #[test]
    fn what_linux_needs_is_there() {
        let [_, _, c, d] = visible(1, 0, ALL, 0);
        // fpu, tsc, msr, pae, cx8, cmov, pat, fxsr, sse, sse2; sse3, cx16, hypervisor
        assert_eq!(d & bits([0, 4, 5, 6, 8, 15, 16, 24, 25, 26]), bits([0, 4, 5, 6, 8, 15, 16, 24, 25, 26]));
        assert_eq!(c & bits([0, 13, 31]), bits([0, 13, 31]));
        let [_, _, _, d] = visible(0x8000_0001, 0, ALL, 0);
        assert_eq!(d & bits([11, 20, 29]), bits([11, 20, 29]), "syscall, nx, lm");
        assert_eq!(
            visible(1, 0, NOTHING, 0)[2],
            1 << 31,
            "there is a hypervisor, whatever the processor says"
        );
    }

    #[test]
    fn leaf_1_tells_one_vcpu_from_another() {
        assert_eq!(visible(1, 0, ALL, 3)[1], 0x06ff_ffff);
        assert_eq!(visible(1, 0, NOTHING, 0)[1], 0);
    }

    #[test]
    fn extended_state_and_topology_are_nothing() {
        for leaf in
            [3, 5, 6, 9, 0xa, 0xb, 0xd, 0x12, 0x1f, 0x8000_0007, 0x8000_000a, 0x8000_001f, 0xc000_0001]
        {
            assert_eq!(visible(leaf, 0, ALL, 1), NOTHING, "{leaf:#x}");
        }
        assert_eq!(visible(7, 1, ALL, 0), NOTHING);
    }

    #[test]
    fn the_signature_stands_at_one_place_only() {
        let found = (XEN_LEAVES..XEN_LEAVES_END)
            .step_by(0x100)
            .filter(|leaf| own(*leaf, 0, MACHINE)[1..] == SIGNATURE);
        assert_eq!(found.collect::<Vec<_>>(), [XEN_LEAVES]);
        let text: Vec<u8> = SIGNATURE.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(text, b"XenVMMXenVMM");
        assert_eq!(own(XEN_LEAVES, 0, MACHINE)[0], XEN_LEAVES + 5);
        assert_eq!(own(XEN_LEAVES + 1, 0, MACHINE), [0x0004_0011, 0, 0, 0]);
        assert_eq!(own(XEN_LEAVES + 3, 0, MACHINE)[2], 1_000_000);
        assert_eq!(own(XEN_LEAVES + 3, 1, MACHINE)[3], !0);
        assert_eq!(own(XEN_LEAVES + 5, 0, MACHINE)[1], 40);
    }

    proptest! {
        #[test]
        fn nothing_is_made_up(leaf in prop_oneof![0u32..0x20, 0x8000_0000u32..0x8000_0030], host in any::<Registers>()) {
            let seen = visible(leaf, 0, host, 0);
            for (register, (seen, host)) in seen.into_iter().zip(host).enumerate() {
                let made_up = if (leaf, register) == (1, 2) { 1 << HYPERVISOR } else { 0 };
                // The number of leaves is cut off, and no more of it.
                let counts = leaf & 0x7fff_ffff == 0 && register == 0;
                let honest = if counts { seen <= host } else { seen & !host & !made_up == 0 };
                prop_assert!(honest);
            }
        }
    }
}
