//! Everything a person types: `cargo xtask run`, `test`, `soak`, `fuzz`, `image`, `check`, `bench`, `profile`, `setup`.
//!
//! The way of a `run`: [`setup`] sees to the emulator and the bare-metal toolchain, [`build`] compiles the hypervisor
//! and the guest kernels, [`image`] brings them into the forms that the boot loaders want, [`boot`] writes the
//! emulator's command line, [`qemu`] runs it, and [`run`] judges what it said. [`test`] does the same for each row
//! of the table in the `machine-tests` crate.
#![forbid(unsafe_code)]

mod apart;
mod apt;
mod attacks;
mod bench;
mod boot;
mod build;
mod check;
mod cli;
mod debian;
mod debugger;
mod files;
mod house;
mod image;
mod iso;
mod kernel;
mod machines;
mod model;
mod process;
mod profile;
mod progress;
mod qemu;
mod ramdisk;
mod report;
mod run;
mod script;
mod setup;
mod soak;
mod terminal;
mod test;
mod toolchain;
mod workloads;
mod workspace;
mod xen;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match dispatch(cli::Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: cli::Command) -> anyhow::Result<()> {
    process::end_children_on_interrupt()?;
    match command {
        cli::Command::Run(options) => run::run(&options),
        cli::Command::Test(options) => test::test(&options),
        cli::Command::Fuzz(options) => model::fuzz(&options),
        cli::Command::Image(options) => image::command(&options),
        cli::Command::Soak(options) => soak::soak(&options),
        cli::Command::Check => check::check(),
        cli::Command::Setup => setup::everything(),
        cli::Command::Bench(options) => bench::bench(&options),
        cli::Command::Profile(options) => profile::profile(&options),
    }
}
