//! The report of a run, written anew whenever there is something to see.

use std::cell::{Cell, RefCell};
use std::time::{SystemTime, UNIX_EPOCH};

use sppo_core::Result;
use sppo_core::observer::{Event, Observer};
use sppo_core::run_directory::{ProcessRecord, RunDirectory, StageMemory};
use sppo_report::{RunReader, run_page};

use crate::memory::{self, MemoryPlan};
use crate::terminal::Terminal;

/// Name of the report in the directory of its run.
pub(crate) const FILE_NAME: &str = "report.html";

/// Writes the report of a run when an iteration begins or ends, and records this process with its memory. A
/// report that cannot be written is no reason to end a run.
pub(super) struct LiveReport<'a> {
    reader: RefCell<RunReader>,
    process: RefCell<ProcessRecord>,
    has_warned: Cell<bool>,
    terminal: &'a Terminal,
}

impl<'a> LiveReport<'a> {
    /// The report of a run that this process begins to work on.
    pub(super) fn new(
        run: &RunDirectory,
        memory: Option<MemoryPlan>,
        terminal: &'a Terminal,
    ) -> Self {
        Self {
            reader: RefCell::new(RunReader::new(run.root())),
            process: RefCell::new(this_process(memory)),
            has_warned: Cell::new(false),
            terminal,
        }
    }

    /// Writes the report as of now.
    pub(super) fn write(&self) {
        if let Err(error) = self.try_to_write()
            && !self.has_warned.replace(true)
        {
            self.terminal.note(&format!("{FILE_NAME} cannot be written: {error}"));
        }
    }

    fn try_to_write(&self) -> Result<()> {
        let mut reader = self.reader.borrow_mut();
        let mut process = self.process.borrow_mut();
        process.last_seen = now();
        process.peak_memory = memory::peak();
        RunDirectory::record_process(reader.directory(), &process)?;
        let report = reader.read()?;
        run_page(&[report]).write(&reader.directory().join(FILE_NAME))
    }
}

impl Observer for LiveReport<'_> {
    fn event(&self, event: Event<'_>) {
        if matches!(event, Event::IterationStarted { .. } | Event::IterationFinished(_)) {
            self.write();
        }
    }
}

fn this_process(memory: Option<MemoryPlan>) -> ProcessRecord {
    let arguments = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let stages = memory.iter().flat_map(|plan| plan.estimate.stages());
    ProcessRecord {
        started: now(),
        last_seen: now(),
        version: env!("CARGO_PKG_VERSION").into(),
        command: std::iter::once("sppo".to_owned()).chain(arguments).collect(),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        threads: std::thread::available_parallelism().map_or(0, usize::from),
        machine_memory: memory.and_then(|plan| plan.machine).map(|machine| machine.total),
        predicted_memory: stages
            .map(|(stage, planned)| StageMemory { stage: stage.into(), bytes: planned.total() })
            .collect(),
        peak_memory: memory::peak(),
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}
