//! Boot modules: what a boot loader put into memory for us, as the children of `/chosen` tell (the *multiboot* device-tree
//! binding that Xen defined; QEMU's `guest-loader` device writes it).

use dtoolkit::Node;
use dtoolkit::standard::NodeStandard;

use super::memory::Range;
use super::tree::{DeviceTree, reg, text};

/// What a module is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModuleKind {
    /// `multiboot,kernel`
    Kernel,
    /// `multiboot,ramdisk`
    Ramdisk,
}

/// One module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Module<'a> {
    /// What it is.
    pub kind: ModuleKind,
    /// Where it is; `None` when its `reg` can't be read. Such a module stays in the list all the same, since the ones after it would
    /// take over its role otherwise: the second kernel would become the control domain's.
    pub content: Option<Range>,
    /// The machine address by which it stands in the list.
    pub place: u64,
    /// Its `bootargs`, or the empty string.
    pub arguments: &'a str,
}

/// How many modules can be kept.
const CAPACITY: usize = 16;

/// The modules, by ascending address.
#[derive(Clone, Default, Debug)]
pub struct Modules<'a> {
    list: [Option<Module<'a>>; CAPACITY],
    left_out: usize,
}

impl<'a> Modules<'a> {
    /// The modules.
    pub fn iter(&self) -> impl Iterator<Item = Module<'a>> + '_ {
        self.list.iter().flatten().copied()
    }

    /// How many nodes were left out: of an unknown kind, or beyond the capacity.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Puts `module` where it belongs by its address. When there is no room, the last one is left out: never the first, which is
    /// the control domain's kernel.
    fn insert(&mut self, module: Module<'a>) {
        let position = self.iter().take_while(|other| other.place <= module.place).count();
        let mut moving = Some(module);
        for slot in self.list.iter_mut().skip(position) {
            core::mem::swap(slot, &mut moving);
        }
        self.left_out += usize::from(moving.is_some());
    }
}

/// All children of `/chosen` that are `multiboot,module`.
pub(super) fn modules<'a>(tree: &DeviceTree<'a>) -> Modules<'a> {
    let mut modules = Modules::default();
    let Some(chosen) = tree.find("/chosen") else { return modules };
    for node in chosen.children().filter(|node| node.is_compatible("multiboot,module")) {
        match module(&node) {
            Some(module) => modules.insert(module),
            None => modules.left_out += 1,
        }
    }
    modules
}

fn module<'a>(node: &dtoolkit::fdt::FdtNode<'a>) -> Option<Module<'a>> {
    let kind = if node.is_compatible("multiboot,kernel") {
        ModuleKind::Kernel
    } else if node.is_compatible("multiboot,ramdisk") {
        ModuleKind::Ramdisk
    } else {
        return None;
    };
    let reg = reg_of_module(node);
    let content = reg.and_then(|(start, size)| Range::new(start, size));
    // Without any address it is first, so that what can't be understood becomes nobody else's role.
    let place = reg.map(|(start, _)| start).or_else(|| unit_address(node.name())).unwrap_or(0);
    Some(Module { kind, content, place, arguments: text(node, "bootargs").unwrap_or("") })
}

/// The address in a node's name, after the `@` (Devicetree Specification 0.4, 2.2.1).
fn unit_address(name: &str) -> Option<u64> {
    u64::from_str_radix(name.split_once('@')?.1, 16).ok()
}

/// `guest-loader` writes two cells each for address and size, but no `#address-cells` into `/chosen` (whose default size
/// would be one cell): so the length of the property decides.
fn reg_of_module(node: &dtoolkit::fdt::FdtNode<'_>) -> Option<(u64, u64)> {
    use dtoolkit::{Property, ToCellInt};
    let property = node.property("reg")?;
    if property.value().len() != 16 {
        return reg(node, 0);
    }
    let [start, size] = property.as_prop_encoded_array([2, 2]).ok()?.next()?;
    Some((start.to_int().ok()?, size.to_int().ok()?))
}
