//! Control registers, as the processor has them while guests run.

/// CR0: protection, coprocessor monitored, extension type, numeric errors, write protection, alignment mask, paging. It is what guests are told,
/// too: all but the last two concern ring 3 as well. By the alignment mask, programs that set the flag for it get their alignment checks,
/// which are for ring 3 alone.
pub const CR0: u64 = 0x8005_0033;

#[cfg(test)]
mod tests {
    use super::CR0;

    /// Intel SDM volume 3, 2.5: bits 0, 1, 4, 5, 16, 18, 31; caches on (29 and 30 clear), nothing emulated (2), no task switched (3).
    #[test]
    fn cr0_is_that_of_64_bit_kernels() {
        let bits = [0, 1, 4, 5, 16, 18, 31].iter().fold(0, |value, bit| value | 1u64 << bit);
        assert_eq!(CR0, bits);
    }
}
