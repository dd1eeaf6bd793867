//! The ramdisk, if the domain was given one: how long it is, and a sum of its bytes.
//!
//! Our kernels have no use for its content; but whoever reads the line can tell that all of it arrived, where start info
//! says, and in order. The sum is FNV-1a with 64 bits (offset basis and prime as its authors publish them).

use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::say;
use penumbra_abi::start_info::SIF_MOD_START_PFN;

const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x100_0000_01b3;

/// Prints a line about the ramdisk, if there is one.
pub fn report<A: Architecture>(guest: &Guest<A>) {
    let (start, length) = (guest.info.mod_start, guest.info.mod_len);
    if start == 0 || length == 0 {
        return;
    }
    if guest.info.flags & SIF_MOD_START_PFN != 0 {
        return say!(A, "ramdisk: {length} bytes, not mapped");
    }
    let words = (0..length.div_ceil(8)).flat_map(|index| A::read_word(start + index * 8).to_le_bytes());
    say!(A, "ramdisk: {length} bytes, sum {:#018x}", sum(words.take(length as usize)));
}

fn sum(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(OFFSET_BASIS, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn the_sum_is_the_published_one() {
        assert_eq!(sum(b"".iter().copied()), 0xcbf2_9ce4_8422_2325);
        assert_eq!(sum(b"foobar".iter().copied()), 0x8594_4171_f739_67e8);
    }
}
