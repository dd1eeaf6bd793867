//! What a kernel finds when it starts: whatever its notes ask for, and nothing that the notes only pretend.

use hyp_core::Hypervisor;
use hyp_core::address::{GuestVirtual, MachineFrame, PAGE_SIZE};
use hyp_core::domain::builder::{BuildError, Plan};
use hyp_core::domain::image::{ImageError, KernelImage};
use hyp_core::fake::{self, Fake, kernel};
use hyp_core::machine::{FrameMemory, GuestMemory};
use hyp_core::{BootInformation, Module, ModuleKind};
use penumbra_abi::elfnote;
use penumbra_abi::event_channel as abi;
use penumbra_abi::hypercall as number;
use penumbra_abi::start_info::{
    SIF_INITDOMAIN, SIF_MOD_START_PFN, SIF_PRIVILEGED, SIF_VIRT_P2M_4TOOLS, StartInfo,
};
use zerocopy::FromBytes;

use crate::common::{self, Rig, observe};

const MACHINE: usize = 4096;
/// More than the kernel's own region, so that there is room behind it.
const PAGES: u64 = 1200;
const RAMDISK: [u8; 5000] = [0x5a; 5000];

/// A domain that was just built, as its kernel sees it.
struct Built {
    hv: &'static Hypervisor<Fake>,
    p2m: Vec<MachineFrame>,
    info: StartInfo,
}

impl Built {
    fn of(file: &[u8], ramdisk: &[u8]) -> Self {
        let hv = fake::hypervisor(MACHINE);
        let plan = Plan { kernel: file, ramdisk, arguments: "quiet", pages: PAGES, control: false };
        let domain = hv.build_domain(&plan).unwrap_or_else(|error| panic!("{error}"));
        hv.machine().set_root(domain.vcpus[0].kernel_root().expect("a root"));
        Self::look(hv)
    }

    fn look(hv: &'static Hypervisor<Fake>) -> Self {
        let (first, end) = hv.frames().extent();
        let mut p2m = vec![None; PAGES as usize];
        for mfn in (first..end).filter_map(MachineFrame::new) {
            if let Some(name) = hv.frames().m2p().and_then(|m2p| m2p.get(mfn)) {
                p2m[name.number() as usize] = Some(mfn);
            }
        }
        let p2m: Vec<_> = p2m.into_iter().map(|frame| frame.expect("a frame for each number")).collect();
        let mut page = [0; size_of::<StartInfo>()];
        let info = p2m.iter().find_map(|frame| {
            hv.machine().read_frame(*frame, 0, &mut page);
            page.starts_with(b"xen-3.0-").then(|| StartInfo::read_from_bytes(&page).expect("its size"))
        });
        Self { hv, p2m, info: info.expect("a start-info page") }
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.hv.machine().read_guest(GuestVirtual::new(at), &mut bytes).expect("mapped");
        u64::from_le_bytes(bytes)
    }

    /// The list that the kernel reads is the one that is so; the tables are all there are; the books are right.
    #[track_caller]
    fn check(&self) {
        for (pfn, frame) in self.p2m.iter().enumerate() {
            assert_eq!(self.word(self.info.mfn_list + 8 * pfn as u64), frame.number(), "of pfn {pfn:#x}");
        }
        let report = self.hv.audit();
        assert_eq!((report.findings, report.tables), (0, self.info.nr_pt_frames), "{report}");
        observe::observe(self.hv).problem().expect("the observer");
        let root = (self.info.pt_base - kernel::VIRT_BASE) / PAGE_SIZE as u64;
        let tables = root..root + self.info.nr_pt_frames;
        let is_table = |frame: &MachineFrame| {
            self.hv
                .frames()
                .usage(*frame)
                .is_some_and(|usage| matches!(usage.kind, hyp_core::frame::FrameType::Table(_)))
        };
        for (pfn, frame) in self.p2m.iter().enumerate() {
            assert_eq!(is_table(frame), tables.contains(&(pfn as u64)), "pfn {pfn:#x}");
        }
    }
}

fn image(base: u64, notes: &[(u32, &[u8])]) -> Vec<u8> {
    kernel::image_with(base, 3 * PAGE_SIZE, notes)
}

#[test]
fn without_wishes_everything_lies_in_one_region() {
    let built = Built::of(&image(kernel::VIRT_BASE, &[]), &RAMDISK);
    built.check();
    let info = &built.info;
    assert_eq!(info.flags, SIF_VIRT_P2M_4TOOLS);
    assert_eq!(info.mod_start, kernel::VIRT_BASE + 4 * PAGE_SIZE as u64);
    assert_eq!(info.mfn_list, info.mod_start + 2 * PAGE_SIZE as u64);
    assert_eq!((built.word(info.mod_start), info.mod_len), (0x5a5a_5a5a_5a5a_5a5a, 5000));
    assert_eq!(info.command_line(), "quiet");
}

#[test]
fn a_ramdisk_that_need_not_be_mapped_follows_the_region() {
    let yes = 1u32.to_le_bytes();
    let built = Built::of(&image(kernel::VIRT_BASE, &[(elfnote::MOD_START_PFN, &yes)]), &RAMDISK);
    built.check();
    let info = &built.info;
    assert_eq!(info.flags, SIF_VIRT_P2M_4TOOLS | SIF_MOD_START_PFN);
    assert_eq!((info.mod_start, info.mod_len), (kernel::MINIMUM_FRAMES, 5000));
    for (pfn, count) in [(info.mod_start, PAGE_SIZE), (info.mod_start + 1, 5000 - PAGE_SIZE)] {
        let mut page = [0; PAGE_SIZE];
        built.hv.machine().read_frame(built.p2m[pfn as usize], 0, &mut page);
        assert_eq!(page.iter().filter(|byte| **byte == 0x5a).count(), count);
    }
    let beyond = GuestVirtual::new(kernel::VIRT_BASE + kernel::MINIMUM_FRAMES * PAGE_SIZE as u64);
    assert!(built.hv.machine().read_guest(beyond, &mut [0]).is_err(), "it is mapped all the same");
    let none = Built::of(&image(kernel::VIRT_BASE, &[(elfnote::MOD_START_PFN, &yes)]), b"");
    assert_eq!((none.info.mod_start, none.info.flags), (0, SIF_VIRT_P2M_4TOOLS));
}

/// The list of 1200 frames takes three pages. A table of level 1 reaches 16 pages, one of level 2 128.
#[test]
fn the_list_of_frames_is_where_the_kernel_wants_it() {
    // Far away in tables of its own; across two tables of level 1; across two of level 2.
    for base in [0x10_0000u64, 0x10_e000, 0x17_e000] {
        let built =
            Built::of(&image(kernel::VIRT_BASE, &[(elfnote::INIT_P2M, &base.to_le_bytes())]), &RAMDISK);
        built.check();
        let info = &built.info;
        assert_eq!((info.mfn_list, info.nr_p2m_frames), (base, 3));
        assert_eq!(info.first_p2m_pfn, kernel::MINIMUM_FRAMES, "right behind the region");
        let region = 1 + 8 + 64;
        let more = if base == 0x10_0000 {
            2
        } else if base == 0x10_e000 {
            3
        } else {
            4
        };
        assert_eq!(info.nr_pt_frames, region + more);
    }
}

/// The region begins in the middle of tables, and the list lies in the other half of them.
#[test]
fn the_list_of_frames_may_share_tables_with_the_region() {
    // Below it: in the same table of level 2; of level 1. Above it: in the same table of level 1.
    for (start, list, more) in [
        (0x84_0000u64, 0x82_0000u64, 1),
        (0x84_8000, 0x84_4000, 0),
        (0x84_8000, 0x84_8000 + kernel::MINIMUM_FRAMES * PAGE_SIZE as u64, 0),
        (0x84_8000, 0x84_e000 + kernel::MINIMUM_FRAMES * PAGE_SIZE as u64, 1),
    ] {
        let alone = Built::of(&image(start, &[]), b"").info.nr_pt_frames;
        let hv = fake::hypervisor(MACHINE);
        let file = image(start, &[(elfnote::INIT_P2M, &list.to_le_bytes())]);
        let plan = Plan { kernel: &file, ramdisk: b"", arguments: "", pages: PAGES, control: false };
        let domain = hv.build_domain(&plan).unwrap_or_else(|error| panic!("{error}"));
        hv.machine().set_root(domain.vcpus[0].kernel_root().unwrap());
        let built = Built::look(hv);
        for (pfn, frame) in built.p2m.iter().enumerate() {
            assert_eq!(built.word(list + 8 * pfn as u64), frame.number());
        }
        let report = hv.audit();
        assert_eq!((report.findings, report.tables), (0, built.info.nr_pt_frames), "{list:#x}: {report}");
        assert_eq!(built.info.nr_pt_frames, alone + more, "{list:#x}");
    }
}

#[test]
fn a_list_of_frames_in_a_bad_place_is_refused() {
    let judge = |base: u64| {
        let file = image(kernel::VIRT_BASE, &[(elfnote::INIT_P2M, &base.to_le_bytes())]);
        let hv = fake::hypervisor(MACHINE);
        let plan = Plan { kernel: &file, ramdisk: b"", arguments: "", pages: PAGES, control: false };
        hv.build_domain(&plan).err()
    };
    let end = kernel::VIRT_BASE + kernel::MINIMUM_FRAMES * PAGE_SIZE as u64;
    // Over the region's beginning, within it, over its end; in the hypervisor's part; beyond all addresses, or across the end.
    for base in [kernel::VIRT_BASE - 0x1000, kernel::VIRT_BASE + 0x10_0000, end - 0x1000] {
        assert_eq!(judge(base), Some(BuildError::Layout), "{base:#x}");
    }
    for base in [0x4f_f000, 0x50_0000, 0x5f_f000, 0xff_f000, 1 << 24, 1 << 60, !0xfff] {
        assert_eq!(judge(base), Some(BuildError::Layout), "{base:#x}");
    }
    assert_eq!(judge(end), None, "right behind it");
    assert_eq!(judge(0x10_0008), Some(BuildError::Image(ImageError::BadNote("INIT_P2M"))));
}

#[test]
fn a_ramdisk_that_does_not_fit_is_too_much() {
    let yes = 1u64.to_le_bytes();
    for notes in [&[][..], &[(elfnote::MOD_START_PFN, &yes[..])]] {
        let file = image(kernel::VIRT_BASE, notes);
        let hv = fake::hypervisor(MACHINE);
        let ramdisk = vec![1; PAGES as usize * PAGE_SIZE];
        let plan = Plan { kernel: &file, ramdisk: &ramdisk, arguments: "", pages: PAGES, control: false };
        assert!(matches!(hv.build_domain(&plan).err(), Some(BuildError::TooSmall { given: PAGES, .. })));
        assert!(hv.domain(hyp_core::address::DomainId::CONTROL).is_none());
    }
}

#[test]
fn notes_that_cannot_be_met_are_named() {
    let judge = |kind, content: &[u8]| {
        let file = image(kernel::VIRT_BASE, &[(kind, content)]);
        KernelImage::parse(&file, kernel::ELF_MACHINE).map(|_| ()).err()
    };
    assert_eq!(judge(elfnote::XEN_VERSION, b"xen-4.0\0"), Some(ImageError::OtherAbi));
    assert_eq!(judge(elfnote::FEATURES, b"!writable_page_tables|pae_pgdir_above_4gb\0"), None);
    assert_eq!(
        judge(elfnote::FEATURES, b"dom0|!auto_translated_physmap\0"),
        Some(ImageError::MissingFeature("auto_translated_physmap"))
    );
    assert_eq!(
        judge(elfnote::FEATURES, b"!teleport\0"),
        Some(ImageError::MissingFeature("of an unknown name"))
    );
    let odd = (kernel::VIRT_BASE + 8).to_le_bytes();
    assert_eq!(judge(elfnote::VIRT_BASE, &odd), Some(ImageError::BadNote("VIRT_BASE")));
    for entry in [kernel::VIRT_BASE, kernel::VIRT_BASE + 0xfff, kernel::VIRT_BASE + 0x4000] {
        assert_eq!(judge(elfnote::ENTRY, &entry.to_le_bytes()), Some(ImageError::BadEntry), "{entry:#x}");
    }
    assert_eq!(judge(elfnote::ENTRY, &(kernel::VIRT_BASE + 0x3fff).to_le_bytes()), None);
    let file = image(kernel::VIRT_BASE, &[(elfnote::HV_START_LOW, &(!0xfffu64).to_le_bytes())]);
    let plan = Plan { kernel: &file, ramdisk: b"", arguments: "", pages: PAGES, control: false };
    assert_eq!(fake::hypervisor(MACHINE).build_domain(&plan).err(), Some(BuildError::HypervisorsPlace));
}

/// The fake machine's page of hypercalls is made of sevens.
#[test]
fn code_that_issues_hypercalls_is_written_where_the_kernel_wants_it() {
    let of = |at: u64| {
        image(kernel::VIRT_BASE, &[(elfnote::HYPERCALL_PAGE, &(kernel::VIRT_BASE + at).to_le_bytes())])
    };
    let built = Built::of(&of(0x2000), b"");
    built.check();
    for (pfn, byte) in [(1, 0x90), (2, 7), (3, 0x90)] {
        let mut page = [0; PAGE_SIZE];
        built.hv.machine().read_frame(built.p2m[pfn], 0, &mut page);
        assert!(page.iter().all(|found| *found == byte), "pfn {pfn}");
    }
    for at in [0, 0x4000, 0x2008, 1 << 60] {
        let error = KernelImage::parse(&of(at), kernel::ELF_MACHINE).map(|_| ()).err();
        assert_eq!(error, Some(ImageError::BadNote("HYPERCALL_PAGE")), "{at:#x}");
    }
}

#[test]
fn a_kernel_says_who_it_is() {
    let of = |content: &[u8]| {
        let file = image(kernel::VIRT_BASE, &[(elfnote::GUEST_OS, content)]);
        KernelImage::parse(&file, kernel::ELF_MACHINE).map(|image| image.identity.is_linux()) == Ok(true)
    };
    assert!(of(b"linux\0") && of(b"linux"));
    assert!(!of(b"linux2\0") && !of(b"Linux\0") && !of(b"") && !of(b"\0linux") && !of(b"li\nux\0"));
}

/// The first domain is the control domain, unless it is Linux, or the command line says otherwise.
#[test]
fn the_first_domain_has_the_role_that_its_kernel_or_the_command_line_says() {
    let own = kernel::image(PAGE_SIZE);
    let linux = image(kernel::VIRT_BASE, &[(elfnote::GUEST_OS, b"linux\0")]);
    for (file, words, control) in [
        (&own, "dom0_mem=4M", true),
        (&linux, "dom0_mem=4M", false),
        (&own, "dom0_mem=4M dom0=plain", false),
        (&linux, "dom0_mem=4M dom0=control", true),
        (&linux, "dom0_mem=4M dom0=pv,nonsense", false),
    ] {
        let hv = fake::hypervisor(MACHINE);
        let modules = [
            Module { content: file, arguments: "", kind: ModuleKind::Kernel },
            Module { content: &linux, arguments: "domain=more memory=4M", kind: ModuleKind::Kernel },
        ];
        hv.start_domains(&BootInformation { command_line: words, modules: &modules }).unwrap();
        let domain = |number| hv.domain(hyp_core::address::DomainId::new(number)).unwrap();
        assert_eq!((domain(0).is_control(), domain(0).is_first()), (control, true), "{words}");
        assert_eq!((domain(1).is_control(), domain(1).is_first()), (false, false), "{words}");
        assert_eq!(domain(0).console_page().is_some(), !control);
        let report = hv.audit();
        assert_eq!(report.findings, 0, "{report}");
    }
    assert_eq!(SIF_PRIVILEGED | SIF_INITDOMAIN, 3);
}

/// The file with one more segment to load: offset and length in the file, physical address, length in memory.
fn with_segment(mut file: Vec<u8>, [offset, length, address, memory]: [u64; 4]) -> Vec<u8> {
    let mut headers = file[64..64 + 2 * 56].to_vec();
    headers.extend([1u32.to_le_bytes(), 7u32.to_le_bytes()].concat());
    for value in [offset, 0, address, length, memory, 0x1000] {
        headers.extend(value.to_le_bytes());
    }
    let place = file.len() as u64;
    file[32..40].copy_from_slice(&place.to_le_bytes());
    file[56] = 3;
    file.extend(headers);
    file
}

#[test]
fn segments_that_cannot_be_are_named() {
    let judge = |segment| {
        let file = with_segment(kernel::image(PAGE_SIZE), segment);
        KernelImage::parse(&file, kernel::ELF_MACHINE).map(|image| image.end)
    };
    // The kernel itself lies at 0x1000 to 0x2000.
    assert_eq!(judge([0, 16, 0x2000, 0x3000]), Ok(0x5000));
    assert_eq!(judge([0, 16, 0, 0x1000]), Ok(0x2000));
    assert_eq!(judge([0, 0, 0x1800, 0]), Ok(0x2000), "an empty one is nowhere");
    for (address, memory) in [(0x1fff, 1), (0x1000, 1), (0, 0x1001), (0x800, 0x4000)] {
        assert_eq!(judge([0, 0, address, memory]), Err(ImageError::Overlap), "{address:#x}");
    }
    assert_eq!(judge([0, 17, 0x2000, 16]), Err(ImageError::BadSegment), "more in the file than in memory");
    assert_eq!(judge([0, 0, !0, 2]), Err(ImageError::BadSegment));
    assert_eq!(judge([0, 0, 0x2000, !0]), Err(ImageError::BadSegment));
    assert_eq!(judge([0, 0, 1 << 52, 1]), Err(ImageError::BadSegment));
    assert_eq!(judge([!0, 2, 0x2000, 2]), Err(ImageError::BadSegment));
    assert_eq!(judge([1 << 40, 2, 0x2000, 2]), Err(ImageError::CutShort));
    let mut file = kernel::image(PAGE_SIZE);
    for page in 0..64 {
        let more = with_segment(kernel::image(PAGE_SIZE), [0, 0, 0x2000 + page, 1]);
        if page == 0 {
            file = more;
            continue;
        }
        file.extend(&more[more.len() - 56..]);
        file[56] = 3 + page as u8;
        let judged = KernelImage::parse(&file, kernel::ELF_MACHINE).map(|_| ());
        assert_eq!(judged, if page < 63 { Ok(()) } else { Err(ImageError::TooManySegments) }, "{page}");
    }
}

/// GRUB asks a store for its disks, in pieces, and waits: the answer comes with the event, and says that there are none.
#[test]
fn a_store_has_an_answer_for_whoever_cannot_do_without() {
    const STORE: usize = 2048 / 8;
    let rig = Rig::new(0);
    let file = image(kernel::VIRT_BASE, &[(elfnote::GUEST_OS, b"GRUB\0")]);
    let plan = Plan { kernel: &file, ramdisk: b"", arguments: "", pages: PAGES, control: false };
    let domain = rig.hv.build_domain(&plan).unwrap_or_else(|error| panic!("{error}"));
    let page = domain.store_page().expect("a store page");
    let machine = rig.hv.machine();
    machine.set_root(domain.vcpus[0].kernel_root().unwrap());
    let scratch = common::address(common::SCRATCH);
    let send = |port: u32| {
        machine.write_guest(GuestVirtual::new(scratch), &port.to_le_bytes()).unwrap();
        let vcpu = &domain.vcpus[0];
        vcpu.context().take();
        rig.hv.hypercall(vcpu, number::EVENT_CHANNEL_OP, [abi::EVTCHNOP_SEND, scratch, 0, 0, 0, 0]);
        vcpu.context().take().result
    };
    let words = |at: usize| [0, 1].map(|which| machine.read_word(page, at + which));
    let ask = |bytes: &[u8]| {
        let produced = (machine.read_word(page, STORE) >> 32) as usize;
        for (index, byte) in bytes.iter().enumerate() {
            machine.write_frame(page, (produced + index) % 1024, &[*byte]);
        }
        let all = (produced + bytes.len()) as u32;
        machine.write_frame(page, 2052, &all.to_le_bytes());
    };
    let header = |kind: u32, length: u32| [kind, 7, 0, length].map(u32::to_le_bytes).concat();
    // The answers fill their ring, since nobody reads them: 44 of 23 bytes each. Nothing is lost, and nothing written beyond.
    for round in 1..=44u64 {
        ask(&header(1, 11));
        assert_eq!(send(1), Some(0));
        assert_eq!(words(STORE)[1] >> 32, (round - 1) * 23, "half a request is no request");
        ask(b"device/vbd\0");
        assert_eq!(send(1), Some(0));
        let [requests, answers] = words(STORE);
        assert_eq!((requests as u32, requests >> 32), (round as u32 * 27, round * 27));
        assert_eq!(answers >> 32, round * 23);
    }
    let mut answer = [0; 23];
    machine.read_frame(page, 1024, &mut answer);
    assert_eq!(answer[..], [&[16u32, 7, 0, 7].map(u32::to_le_bytes).concat()[..], b"ENOENT\0"].concat());
    ask(&header(1, 0));
    assert_eq!((send(1), words(STORE)[1] >> 32), (Some(0), 44 * 23), "there is no room");
    machine.write_frame(page, 2056, &(44u32 * 23).to_le_bytes());
    assert_eq!((send(1), words(STORE)[1] >> 32), (Some(0), 45 * 23), "now there is");
    // A request of an impossible length: nobody listens any more.
    ask(&header(1, 5000));
    send(1);
    ask(&header(1, 0));
    assert_eq!((send(1), words(STORE)[1] >> 32), (Some(0), 45 * 23));
    machine.write_frame(page, 2048, &[0xff; 16]);
    assert_eq!(send(1), Some(0), "indices that can't be");
    let report = rig.hv.audit();
    assert_eq!(report.findings, 0, "{report}");
    rig.hv.kill(&domain.vcpus[0], format_args!("a test"));
    while rig.hv.background() {}
    assert_eq!((domain.store_page(), rig.hv.audit().findings), (None, 0));
}

/// What is unpacked at boot lies in free memory, which is nobody's meanwhile, and comes back.
#[test]
fn memory_for_boot_is_taken_in_one_piece_and_comes_back() {
    let hv = fake::hypervisor(MACHINE);
    let counts = || (hv.frames().free_frames() as u64, hv.frames().managed());
    let (free, managed) = counts();
    assert!(hv.take_boot_memory(1 << 40).is_none() && hv.take_boot_memory(u64::MAX).is_none());
    assert_eq!(counts(), (free, managed));
    let piece = hv.take_boot_memory((2 << 20) + 1).expect("memory");
    assert_eq!((piece.end - piece.start, piece.start % (2 << 20)), (4 << 20, 0));
    assert_eq!(counts(), (free - 1024, managed - 1024));
    let built = hv.build_domain(&Plan {
        kernel: &kernel::image(PAGE_SIZE),
        ramdisk: b"",
        arguments: "",
        pages: kernel::MINIMUM_FRAMES,
        control: false,
    });
    assert!(built.is_ok());
    for number in piece.start / PAGE_SIZE as u64..piece.end / PAGE_SIZE as u64 {
        let hold = MachineFrame::new(number).and_then(|frame| hv.frames().hold(frame)).expect("memory");
        assert_eq!(hold.owner, None, "frame {number:#x} was given away");
    }
    assert_eq!(hv.audit().findings, 0);
    hv.release_boot_memory(piece.start, piece.end);
    assert_eq!(counts(), (free - kernel::MINIMUM_FRAMES - 1, managed));
    assert_eq!(hv.audit().findings, 0);
}
