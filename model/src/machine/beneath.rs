//! The traits of `hyp_core::machine`: the machine as the core has it beneath itself.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hyp_core::address::{GuestVirtual, MachineFrame, PAGE_SIZE};
use hyp_core::hypercall::{Arguments, Call, Outcome};
use hyp_core::machine::{
    Board, FlushScope, FrameMemory, GuestFault, GuestMemory, Machine, Mmu, SharedInfoLayout,
};
use hyp_el2::store::Change;
use penumbra_abi::errno::Errno;

use super::{Loaded, Model, ModelContext, Moment, context, lock};
use crate::format::Hardware;
use crate::hardware::content::{self, slot};
use crate::hardware::reach::{CPUS, TAGS};

impl<F: Hardware> Machine for Model<F> {
    type Format = F;
    type Context = ModelContext;
    const M2P_WINDOW: GuestVirtual = GuestVirtual::new(0);
    const PLATFORM: &'static str = "x86_64";
    const ELF_MACHINE: u16 = hyp_core::fake::kernel::ELF_MACHINE;
    const ASSISTS: u64 = 1 << 2;
    const START_SLACK: u64 = 10 << 12;
    const START_ALIGNMENT: u64 = 1 << 12;
    const SHARED_INFO: SharedInfoLayout = SharedInfoLayout {
        // Fewer than there are vCPUs: the last one has to register a place of its own.
        vcpu_infos: 2,
        vcpu_info_bytes: 64,
        has_upcall_mask: true,
        pending: 2048,
        mask: 2560,
    };

    fn root_of(
        address: GuestVirtual,
        kernel: Option<MachineFrame>,
        user: Option<MachineFrame>,
    ) -> Option<MachineFrame> {
        F::root_of(address, kernel, user)
    }

    fn hypercall(call: &Call<'_, Self>, number: u64, arguments: &Arguments) -> Outcome {
        context::hypercall(call, number, arguments)
    }

    fn set_local_descriptors(call: &Call<'_, Self>, base: GuestVirtual, entries: u32) -> Result<(), Errno> {
        context::set_local(call, base, entries)
    }
}

impl<F: Hardware> Mmu for Model<F> {
    type Table = MachineFrame;

    fn table(&self, table: MachineFrame) -> Option<MachineFrame> {
        Some(table)
    }

    fn read_in(&self, table: MachineFrame, index: usize) -> u64 {
        self.read_entry(table, index)
    }

    fn write_in(&self, table: MachineFrame, index: usize, raw: u64) {
        self.write_entry(table, index, raw);
    }

    fn write_data_in(&self, frame: MachineFrame, index: usize, word: u64) {
        self.write_frame(frame, index * 8, &word.to_le_bytes());
    }

    #[inline]
    fn read_entry(&self, table: MachineFrame, index: usize) -> u64 {
        let Some(at) = slot(table.number()) else { return 0 };
        if self.awaited.load(Relaxed) == at {
            self.moment(Moment::Reads(at));
        }
        self.guard(at, index, "read");
        self.content.read(at, index)
    }

    fn write_entry(&self, table: MachineFrame, index: usize, raw: u64) {
        let Some(at) = slot(table.number()) else { return };
        self.guard(at, index, "written");
        let change = F::backend_change(self.content.read(at, index), raw);
        if change == Change::Replaces && !self.flaws.no_break {
            self.store(at, index, 0);
        }
        self.make_forget(change);
        self.store(at, index, raw);
        if change == Change::Unmaps {
            self.remembered.note();
        }
    }

    fn exchange_in(&self, table: MachineFrame, index: usize, current: u64, new: u64) -> Result<(), u64> {
        self.exchange_entry(table, index, current, new)
    }

    fn exchange_entry(&self, table: MachineFrame, index: usize, current: u64, new: u64) -> Result<(), u64> {
        let Some(at) = slot(table.number()) else { return Ok(()) };
        self.guard(at, index, "written");
        let now = self.content.read(at, index);
        let hardware = F::used(true);
        // Now and then a walker has just used the entry.
        if hardware != 0 && now & hardware != hardware && lock(&self.cpus).chance.u8(..8) == 0 {
            let present = F::walk(1, now) != crate::format::Walk::Fault;
            if present {
                self.store(at, index, now | hardware);
            }
        }
        let change = F::backend_change(current, new);
        let mut current = current;
        if change == Change::Replaces && !self.flaws.no_break {
            self.exchange(at, index, current, 0)?;
            current = 0;
        }
        self.make_forget(change);
        self.exchange(at, index, current, new)?;
        if change == Change::Unmaps {
            self.remembered.note();
        }
        Ok(())
    }

    fn reserved_entry(&self, slot: usize) -> u64 {
        // What the hypervisor has there is not for guests: to their walkers, wherever they meet it, it is absent.
        0x5a00_0000_0000_0000 | (slot as u64) << 1
    }

    fn load_roots(&self, kernel: MachineFrame, user: Option<MachineFrame>) {
        let mut cpus = lock(&self.cpus);
        let cpu = cpus.current;
        let Some(loaded) = cpus.all[cpu].loaded else { return };
        cpus.all[cpu].loaded = Some(Loaded { kernel, user, ..loaded });
        self.forget(&mut cpus, cpu, loaded.tag);
        self.speculate_all(&mut cpus, cpu);
    }

    fn flush(&self, scope: FlushScope) {
        let mut cpus = lock(&self.cpus);
        let current = cpus.current;
        let tag = cpus.all[current].loaded.map(|loaded| loaded.tag);
        match (scope, tag) {
            (FlushScope::Page(address), Some(tag)) => {
                cpus.all[current].tlb.forget_page::<F>(tag, address.bytes());
            }
            (FlushScope::Local, Some(tag)) => {
                self.forget(&mut cpus, current, tag);
                self.speculate_all(&mut cpus, current);
            }
            (FlushScope::Page(_) | FlushScope::Local, None) => {}
            (FlushScope::Everything, _) => {
                // One CPU executes at a time, and what another does meanwhile comes after this.
                self.remembered.forget(2, || ());
                self.flushes.fetch_add(1, Relaxed);
                self.watch.iter().for_each(|watch| watch.store(0, Relaxed));
                for cpu in 0..CPUS {
                    if cpu == current || !self.flaws.flush_here_only {
                        self.forget_all(&mut cpus, cpu);
                        self.speculate_all(&mut cpus, cpu);
                    } else {
                        for tag in 0..TAGS {
                            self.mark(&cpus.all[cpu].reach[tag]);
                        }
                    }
                }
                drop(cpus);
                self.moment(Moment::Flushed);
            }
        }
    }
}

impl<F: Hardware> FrameMemory for Model<F> {
    fn read_frame(&self, frame: MachineFrame, offset: usize, into: &mut [u8]) {
        into.fill(0);
        let Some(at) = slot(frame.number()) else { return };
        for (place, byte) in (offset..PAGE_SIZE).zip(into) {
            *byte = self.content.read(at, place / 8).to_le_bytes()[place % 8];
        }
    }

    fn write_frame(&self, frame: MachineFrame, offset: usize, from: &[u8]) {
        let Some(at) = slot(frame.number()) else { return };
        let end = (offset + from.len()).min(PAGE_SIZE);
        let mut place = offset;
        while place < end {
            let (index, first) = (place / 8, place % 8);
            let count = (8 - first).min(end - place);
            let mut bytes = self.content.read(at, index).to_le_bytes();
            bytes[first..first + count].copy_from_slice(&from[place - offset..place - offset + count]);
            let word = u64::from_le_bytes(bytes);
            self.content.write(at, index, word);
            self.noticed(at, index, word);
            place += count;
        }
    }

    fn scrub_frame(&self, frame: MachineFrame) {
        if let Some(at) = slot(frame.number()) {
            self.content.scrub(at, !self.flaws.dirty_scrub);
        }
    }

    fn read_word(&self, frame: MachineFrame, index: usize) -> u64 {
        slot(frame.number()).map_or(0, |at| self.content.read(at, index))
    }

    fn exchange_word(&self, frame: MachineFrame, index: usize, current: u64, new: u64) -> Result<(), u64> {
        let at = slot(frame.number()).ok_or(0u64)?;
        self.content.exchange(at, index, current, new)?;
        self.noticed(at, index, new);
        Ok(())
    }

    fn shared_word(&self, frame: MachineFrame, index: usize) -> Option<&AtomicU64> {
        slot(frame.number()).map(|at| self.content.word(at, index))
    }

    fn copy_frame(&self, from: MachineFrame, to: MachineFrame) {
        let (Some(from), Some(to)) = (slot(from.number()), slot(to.number())) else { return };
        for index in 0..content::WORDS {
            let word = self.content.read(from, index);
            self.content.write(to, index, word);
            self.noticed(to, index, word);
        }
    }
}

impl<F: Hardware> Model<F> {
    /// What the backend does before it stores a present entry.
    fn make_forget(&self, change: Change) {
        let replaces = change == Change::Replaces && !self.flaws.no_break;
        let maps = change == Change::Maps && !self.flaws.no_memory && self.remembered.is_any();
        if replaces || maps {
            self.flush(FlushScope::Everything);
        }
    }

    fn exchange(&self, at: usize, index: usize, current: u64, new: u64) -> Result<(), u64> {
        self.content.exchange(at, index, current, new)?;
        self.replaces(at, index, current, new);
        self.noticed(at, index, new);
        Ok(())
    }

    /// Does `piece` for each part of a range that lies in one page: the frame, the offset in it, the part of the buffer.
    fn by_pages(
        &self,
        start: GuestVirtual,
        length: usize,
        write: bool,
        mut piece: impl FnMut(MachineFrame, usize, std::ops::Range<usize>),
    ) -> Result<(), GuestFault> {
        let mut done = 0;
        while done < length {
            let address = start.checked_add(done as u64).ok_or(GuestFault)?.bytes();
            let offset = (address % PAGE_SIZE as u64) as usize;
            let end = (done + PAGE_SIZE - offset).min(length);
            let (frame, _) = self.translate(address, write).ok_or(GuestFault)?;
            piece(MachineFrame::new(frame).ok_or(GuestFault)?, offset, done..end);
            done = end;
        }
        Ok(())
    }
}

impl<F: Hardware> GuestMemory for Model<F> {
    fn read_guest(&self, from: GuestVirtual, into: &mut [u8]) -> Result<(), GuestFault> {
        if let Some(part) = Self::in_window(from, into.len()) {
            into.copy_from_slice(&lock(&self.window)[part]);
            return Ok(());
        }
        self.by_pages(from, into.len(), false, |frame, offset, part| {
            self.read_frame(frame, offset, &mut into[part]);
        })
    }

    fn write_guest(&self, to: GuestVirtual, from: &[u8]) -> Result<(), GuestFault> {
        if let Some(part) = Self::in_window(to, from.len()) {
            lock(&self.window)[part].copy_from_slice(from);
            return Ok(());
        }
        self.by_pages(to, from.len(), true, |frame, offset, part| {
            self.write_frame(frame, offset, &from[part]);
        })
    }

    fn word_place(&self, to: GuestVirtual) -> Option<(MachineFrame, usize)> {
        let offset = (to.bytes() % PAGE_SIZE as u64) as usize;
        if Self::in_window(to, 8).is_some() || !offset.is_multiple_of(8) {
            return None;
        }
        let (frame, _) = self.translate(to.bytes(), true)?;
        Some((MachineFrame::new(frame)?, offset / 8))
    }
}

impl<F: Hardware> Board for Model<F> {
    fn console_write(&self, _: &[u8]) {}

    fn now(&self) -> u64 {
        self.ticks()
    }

    fn ticks(&self) -> u64 {
        self.clock.fetch_add(1, Relaxed)
    }

    fn power_off(&self) -> ! {
        panic!("the modelled machine was switched off")
    }

    fn reboot(&self) -> ! {
        panic!("the modelled machine was rebooted")
    }
}
