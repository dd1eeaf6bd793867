//! The time, where guests read it by themselves (`xen.h`).
//!
//! A vCPU's `vcpu_info` says how system time follows from the processor's counter, and the shared-info page which time of day it was when
//! system time was zero. A guest then tells the time without a hypercall. What it reads must be what [`crate::machine::Board::now`] says, so
//! both work out the same: a counter that never changes its speed is scaled by one number, from one moment on, so each place is written once.
//! A guest may write there as well, which deceives nobody but itself.

use core::sync::atomic::Ordering;

use penumbra_abi::shared_info::VcpuTimeInfo;
use zerocopy::IntoBytes;

use crate::address::MachineFrame;
use crate::domain::vcpu::Vcpu;
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;

/// Nanoseconds from counts of a counter: counts, shifted left by `shift` (right where that is negative), times `multiplier`, without the
/// lowest 32 bits. `xen.h`, `struct vcpu_time_info`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scale {
    /// Nanoseconds for each shifted count, as a binary fraction of 32 places. Its highest bit is set.
    pub multiplier: u32,
    /// Places to the left.
    pub shift: i8,
}

/// Binary places of a scale before it is cut to its multiplier.
const PLACES: u32 = 80;

impl Scale {
    /// That of a counter of so many counts a second (of 1 where it is zero).
    pub fn of(frequency: u64) -> Self {
        // With 80 binary places, at most 110 bits and at least 46: the highest 32 are the multiplier.
        let scaled = (1_000_000_000u128 << PLACES).checked_div(frequency.max(1).into()).unwrap_or(0);
        let length = u128::BITS.saturating_sub(scaled.leading_zeros());
        let multiplier = scaled.checked_shr(length.saturating_sub(32)).unwrap_or(0) as u32;
        Self { multiplier, shift: (length as i8).wrapping_sub(PLACES as i8) }
    }

    /// The nanoseconds that so many counts take.
    #[inline(always)]
    pub fn nanoseconds(self, counts: u64) -> u64 {
        let places = u32::from(self.shift.unsigned_abs());
        let shifted = match self.shift {
            0.. => counts.checked_shl(places),
            _ => counts.checked_shr(places),
        };
        (u128::from(shifted.unwrap_or(0)).wrapping_mul(self.multiplier.into()) >> 32) as u64
    }
}

/// A [`Scale`] as one number, for who scales often: nanoseconds for each count, with 56 binary places. What comes of it differs by a nanosecond
/// at most from what guests work out, since they drop the bits that a shift to the right takes from the counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlatScale(pub u64);

impl From<Scale> for FlatScale {
    /// Of a counter of 4 MHz to 16,000 THz. Slower ones count as 4 MHz, faster ones without what can't be said of them.
    fn from(scale: Scale) -> Self {
        let places = i32::from(scale.shift).saturating_add(24);
        let multiplier = u64::from(scale.multiplier);
        Self(match u32::try_from(places) {
            Ok(places) => multiplier.checked_shl(places.min(32)).unwrap_or(u64::MAX),
            Err(_) => multiplier.checked_shr(places.unsigned_abs()).unwrap_or(0),
        })
    }
}

impl FlatScale {
    /// The nanoseconds that so many counts take.
    #[inline(always)]
    pub fn nanoseconds(self, counts: u64) -> u64 {
        (u128::from(counts).wrapping_mul(self.0.into()) >> 56) as u64
    }
}

/// The counter that guests can read, and how it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestClock {
    /// What it was when system time was zero.
    pub start: u64,
    /// How it becomes nanoseconds.
    pub scale: Scale,
}

/// In [`VcpuTimeInfo::version`]: whole, and written once. Odd would mean that an update is in progress.
const WRITTEN: u32 = 2;

impl<M: Machine> Hypervisor<M> {
    /// Writes the clock into the vCPU's `vcpu_info`, wherever that lies now.
    pub(crate) fn publish_time(&self, vcpu: &Vcpu<M>) {
        let (Some(offset), Some(clock)) = (M::VCPU_TIME, self.machine.guest_clock()) else { return };
        let info = VcpuTimeInfo {
            version: WRITTEN,
            tsc_timestamp: clock.start,
            tsc_to_system_mul: clock.scale.multiplier,
            tsc_shift: clock.scale.shift,
            ..VcpuTimeInfo::default()
        };
        // The first word, with the version, comes last; released, so that whoever sees it sees the others.
        for (index, word) in words(info.as_bytes()).enumerate().rev() {
            if let Some(place) = self.info_word(vcpu, (offset / 8).saturating_add(index)) {
                place.store(word, Ordering::Release);
            }
        }
    }

    /// Writes the time of day, in the same order, into a shared-info page that no guest uses yet.
    pub(crate) fn publish_wall_clock(&self, shared_info: MachineFrame) {
        let (Some(offset), Some(seconds)) = (M::WALL_CLOCK, self.machine.wall_clock()) else { return };
        // wc_version, wc_sec, wc_nsec, wc_sec_hi
        let clock = [WRITTEN, seconds as u32, 0, (seconds >> 32) as u32];
        for (index, word) in words(clock.as_bytes()).enumerate().rev() {
            if let Some(place) = self.machine.shared_word(shared_info, (offset / 8).saturating_add(index)) {
                place.store(word, Ordering::Release);
            }
        }
    }
}

/// Bytes as words.
fn words(bytes: &[u8]) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator {
    bytes.chunks_exact(8).map(|chunk| chunk.try_into().map_or(0, u64::from_le_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn usual_frequencies() {
        // A count a nanosecond, as under QEMU's `-icount shift=0`: exactly one.
        assert_eq!(Scale::of(1_000_000_000), Scale { multiplier: 1 << 31, shift: 1 });
        assert_eq!(Scale::of(1_000_000_000).nanoseconds(12_345), 12_345);
        assert_eq!(Scale::of(2_000_000_000), Scale { multiplier: 1 << 31, shift: 0 });
        assert_eq!(Scale::of(4_000_000_000).nanoseconds(4_000_000_000), 1_000_000_000);
        assert_eq!(Scale::of(62_500_000).nanoseconds(62_500_000), 1_000_000_000);
    }

    proptest! {
        #[test]
        fn a_second_is_a_second(frequency in 1_000u64..20_000_000_000) {
            let scale = Scale::of(frequency);
            prop_assert!(scale.multiplier >> 31 == 1);
            let second = scale.nanoseconds(frequency);
            prop_assert!(second.abs_diff(1_000_000_000) <= 2 + 1_000_000_000 / frequency, "{second}");
        }

        #[test]
        fn both_ways_of_scaling_agree(frequency in 4_000_000u64..20_000_000_000, counts in 0u64..1 << 52) {
            let scale = Scale::of(frequency);
            let flat = FlatScale::from(scale).nanoseconds(counts);
            prop_assert!(scale.nanoseconds(counts).abs_diff(flat) <= 1);
        }

        #[test]
        fn time_never_goes_back(frequency in 0u64.., first in 0u64..1 << 60, step in 0u64..1 << 40) {
            let scale = Scale::of(frequency.max(1 << 20));
            prop_assert!(scale.nanoseconds(first >> 20) <= scale.nanoseconds((first >> 20) + step));
        }
    }
}
