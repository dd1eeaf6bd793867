//! Version 3's distributor and redistributors.

use super::registers::{CONFIGURATIONS, END, FIRST, PRIORITIES, TARGETS};
use super::{DISTRIBUTOR_SIZE, NoSuchAccess, VirtualGic, Width};

/// Arm's, as the board's says: `GICD_IIDR` and `GICR_IIDR`.
const IMPLEMENTER: u32 = 0x43b;
/// `GICD_TYPER`: 288 interrupts, 16 bits of INTID, Aff3 may be other than zero, no 1-of-N.
const TYPE: u32 = 8 | 0xf << 19 | 1 << 24 | 1 << 25;
/// `GICD_CTLR`: affinity routing, and one security state.
const FIXED_CONTROL: u32 = 1 << 4 | 1 << 6;
/// `PIDR4` to `7`, `PIDR0` to `3`, `CIDR0` to `3`; a redistributor's `PIDR0` is one more.
const IDENTIFICATION: [u8; 12] = [0x44, 0, 0, 0, 0x92, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1];
const IDENTIFICATION_AT: u64 = 0xffd0;
/// `GICD_IROUTER`: the first shared interrupt's, and past the last.
const ROUTES: u64 = 0x6100;
const ROUTES_END: u64 = ROUTES + 8 * super::SHARED as u64;
/// Bytes of a redistributor.
const REDISTRIBUTOR_SIZE: u64 = 2 * DISTRIBUTOR_SIZE;

fn identification(offset: u64, first: u8) -> u32 {
    let index = offset.wrapping_sub(IDENTIFICATION_AT) as usize / 4;
    match IDENTIFICATION.get(index) {
        Some(_) if index == 4 => first.into(),
        Some(byte) => (*byte).into(),
        None => 0,
    }
}

/// The part of an aligned doubleword that an access moves: how far to shift, or nothing where the access isn't allowed.
fn part_of_double(offset: u64, width: Width) -> Option<u32> {
    match width {
        Width::Double if offset.is_multiple_of(8) => Some(0),
        Width::Word if offset.is_multiple_of(4) => Some((offset as u32 & 4) * 8),
        _ => None,
    }
}

impl VirtualGic {
    pub(super) fn read_distributor_3(&self, vcpu: usize, offset: u64, width: Width) -> u64 {
        if (ROUTES..ROUTES_END).contains(&offset) {
            let Some(shift) = part_of_double(offset, width) else { return 0 };
            return (self.route_of((offset - ROUTES) as usize / 8) >> shift) & width.mask();
        }
        if !allowed(offset, width) {
            return 0;
        }
        let word = match offset & !3 {
            0x0 => self.control | FIXED_CONTROL,
            0x4 => TYPE,
            0x8 => IMPLEMENTER,
            at @ FIRST..END if shared(at) => self.read_common(vcpu, at),
            at @ IDENTIFICATION_AT.. => identification(at, IDENTIFICATION[4]),
            _ => 0,
        };
        u64::from(word >> (8 * (offset & 3))) & width.mask()
    }

    pub(super) fn write_distributor_3(&mut self, vcpu: usize, offset: u64, width: Width, value: u64) {
        let value = value & width.mask();
        if (ROUTES..ROUTES_END).contains(&offset) {
            let Some(shift) = part_of_double(offset, width) else { return };
            let index = (offset - ROUTES) as usize / 8;
            let kept = self.route_of(index) & !(width.mask() << shift);
            return self.set_route(index, kept | value << shift);
        }
        if !allowed(offset, width) {
            return;
        }
        let shift = 8 * (offset as u32 & 3);
        match offset & !3 {
            0x0 => {
                self.control = value as u32 & 3;
                self.notice_all();
            }
            at @ FIRST..END if shared(at) => {
                self.write_common(vcpu, at, (value << shift) as u32, (width.mask() << shift) as u32);
            }
            _ => {}
        }
    }

    /// `GICD_IROUTER`: Aff3 is in the upper word. There is no 1-of-N, so its bit is always clear.
    fn route_of(&self, index: usize) -> u64 {
        let route = u64::from(self.routes.get(index).copied().unwrap_or(0));
        route & 0xff_ffff | (route >> 24) << 32
    }

    fn set_route(&mut self, index: usize, value: u64) {
        let affinity = (value & 0xff_ffff | (value >> 32 & 0xff) << 24) as u32;
        let Some(route) = self.routes.get_mut(index) else { return };
        *route = affinity;
        let to = usize::try_from(affinity).ok().filter(|vcpu| *vcpu < self.vcpus());
        let intid = 32 + index as u32;
        self.route(intid, to);
        self.notice(0, intid as usize / 32, 1 << (intid % 32));
    }

    /// Somebody reads the redistributor of a vCPU; `offset` is within its 0x20000 bytes.
    ///
    /// # Errors
    /// [`NoSuchAccess`] past it, for a vCPU that isn't there, and on a version 2.
    pub fn redistributor_read(&mut self, of: usize, offset: u64, width: Width) -> Result<u64, NoSuchAccess> {
        self.redistributor(of, offset)?;
        if matches!(offset, 0x8..0x10) {
            let Some(shift) = part_of_double(offset, width) else { return Ok(0) };
            return Ok((self.redistributor_type(of) >> shift) & width.mask());
        }
        if !frame_allowed(offset, width) {
            return Ok(0);
        }
        let word = match offset & !3 {
            0x4 => IMPLEMENTER,
            0x14 => self.cpus.get(of).map_or(0, |cpu| if cpu.asleep { 6 } else { 0 }),
            at @ IDENTIFICATION_AT..DISTRIBUTOR_SIZE => identification(at, IDENTIFICATION[4] + 1),
            at => private(at).map_or(0, |at| self.read_common(of, at)),
        };
        Ok(u64::from(word >> (8 * (offset & 3))) & width.mask())
    }

    /// Somebody writes the redistributor of a vCPU.
    ///
    /// # Errors
    /// [`NoSuchAccess`] past it, for a vCPU that isn't there, and on a version 2.
    pub fn redistributor_write(
        &mut self,
        of: usize,
        offset: u64,
        width: Width,
        value: u64,
    ) -> Result<(), NoSuchAccess> {
        self.redistributor(of, offset)?;
        if !frame_allowed(offset, width) {
            return Ok(());
        }
        let value = value & width.mask();
        let shift = 8 * (offset as u32 & 3);
        if offset == 0x14 {
            // `ChildrenAsleep` follows `ProcessorSleep` at once. Neither keeps anything back, as on the board.
            if let Some(cpu) = self.cpus.get_mut(of) {
                cpu.asleep = value & 2 != 0;
            }
        } else if let Some(at) = private(offset & !3) {
            self.write_common(of, at, (value << shift) as u32, (width.mask() << shift) as u32);
        }
        Ok(())
    }

    fn redistributor(&self, of: usize, offset: u64) -> Result<(), NoSuchAccess> {
        let there = self.version == super::Version::V3 && of < self.vcpus() && offset < REDISTRIBUTOR_SIZE;
        if there { Ok(()) } else { Err(NoSuchAccess) }
    }

    /// `GICR_TYPER`: affinity, number, whether it is the last.
    fn redistributor_type(&self, of: usize) -> u64 {
        let last = u64::from(of + 1 == self.vcpus());
        (of as u64) << 32 | 1 << 24 | (of as u64) << 8 | last << 4
    }
}

/// A word at a multiple of four, or a byte of a priority.
fn allowed(offset: u64, width: Width) -> bool {
    match width {
        Width::Word => offset.is_multiple_of(4),
        Width::Byte => (PRIORITIES..TARGETS).contains(&offset),
        Width::Half | Width::Double => false,
    }
}

/// The same in a redistributor, whose priorities are in its second frame.
fn frame_allowed(offset: u64, width: Width) -> bool {
    match width {
        Width::Byte => offset >= DISTRIBUTOR_SIZE && allowed(offset - DISTRIBUTOR_SIZE, width),
        _ => allowed(offset, width),
    }
}

/// Whether a distributor's register is about shared interrupts: those about private ones are the redistributors', and there are no targets.
fn shared(offset: u64) -> bool {
    match offset {
        FIRST..PRIORITIES => VirtualGic::word_of(offset) != 0,
        PRIORITIES..TARGETS => offset >= PRIORITIES + 32,
        CONFIGURATIONS..END => offset >= CONFIGURATIONS + 8,
        _ => false,
    }
}

/// The distributor's offset of a redistributor's register about private interrupts.
fn private(offset: u64) -> Option<u64> {
    let at = offset.checked_sub(DISTRIBUTOR_SIZE)?;
    ((FIRST..TARGETS).contains(&at) || (CONFIGURATIONS..END).contains(&at))
        .then_some(at)
        .filter(|at| !shared(*at))
}
