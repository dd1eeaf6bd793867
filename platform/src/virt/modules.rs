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
    /// Where it is.
    pub content: Range,
    /// Its `bootargs`, or the empty string.
    pub arguments: &'a str,
}

/// How many modules can be kept.
const CAPACITY: usize = 16;

/// The modules, by ascending address.
#[derive(Clone, Default, Debug)]
pub struct Modules<'a> {
    list: [Option<Module<'a>>; CAPACITY],
    count: usize,
    left_out: usize,
}

impl<'a> Modules<'a> {
    /// The modules.
    pub fn iter(&self) -> impl Iterator<Item = Module<'a>> + '_ {
        self.list.iter().flatten().copied()
    }

    /// How many nodes were left out: unreadable, or beyond the capacity.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Puts `module` where it belongs by its address.
    fn insert(&mut self, module: Module<'a>) {
        let Some(slot) = self.list.get_mut(self.count) else {
            self.left_out += 1;
            return;
        };
        *slot = Some(module);
        self.count += 1;
        if let Some(filled) = self.list.get_mut(..self.count) {
            filled.sort_unstable_by_key(|module| module.map(|module| module.content.start));
        }
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
    let (start, size) = reg_of_module(node)?;
    let content = Range::new(start, size)?;
    Some(Module { kind, content, arguments: text(node, "bootargs").unwrap_or("") })
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
