//! Building a domain from a kernel, as Xen's domain builder does for paravirtual guests.
//!
//! The builder writes the guest's memory: the kernel, its P2M, start info and first page tables. The tables are then
//! validated by the same code that validates whatever the guest does later; nothing about them is taken on trust, not
//! even that they come from here. Source: `xen.h` of Xen's public headers, "Start-of-day memory layout".

use core::sync::atomic::Ordering;

use penumbra_abi::start_info::{
    SIF_INITDOMAIN, SIF_MOD_START_PFN, SIF_PRIVILEGED, SIF_VIRT_P2M_4TOOLS, StartInfo,
};
use zerocopy::{FromZeros, IntoBytes};

use super::image::KernelImage;
use super::layout::{Layout, Needs, Region};
pub use super::plan::{BuildError, MAX_P2M_FRAMES, Plan};
use super::vcpu::RunState;
use super::{Domain, Life};
use crate::address::{GuestVirtual, MachineFrame, PAGE_BYTES, PAGE_SHIFT, PAGE_SIZE, PseudoFrame};
use crate::event::channel::Port;
use crate::event::upcall;
use crate::frame::allocator::MAX_ORDER;
use crate::hypervisor::Hypervisor;
use crate::machine::{Context, Entry, Leaf, Level, Machine, PageTableFormat, StartOfDay};
use crate::paging::Budget;

/// Where the frames of the P2M under construction are: a directory, kept outside of the guest.
pub struct P2mDirectory {
    frames: [u64; MAX_P2M_FRAMES],
}

impl Default for P2mDirectory {
    fn default() -> Self {
        Self::new()
    }
}

impl P2mDirectory {
    /// Empty, all zero.
    pub const fn new() -> Self {
        Self { frames: [0; MAX_P2M_FRAMES] }
    }
}

/// A domain under construction.
struct Builder<'a, M: Machine> {
    hypervisor: &'a Hypervisor<M>,
    domain: &'a Domain<M>,
    layout: Layout,
    directory: &'a mut P2mDirectory,
}

const ENTRIES: u64 = (PAGE_SIZE / 8) as u64;
/// A run has as many frames as a table has entries.
const _: () = assert!(ENTRIES == 1 << MAX_ORDER);

/// A run of frames that the domain has got, and how many more frames it lacks.
struct Run {
    next: Option<MachineFrame>,
    left: u64,
    wanted: u64,
}

impl<M: Machine> Hypervisor<M> {
    /// Builds a domain and makes its first vCPU runnable.
    ///
    /// # Errors
    /// What is wrong with the plan. The domain is then on its way out, and its memory comes back.
    pub fn build_domain(&self, plan: &Plan<'_>) -> Result<&Domain<M>, BuildError> {
        let image = KernelImage::parse(plan.kernel, M::ELF_MACHINE)?;
        let layout = self.lay_out(plan, &image)?;
        let (number, domain) = self
            .domains
            .iter()
            .enumerate()
            .find(|(_, domain)| domain.life() == Life::Vacant)
            .ok_or(BuildError::TooManyDomains)?;
        let id = crate::address::DomainId::new(number as u16);
        self.scheduler.reach(id);
        if !domain.begin(id, plan.control, plan.pages) {
            return Err(BuildError::TooManyDomains);
        }
        let mut directory = self.p2m_directory.lock();
        let mut builder = Builder { hypervisor: self, domain, layout, directory: &mut directory };
        match builder.build(plan, &image) {
            Ok(()) => {
                domain.change_life(Life::Building, Life::Alive);
                Ok(domain)
            }
            Err(error) => {
                domain.change_life(Life::Building, Life::Dying);
                Err(error)
            }
        }
    }

    fn lay_out(&self, plan: &Plan<'_>, image: &KernelImage<'_>) -> Result<Layout, BuildError> {
        if plan.pages.div_ceil(ENTRIES) > MAX_P2M_FRAMES as u64 {
            return Err(BuildError::TooLarge(plan.pages));
        }
        let wishes = &image.wishes;
        if wishes.hypervisor_start.is_some_and(|lowest| lowest > M::M2P_WINDOW.bytes()) {
            return Err(BuildError::HypervisorsPlace);
        }
        let needs = Needs {
            virt_base: image.virt_base,
            p2m_base: wishes.p2m_base,
            kernel_end: image.end,
            ramdisk: plan.ramdisk.len() as u64,
            map_ramdisk: !wishes.takes_unmapped_ramdisk,
            pages: plan.pages,
            store_and_console: !plan.control,
            slack: M::START_SLACK,
            alignment: M::START_ALIGNMENT,
        };
        let layout = Layout::plan::<M::Format>(needs).ok_or(BuildError::Layout)?;
        if !layout.regions().all(Self::is_guests_part) {
            return Err(BuildError::Layout);
        }
        if layout.end > plan.pages {
            return Err(BuildError::TooSmall { needed: layout.end, given: plan.pages });
        }
        let free = self.frames.free_frames() as u64;
        // One more for the shared-info page.
        if plan.pages >= free {
            return Err(BuildError::OutOfMemory { needed: plan.pages, free });
        }
        Ok(layout)
    }

    /// Whether a whole region that is to be mapped is made of addresses, and none of them the hypervisor's.
    fn is_guests_part(region: &Region) -> bool {
        let page = |number: u64| GuestVirtual::new(region.start.wrapping_add(number << PAGE_SHIFT));
        let (first, last) = (page(0), page(region.frames.saturating_sub(1)));
        // Any frame will do: only the addresses are in question.
        let is_address = |address| M::root_of(address, MachineFrame::new(0), None).is_some();
        let slot = |address| M::Format::index(address, M::Format::LEVELS);
        let reserved = M::Format::reserved_root_slots();
        let apart = slot(last) < reserved.start || slot(first) >= reserved.end;
        is_address(first) && is_address(last) && slot(first) <= slot(last) && apart
    }
}

impl<M: Machine> Builder<'_, M> {
    fn build(&mut self, plan: &Plan<'_>, image: &KernelImage<'_>) -> Result<(), BuildError> {
        self.allocate(plan.pages)?;
        for segment in image.segments() {
            self.copy(segment.start, segment.content);
        }
        if let Some(frame) = image.hypercall_page.and_then(|page| self.machine_frame(page >> PAGE_SHIFT)) {
            self.hypervisor.machine.write_hypercall_page(frame);
        }
        self.copy(self.layout.ramdisk << PAGE_SHIFT, plan.ramdisk);
        self.write_tables()?;
        self.write_start_info(plan, image)?;
        self.validate()?;
        self.connect_console()?;
        self.connect_store(image)?;
        self.start(image);
        Ok(())
    }

    fn out_of_memory(&self, needed: u64) -> BuildError {
        BuildError::OutOfMemory { needed, free: self.hypervisor.frames.free_frames() as u64 }
    }

    /// Takes the domain's memory, and writes its P2M and M2P.
    fn allocate(&mut self, pages: u64) -> Result<(), BuildError> {
        for index in 0..self.layout.p2m_frames {
            let frame = self.claim_one().ok_or_else(|| self.out_of_memory(pages))?;
            let slot = self.directory.frames.get_mut(index as usize).ok_or(BuildError::TooLarge(pages))?;
            *slot = frame.number();
        }
        let p2m = self.layout.p2m..self.layout.p2m.saturating_add(self.layout.p2m_frames);
        let mut run = Run { next: None, left: 0, wanted: pages.saturating_sub(self.layout.p2m_frames) };
        for page in 0..self.layout.p2m_frames {
            let mut entries = [0u64; ENTRIES as usize];
            let first = page.saturating_mul(ENTRIES);
            for (entry, pseudo) in entries.iter_mut().zip(first..pages) {
                let frame = match pseudo.checked_sub(p2m.start).filter(|_| p2m.contains(&pseudo)) {
                    Some(index) => self.p2m_frame(index),
                    None => self.claim(&mut run),
                };
                let frame = frame.ok_or_else(|| self.out_of_memory(pages))?;
                if let Some(m2p) = self.hypervisor.frames.m2p() {
                    m2p.set(frame, Some(PseudoFrame::new(pseudo)));
                }
                *entry = frame.number();
            }
            let place = self.p2m_frame(page).ok_or(BuildError::Layout)?;
            self.hypervisor.machine.write_frame(place, 0, entries.as_bytes());
        }
        Ok(())
    }

    fn claim_one(&self) -> Option<MachineFrame> {
        self.domain.claim(&self.hypervisor.machine, &self.hypervisor.frames)
    }

    /// The next frame of the domain's memory: out of a run of frames, so that the guest can map it by superpages, for as long as free
    /// memory has such runs and the domain lacks as many frames.
    fn claim(&self, run: &mut Run) -> Option<MachineFrame> {
        if run.left == 0 && run.wanted >= ENTRIES {
            let wanted = self.domain.wants(MAX_ORDER, MachineFrame::LIMIT);
            let frames = &self.hypervisor.frames;
            if let Ok(extent) = frames.reserve(wanted, &self.hypervisor.machine, || true) {
                run.next = Some(extent.first);
                run.left = ENTRIES;
                frames.commit(extent);
            }
        }
        run.wanted = run.wanted.saturating_sub(1);
        if run.left == 0 {
            return self.claim_one();
        }
        let frame = run.next?;
        run.left = run.left.saturating_sub(1);
        run.next = frame.checked_add(1);
        Some(frame)
    }

    fn p2m_frame(&self, index: u64) -> Option<MachineFrame> {
        MachineFrame::new(*self.directory.frames.get(index as usize)?)
    }

    /// The machine frame behind a pseudo-physical one.
    fn machine_frame(&self, pseudo: u64) -> Option<MachineFrame> {
        let place = self.p2m_frame(pseudo / ENTRIES)?;
        let mut entry = [0; 8];
        self.hypervisor.machine.read_frame(place, (pseudo % ENTRIES).saturating_mul(8) as usize, &mut entry);
        MachineFrame::new(u64::from_le_bytes(entry))
    }

    /// Copies bytes to a pseudo-physical address; frames that the domain doesn't have are passed over (the layout has
    /// seen to it that there are none).
    fn copy(&self, start: u64, mut content: &[u8]) {
        let mut at = start;
        while !content.is_empty() {
            let offset = (at % PAGE_BYTES) as usize;
            let count = PAGE_SIZE.saturating_sub(offset).min(content.len());
            let (piece, rest) = content.split_at_checked(count).unwrap_or((content, &[]));
            if let Some(frame) = self.machine_frame(at >> PAGE_SHIFT) {
                self.hypervisor.machine.write_frame(frame, offset, piece);
            }
            content = rest;
            at = at.saturating_add(count as u64);
        }
    }

    /// Writes the tables of every level, from the root down.
    fn write_tables(&self) -> Result<(), BuildError> {
        for level in (2..=M::Format::LEVELS).rev() {
            let below = level.saturating_sub(1);
            // Any address that a lower table translates finds its place in the upper one.
            for address in self.layout.addresses::<M::Format>(below) {
                let table = self.table(below, address)?;
                self.write_entry(level, address, Entry::Table(table))?;
            }
        }
        for (address, pseudo) in self.layout.regions().flat_map(Region::pages) {
            let frame = self.machine_frame(pseudo).ok_or(BuildError::Layout)?;
            let leaf = Leaf { frame, level: 1, writable: !self.layout.is_table(pseudo) };
            self.write_entry(1, address, Entry::Leaf(leaf))?;
        }
        Ok(())
    }

    /// The table of `level` that translates `address`.
    fn table(&self, level: Level, address: GuestVirtual) -> Result<MachineFrame, BuildError> {
        let pseudo = self.layout.table::<M::Format>(level, address);
        pseudo.and_then(|pseudo| self.machine_frame(pseudo)).ok_or(BuildError::Layout)
    }

    /// Writes the entry of the table of `level` that translates `address`.
    fn write_entry(&self, level: Level, address: GuestVirtual, entry: Entry) -> Result<(), BuildError> {
        let table = self.table(level, address)?;
        let index = M::Format::index(address, level);
        self.hypervisor.machine.write_entry(table, index, M::Format::encode(level, entry));
        Ok(())
    }

    fn write_start_info(&self, plan: &Plan<'_>, image: &KernelImage<'_>) -> Result<(), BuildError> {
        let layout = &self.layout;
        let mut info = StartInfo::new_zeroed();
        fill(&mut info.magic, &[b"xen-3.0-", M::PLATFORM.as_bytes()]);
        fill(info.cmd_line.split_last_mut().map_or(&mut [], |(_, line)| line), &[plan.arguments.as_bytes()]);
        info.nr_pages = plan.pages;
        info.shared_info = self.shared_info()?.start().bytes();
        info.flags = if plan.control { SIF_PRIVILEGED | SIF_INITDOMAIN } else { SIF_VIRT_P2M_4TOOLS };
        if let Some((store, console)) = layout.store_and_console {
            info.store_mfn = self.machine_frame(store).map_or(0, MachineFrame::number);
            info.console_mfn = self.machine_frame(console).map_or(0, MachineFrame::number);
            info.console_evtchn = Port::CONSOLE.number().into();
            info.store_evtchn = if image.identity.needs_store() { Port::STORE.number().into() } else { 0 };
        }
        info.pt_base = layout.address(layout.tables).bytes();
        info.nr_pt_frames = layout.table_count();
        info.mfn_list = layout.p2m_address().bytes();
        if !plan.ramdisk.is_empty() {
            info.mod_start = match layout.ramdisk_is_mapped {
                true => layout.address(layout.ramdisk).bytes(),
                false => layout.ramdisk,
            };
            info.flags |= if layout.ramdisk_is_mapped { 0 } else { SIF_MOD_START_PFN };
            info.mod_len = plan.ramdisk.len() as u64;
        }
        info.first_p2m_pfn = layout.p2m;
        info.nr_p2m_frames = layout.p2m_frames;
        self.copy(layout.start_info << PAGE_SHIFT, info.as_bytes());
        Ok(())
    }

    /// The page that the domain and the hypervisor share.
    fn shared_info(&self) -> Result<MachineFrame, BuildError> {
        let hypervisor = self.hypervisor;
        let frame = self.domain.hold_new_frame(&hypervisor.machine, &hypervisor.frames);
        let frame = frame.ok_or_else(|| self.out_of_memory(1))?;
        self.domain.shared_info.replace(Some(frame));
        self.place_vcpu_infos(frame);
        hypervisor.publish_wall_clock(frame);
        Ok(frame)
    }

    /// The first vCPUs have their `vcpu_info` in the shared-info page, events masked at first. Others register a place of their own.
    fn place_vcpu_infos(&self, shared_info: MachineFrame) {
        let layout = M::SHARED_INFO;
        for (index, vcpu) in self.domain.vcpus.iter().take(layout.vcpu_infos).enumerate() {
            let offset = index.saturating_mul(layout.vcpu_info_bytes);
            if layout.has_upcall_mask
                && let Some(word) = self.hypervisor.machine.shared_word(shared_info, offset / 8)
            {
                // Relaxed: nobody else has the page yet.
                word.store(upcall::MASK_ONE, Ordering::Relaxed);
            }
            vcpu.set_info_place(Some((shared_info, offset)));
            self.hypervisor.publish_time(vcpu);
        }
    }

    /// The console page is part of the domain's memory, and the hypervisor writes there on its own: so it is held as *writable* for as
    /// long as the domain lives, and never becomes a table.
    fn connect_console(&self) -> Result<(), BuildError> {
        let Some((_, console)) = self.layout.store_and_console else { return Ok(()) };
        let page = self.machine_frame(console).ok_or(BuildError::Layout)?;
        self.hypervisor.connect_console(self.domain, page, Port::CONSOLE).map_err(|_| BuildError::Layout)
    }

    /// The store page, in the same way, of a domain that can't start without a store.
    fn connect_store(&self, image: &KernelImage<'_>) -> Result<(), BuildError> {
        let store = self.layout.store_and_console.filter(|_| image.identity.needs_store());
        let Some((store, _)) = store else { return Ok(()) };
        let page = self.machine_frame(store).ok_or(BuildError::Layout)?;
        self.hypervisor.connect_store(self.domain, page).map_err(|_| BuildError::Layout)
    }

    /// Has the root validated like any other, pinned, and held once more for the vCPU that starts with it.
    fn validate(&self) -> Result<(), BuildError> {
        let root = self.table(M::Format::LEVELS, self.layout.address(0))?;
        let budget = Budget::unbounded();
        let mut space = self.domain.table_space(&self.hypervisor.machine, &self.hypervisor.frames, &budget);
        space.pin(root, M::Format::LEVELS).map_err(BuildError::Tables)?;
        space.hold(root, M::Format::LEVELS).map_err(BuildError::Tables)?;
        if let Some(vcpu) = self.domain.vcpus.first() {
            vcpu.replace_kernel_root(Some(root));
        }
        Ok(())
    }

    fn start(&self, image: &KernelImage<'_>) {
        let Some(vcpu) = self.domain.vcpus.first() else { return };
        vcpu.context().reset(&StartOfDay {
            entry: GuestVirtual::new(image.entry),
            stack: self.layout.address(self.layout.stack.saturating_add(1)),
            start_info: self.layout.address(self.layout.start_info),
        });
        vcpu.set_initialised();
        self.hypervisor.change_state(vcpu, RunState::Offline, RunState::Runnable);
    }
}

/// Copies the parts one after another into `field`, as far as they fit.
fn fill(field: &mut [u8], parts: &[&[u8]]) {
    let bytes = parts.iter().flat_map(|part| part.iter());
    for (slot, byte) in field.iter_mut().zip(bytes) {
        *slot = *byte;
    }
}
