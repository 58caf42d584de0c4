//! The launcher's word to a process: which one of how many it is, and where they meet.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::PathBuf;

use super::fault::{Fault, GroupError};

/// Variables of other launchers that say what LOCAL_RANK says.
const OTHER_LOCAL_RANKS: [&str; 2] = ["SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"];

/// One process among several, as `torchrun` or any other launcher started it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Number of this process, RANK: 0 and up.
    pub rank: usize,
    /// Number of processes, WORLD_SIZE: 2 and more.
    pub size: usize,
    /// Number of this process among those of its host, LOCAL_RANK, where the launcher says it.
    pub local_rank: Option<usize>,
    /// Processes of this host, LOCAL_WORLD_SIZE, where the launcher says it.
    pub local_size: Option<usize>,
    /// Name or address of rank 0's host, MASTER_ADDR.
    pub master: String,
    /// Port of the store there, MASTER_PORT.
    pub port: u16,
    /// Whether torchrun's agent serves a store there already, TORCHELASTIC_USE_AGENT_STORE.
    pub agent_serves: bool,
    /// Number of times that torchrun started the processes again, TORCHELASTIC_RESTART_COUNT.
    pub restarts: u32,
    /// A file whose content torchrun prints when this process fails, TORCHELASTIC_ERROR_FILE.
    pub error_file: Option<PathBuf>,
}

impl Launch {
    /// The launch that the environment describes; `None` for a single process.
    ///
    /// # Errors
    /// When a variable is missing, is no number, or contradicts another; the message names it.
    pub fn from_environment() -> Result<Option<Self>, GroupError> {
        Self::from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// The launch that some variables describe; `None` for a single process.
    ///
    /// # Errors
    /// As [`Launch::from_environment`].
    pub fn from_variables(
        get: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, GroupError> {
        let variables = Variables(&get);
        let Some(size) = variables.number("WORLD_SIZE")? else {
            return match (get("RANK"), get("MASTER_ADDR")) {
                (Some(_), Some(_)) => Err(missing("WORLD_SIZE", "RANK and MASTER_ADDR are")),
                _ => Ok(None),
            };
        };
        match size {
            0 => return Err(refused("WORLD_SIZE is 0, but counts the processes")),
            1 => return Ok(None),
            _ => {}
        }
        let given = format!("WORLD_SIZE={size} is");
        let required = |name| variables.number(name)?.ok_or_else(|| missing(name, &given));
        let other_local_ranks = OTHER_LOCAL_RANKS.iter().map(|name| variables.number(name));
        let other_local_rank = other_local_ranks.collect::<Result<Vec<_>, _>>()?;
        let launch = Self {
            rank: required("RANK")?,
            size,
            local_rank: variables
                .number("LOCAL_RANK")?
                .or_else(|| other_local_rank.into_iter().flatten().next()),
            local_size: variables.number("LOCAL_WORLD_SIZE")?,
            master: get("MASTER_ADDR").ok_or_else(|| missing("MASTER_ADDR", &given))?,
            port: port(required("MASTER_PORT")?)?,
            agent_serves: get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|text| text == "True"),
            restarts: get("TORCHELASTIC_RESTART_COUNT")
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
            error_file: get("TORCHELASTIC_ERROR_FILE").map(PathBuf::from),
        };
        launch.check()?;
        Ok(Some(launch))
    }

    fn check(&self) -> Result<(), GroupError> {
        let Self { rank, size, local_rank, local_size, .. } = *self;
        if rank >= size {
            return Err(refused(format!(
                "RANK={rank} contradicts WORLD_SIZE={size}: ranks are 0 to {}",
                size - 1
            )));
        }
        let Some(local_size) = local_size else { return Ok(()) };
        if local_size == 0 || local_size > size {
            return Err(refused(format!(
                "LOCAL_WORLD_SIZE={local_size} contradicts WORLD_SIZE={size}: a host has 1 to \
                 {size} of the processes"
            )));
        }
        match local_rank {
            Some(local_rank) if local_rank >= local_size => Err(refused(format!(
                "LOCAL_RANK={local_rank} contradicts LOCAL_WORLD_SIZE={local_size}: local ranks \
                 are 0 to {}",
                local_size - 1
            ))),
            _ => Ok(()),
        }
    }

    /// Whether processes may run on other hosts.
    pub(super) fn may_span_hosts(&self) -> bool {
        self.local_size != Some(self.size)
    }

    /// The address of rank 0's host. Of several the first that other hosts can reach, since many machines
    /// have an entry for their own name that leads to themselves.
    pub(super) fn master_address(&self) -> Result<SocketAddr, GroupError> {
        let Self { master, port, .. } = self;
        let found = (master.as_str(), *port).to_socket_addrs().map_err(|error| {
            refused(format!("MASTER_ADDR={master} has no address here: {error}"))
        })?;
        let found: Vec<SocketAddr> = found.collect();
        let reachable = found.iter().find(|place| !place.ip().is_loopback());
        reachable
            .or(found.first())
            .copied()
            .ok_or_else(|| refused(format!("MASTER_ADDR={master} has no address here")))
    }

    /// Leaves a sentence where torchrun looks for the cause of a failure. Without such a file nothing
    /// happens; a file that cannot be written is not worth another error.
    pub fn report(&self, sentence: &str) {
        if let Some(path) = &self.error_file {
            let _ = std::fs::write(path, error_report(sentence));
        }
    }
}

/// The address from which this machine reaches another.
pub(super) fn route_to(other: SocketAddr) -> std::io::Result<IpAddr> {
    let any = if other.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    // Sends nothing: it only chooses a route.
    socket.connect(other)?;
    Ok(socket.local_addr()?.ip())
}

/// A file for torchrun, in JSON.
fn error_report(sentence: &str) -> String {
    let mut text = String::new();
    for character in sentence.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            character if character.is_control() => text.push(' '),
            character => text.push(character),
        }
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = now.map_or(0, |elapsed| elapsed.as_secs());
    format!(
        "{{\"message\": {{\"message\": \"{text}\", \"extraInfo\": {{\"py_callstack\": \"\", \
         \"timestamp\": \"{seconds}\"}}}}}}"
    )
}

struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn number(&self, name: &str) -> Result<Option<usize>, GroupError> {
        let Some(text) = (self.0)(name) else { return Ok(None) };
        match text.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(refused(format!("{name}={text} is not a number"))),
        }
    }
}

fn port(number: usize) -> Result<u16, GroupError> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(refused(format!("MASTER_PORT={number} is not a port: these are 1 to 65535"))),
    }
}

fn missing(name: &str, given: &str) -> GroupError {
    refused(format!("the environment variable {name} is missing where {given} set"))
}

fn refused(message: impl Into<String>) -> GroupError {
    GroupError::new(Fault::Launch, None, message).with_advice(
        "torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; for one process \
         unset WORLD_SIZE",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: [(&str, &str); 4] =
        [("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_ADDR", "node-a"), ("MASTER_PORT", "29500")];

    fn launch(changes: &[(&str, &str)]) -> Result<Option<Launch>, GroupError> {
        let all: std::collections::HashMap<&str, &str> =
            TWO.iter().chain(changes).copied().collect();
        Launch::from_variables(|name| {
            all.get(name).filter(|value| !value.is_empty()).map(ToString::to_string)
        })
    }

    #[test]
    fn one_process_is_no_launch() {
        assert_eq!(launch(&[("WORLD_SIZE", "1")]).unwrap(), None);
        assert_eq!(Launch::from_variables(|_| None).unwrap(), None);
        // A variable of that name means nothing by itself.
        let rank_alone = |name: &str| (name == "RANK").then(|| "3".to_owned());
        assert_eq!(Launch::from_variables(rank_alone).unwrap(), None);
    }

    #[test]
    fn launchers_may_leave_out_local_numbers_or_call_them_otherwise() {
        let local = |changes: &[_]| {
            let launch = launch(changes).unwrap().unwrap();
            (launch.local_rank, launch.may_span_hosts())
        };
        assert_eq!(local(&[]), (None, true));
        assert_eq!(local(&[("SLURM_LOCALID", "1")]), (Some(1), true));
        assert_eq!(local(&[("LOCAL_RANK", "0"), ("SLURM_LOCALID", "1")]), (Some(0), true));
        assert_eq!(local(&[("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")]), (Some(1), false));
        let agent = [("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", "2")];
        let agent = launch(&agent).unwrap().unwrap();
        assert_eq!((agent.agent_serves, agent.restarts), (true, 2));
    }

    #[test]
    fn variables_that_are_missing_or_contradict_are_refused_by_name() {
        for (changes, words) in [
            (&[("RANK", "")][..], "RANK is missing where WORLD_SIZE=2 is set"),
            (&[("WORLD_SIZE", "")], "WORLD_SIZE is missing where RANK and MASTER_ADDR are set"),
            (&[("MASTER_ADDR", "")], "MASTER_ADDR is missing"),
            (&[("MASTER_PORT", "")], "MASTER_PORT is missing"),
            (&[("WORLD_SIZE", "two")], "WORLD_SIZE=two is not a number"),
            (&[("WORLD_SIZE", "0")], "WORLD_SIZE is 0"),
            (&[("RANK", "-1")], "RANK=-1 is not a number"),
            (&[("RANK", "2")], "RANK=2 contradicts WORLD_SIZE=2"),
            (&[("MASTER_PORT", "0")], "MASTER_PORT=0 is not a port"),
            (&[("MASTER_PORT", "70000")], "MASTER_PORT=70000 is not a port"),
            (&[("LOCAL_RANK", "x")], "LOCAL_RANK=x is not a number"),
            (&[("LOCAL_WORLD_SIZE", "3")], "LOCAL_WORLD_SIZE=3 contradicts WORLD_SIZE=2"),
            (
                &[("LOCAL_WORLD_SIZE", "1"), ("LOCAL_RANK", "1")],
                "LOCAL_RANK=1 contradicts LOCAL_WORLD_SIZE=1",
            ),
        ] {
            let error = launch(changes).unwrap_err();
            assert_eq!(error.fault(), Fault::Launch);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn reports_for_torchrun_are_json() {
        let report = error_report("rank 1 said \"no\"\n\\ and left");
        let value: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert_eq!(value["message"]["message"], "rank 1 said \"no\" \\ and left");
        assert!(value["message"]["extraInfo"]["timestamp"].is_string());
    }
}
