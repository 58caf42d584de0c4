//! A program that runs in several processes: starting them, and what the ranks other than 0 do.
//!
//! A launcher such as torchrun tells each process its rank by the variables of torch.distributed.
//! `--processes N` sets the same variables, so that a machine without Python needs no launcher.

use std::net::TcpListener;
use std::process::{Child, Command as Program, Stdio};

use sppo_core::config::Config;
use sppo_core::plugin::{Backend, Progress};
use sppo_core::{Error, Result};

use crate::args::{Arguments, Command};
use crate::failure::Failure;
use crate::models;
use crate::settings::Flags;
use crate::{commands, interrupt};

const RANK: &str = "RANK";
const PROCESSES: &str = "WORLD_SIZE";
const RANK_HERE: &str = "LOCAL_RANK";
const PROCESSES_HERE: &str = "LOCAL_WORLD_SIZE";
const ADDRESS: &str = "MASTER_ADDR";
const PORT: &str = "MASTER_PORT";

/// Number of processes that a launcher has started; 1 without one.
fn launched_processes() -> usize {
    variable(PROCESSES).unwrap_or(1)
}

/// Number of the processes among them that share this machine, as far as the launcher says.
pub(crate) fn processes_here() -> usize {
    variable(PROCESSES_HERE).filter(|_| launched_processes() > 1).unwrap_or(1).max(1)
}

fn variable(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.trim().parse().ok()
}

/// Whether this process serves rank 0 in whatever command was typed.
pub(crate) fn serves() -> bool {
    launched_processes() > 1 && variable(RANK).is_some_and(|rank| rank > 0)
}

/// Serves rank 0: the models of this command, and nothing else of it. Commands without models are rank 0's
/// alone.
pub(crate) fn serve(command: &Command) -> crate::failure::Result<()> {
    let Some(config) = backend_settings(command)? else { return Ok(()) };
    let plugins = models::plugins(&config)?;
    let backend = models::backend(&plugins, &config)?;
    interrupt::watch_silently();
    let served = backend.serve(&Member);
    Ok(served.map_err(Error::from)?)
}

/// The settings of the backend, which may stand in the record of a run that is resumed on this machine.
fn backend_settings(command: &Command) -> Result<Option<Config>> {
    let Some((settings, backend)) = command.backend() else { return Ok(None) };
    if let Command::Run(arguments) = command
        && let Some(earlier) = commands::earlier_settings(arguments)?
    {
        return Ok(Some(earlier));
    }
    let flags = Flags::of(&[settings, backend])?.within(&["backend", "plugins"]);
    settings.resolve(flags).map(|resolved| Some(resolved.config))
}

/// The watcher of a rank that serves: rank 0 shows the progress.
struct Member;

impl Progress for Member {
    fn is_cancelled(&self) -> bool {
        interrupt::requested()
    }

    fn progress(&self, _completed: u64, _total: u64) {}
}

/// Refuses a backend that leaves the processes of a launcher alone, each to do the whole work.
pub(crate) fn require_team(name: &str, backend: &dyn Backend) -> Result<()> {
    let processes = launched_processes();
    if processes == backend.place().size {
        return Ok(());
    }
    let message =
        format!("the backend `{name}` works in one process, and {processes} were started");
    Err(Error::configuration("backend", message).with_hint(
        "start sppo without a launcher and without --processes, or choose --backend tch",
    ))
}

/// Starts the other processes that `--processes` asks for, and makes this one rank 0 of them. Returns where
/// there is nothing to start.
pub(crate) fn launch(arguments: &Arguments) -> Result<()> {
    let asked = arguments.command.backend().and_then(|(settings, _)| settings.processes);
    let Some(processes) = asked else { return Ok(()) };
    let refused = |message: String, hint: &str| {
        Err(Error::configuration("--processes", message).with_hint(hint))
    };
    if variable(RANK).is_some() {
        let launched = launched_processes();
        if launched == processes {
            return Ok(());
        }
        return refused(
            format!("{processes} are asked for, but a launcher has started {launched}"),
            "leave out --processes under a launcher",
        );
    }
    match processes {
        0 => refused("0 processes do nothing".into(), "give 1 or more"),
        1 => Ok(()),
        _ => start(processes),
    }
}

/// This program with the same arguments, in one process; what it prints is for this one to read.
///
/// # Errors
/// When the program's file is not known.
pub(crate) fn one_process() -> std::io::Result<Program> {
    const OF_SEVERAL: &str = "--processes";
    let mut process = Program::new(std::env::current_exe()?);
    let mut is_value = false;
    for argument in std::env::args_os().skip(1) {
        let text = argument.to_string_lossy();
        let leave_out = is_value || text == "--json" || text.starts_with(OF_SEVERAL);
        is_value = text == OF_SEVERAL;
        if !leave_out {
            process.arg(argument);
        }
    }
    for name in [RANK, PROCESSES, RANK_HERE, PROCESSES_HERE, ADDRESS, PORT] {
        process.env_remove(name);
    }
    Ok(process)
}

#[cfg(unix)]
fn start(processes: usize) -> Result<()> {
    use std::os::unix::process::CommandExt;

    let failed = |error: std::io::Error| {
        Error::configuration("--processes", format!("the processes cannot be started: {error}"))
    };
    let program = std::env::current_exe().map_err(failed)?;
    // Free until rank 0 takes it.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let port = port.map_err(failed)?.port();
    let rank = |rank: usize| {
        let mut process = Program::new(&program);
        process.args(std::env::args_os().skip(1));
        process.env(ADDRESS, "127.0.0.1").env(PORT, port.to_string());
        process.env(RANK, rank.to_string()).env(RANK_HERE, rank.to_string());
        process.env(PROCESSES, processes.to_string());
        process.env(PROCESSES_HERE, processes.to_string());
        process
    };
    let mut others = Others(Vec::new());
    for number in 1..processes {
        let started = rank(number).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        others.0.push(started.map_err(failed)?);
    }
    // Replaces this program, and returns only where that fails.
    Err(failed(rank(0).exec()))
}

#[cfg(not(unix))]
fn start(_processes: usize) -> Result<()> {
    Err(Error::configuration("--processes", "several processes need a Unix system"))
}

/// The other processes, which end with this value unless this program was replaced by rank 0.
struct Others(Vec<Child>);

impl Drop for Others {
    fn drop(&mut self) {
        for process in &mut self.0 {
            // One that has ended by itself needs no end.
            let _ = process.kill();
        }
    }
}

/// Exit of a process that serves: rank 0 explains what is not about this rank.
pub(crate) fn is_told_by_rank_0(failure: &Failure) -> bool {
    serves() && matches!(failure, Failure::Stopped { .. })
}
