//! The meeting of all ranks in a store that nobody used before.
//!
//! Rank 0 serves the store: at MASTER_ADDR, or where torchrun's agent serves one already, at an address
//! that it leaves there. The agent's own is not used for more, since it outlives the processes that the
//! agent starts again, with all that they wrote. Every rank writes who it is; rank 0 reads all and answers
//! with the roster, or with the reason why there is none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::connection::Deadline;
use super::fault::{Fault, GroupError, seconds};
use super::launch::{Launch, route_to};
use super::roster::{Member, Roster};
use super::store::{EngineResult, Store};

/// In the agent's store: the address of rank 0's.
const PLACE_KEY: &str = "sppo/store";
const ROSTER_KEY: &str = "roster";
/// Number of ranks that have read the roster.
const READ_KEY: &str = "read";
/// Pause between two looks into a store.
const PAUSE: Duration = Duration::from_millis(20);
/// Time for one attempt to connect.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Ranks wait so much longer for rank 0's answer than rank 0 waits for them, which it needs to tell them.
const GRACE: Duration = Duration::from_secs(2);

/// The outcome of a meeting.
pub(super) struct Meeting {
    pub(super) store: Store,
    pub(super) roster: Roster,
}

/// Meets all other ranks.
///
/// # Errors
/// When not all come in time, or some do not fit together.
pub(super) fn meet(launch: &Launch, build: &str, timeout: Duration) -> Result<Meeting, GroupError> {
    let master = launch.master_address()?;
    let address = route_to(master).map_err(|error| {
        let message = format!("there is no way to MASTER_ADDR={}: {error}", launch.master);
        GroupError::new(Fault::Launch, None, message)
    })?;
    let own = Member::own(address, launch.size, build);
    match launch.rank {
        0 => Host { launch, own, timeout }.meet(master),
        _ => Guest { launch, own, timeout }.meet(),
    }
}

/// Rank 0.
struct Host<'a> {
    launch: &'a Launch,
    own: Member,
    timeout: Duration,
}

impl Host<'_> {
    fn meet(self, master: SocketAddr) -> Result<Meeting, GroupError> {
        let deadline = Deadline::after(self.timeout);
        let store = self.serve(master).map_err(|reason| {
            let message =
                format!("rank 0 on host {} cannot serve the store: {reason}", self.own.host);
            GroupError::new(Fault::Launch, Some(0), message)
                .with_advice("choose another MASTER_PORT, and rank 0's host as MASTER_ADDR")
        })?;
        let broken = |text: String| GroupError::new(Fault::Engine, Some(0), text);
        let members = self.gather(&store, deadline).map_err(broken)?;
        let came = members.iter().flatten().count();
        let answer = self.roster(members);
        let line = match &answer {
            Ok(roster) => {
                let lines: Vec<_> = roster.members().iter().map(Member::to_line).collect();
                format!("roster\n{}", lines.join("\n"))
            }
            Err(error) => format!("error\n{}", error.to_line()),
        };
        store.set(ROSTER_KEY, line.as_bytes()).map_err(broken)?;
        if answer.is_err() {
            self.wait_for_readers(&store, came - 1);
        }
        Ok(Meeting { store, roster: answer? })
    }

    fn serve(&self, master: SocketAddr) -> EngineResult<Store> {
        let port = if self.launch.agent_serves { 0 } else { self.launch.port };
        // A host may know its own name as an address that leads nowhere from others.
        let at = match self.own.address {
            IpAddr::V4(ip) if ip.is_loopback() && self.launch.may_span_hosts() => {
                Ipv4Addr::UNSPECIFIED.into()
            }
            IpAddr::V6(ip) if ip.is_loopback() && self.launch.may_span_hosts() => {
                Ipv6Addr::UNSPECIFIED.into()
            }
            address => address,
        };
        let listener = TcpListener::bind((at, port))
            .map_err(|error| format!("{}: {error}", SocketAddr::new(at, port)))?;
        let place = listener.local_addr().map_err(|error| error.to_string())?;
        let store = Store::serve(listener, self.timeout)?;
        if self.launch.agent_serves {
            let agent = Store::connect(&master.ip().to_string(), master.port(), self.timeout)
                .map_err(|error| format!("torchrun's agent at {master}: {error}"))?;
            let place = SocketAddr::new(self.own.address, place.port());
            agent.set(PLACE_KEY, place.to_string().as_bytes())?;
        }
        Ok(store)
    }

    /// The members that came in time, by rank.
    fn gather(&self, store: &Store, deadline: Deadline) -> EngineResult<Vec<Option<Member>>> {
        let mut members = vec![None; self.launch.size];
        members[0] = Some(self.own.clone());
        loop {
            for (rank, member) in members.iter_mut().enumerate().filter(|(_, m)| m.is_none()) {
                if let Some(line) = store.get(&member_key(rank))? {
                    *member = Member::from_line(&String::from_utf8_lossy(&line));
                }
            }
            if deadline.is_over() || members.iter().all(Option::is_some) {
                return Ok(members);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn roster(&self, members: Vec<Option<Member>>) -> Result<Roster, GroupError> {
        let absent = (0..members.len()).filter(|&rank| members[rank].is_none()).collect::<Vec<_>>();
        let mut came: Vec<Member> = members.into_iter().flatten().collect();
        if !absent.is_empty() {
            return Err(missing(&absent, &came, self.launch.size, self.timeout));
        }
        // Now there is somebody to ask for the way to.
        if came[0].address.is_loopback() {
            let other = came.iter().find(|member| !member.address.is_loopback());
            if let Some(Ok(address)) = other.map(|other| route_to((other.address, 1).into())) {
                for member in came.iter_mut().filter(|member| member.address.is_loopback()) {
                    member.address = address;
                }
            }
        }
        Roster::new(came)
    }

    /// Lets the others read why there is no roster before the store closes.
    fn wait_for_readers(&self, store: &Store, count: usize) {
        let deadline = Deadline::after(GRACE);
        while !deadline.is_over() {
            match store.add(READ_KEY, 0) {
                Ok(readers) if usize::try_from(readers).unwrap_or(0) < count => {
                    std::thread::sleep(PAUSE);
                }
                _ => return,
            }
        }
    }
}

/// "ranks 2 and 3 did not come within 4 s; those that came are on host a (2), b (1)".
fn missing(absent: &[usize], came: &[Member], size: usize, timeout: Duration) -> GroupError {
    let numbers: Vec<_> = absent.iter().take(16).map(ToString::to_string).collect();
    let more = if absent.len() > 16 { ", ..." } else { "" };
    let noun = if absent.len() == 1 { "rank" } else { "ranks" };
    let hosts: Vec<_> = Roster::new(came.to_vec()).map_or_else(
        |_| Vec::new(),
        |roster| roster.hosts().iter().map(|(host, count)| format!("{host} ({count})")).collect(),
    );
    let message = format!(
        "{noun} {}{more} of {size} did not come within {} s; those that came are on host {}",
        numbers.join(", "),
        seconds(timeout),
        hosts.join(", ")
    );
    GroupError::new(Fault::Missing, absent.first().copied(), message)
}

fn member_key(rank: usize) -> String {
    format!("member/{rank}")
}

/// Any other rank.
struct Guest<'a> {
    launch: &'a Launch,
    own: Member,
    timeout: Duration,
}

/// The reason why a guest got no roster from one store.
enum Attempt {
    /// The store is not there, or belongs to processes that have ended: another may come.
    Again(String),
    /// It is no use to wait.
    Never(GroupError),
}

impl From<String> for Attempt {
    fn from(text: String) -> Self {
        Self::Again(text)
    }
}

impl Guest<'_> {
    fn meet(self) -> Result<Meeting, GroupError> {
        let deadline = Deadline::after(self.timeout);
        loop {
            let reason = match self.attempt(deadline) {
                Ok(meeting) => return Ok(meeting),
                Err(Attempt::Never(error)) => return Err(error),
                Err(Attempt::Again(reason)) => reason,
            };
            if deadline.is_over() {
                return Err(self.nobody_there(&reason));
            }
            std::thread::sleep(PAUSE.min(deadline.remaining()));
        }
    }

    fn nobody_there(&self, reason: &str) -> GroupError {
        let Launch { rank, master, port, .. } = self.launch;
        let message = format!(
            "rank 0 on host {master} did not come within {} s: {reason}, says rank {rank} on host {}",
            seconds(self.timeout),
            self.own.host
        );
        let error = GroupError::new(Fault::Missing, Some(0), message);
        match self.own.address.is_loopback() && self.launch.may_span_hosts() {
            true => error.with_advice(format!(
                "MASTER_ADDR={master} leads every host to itself; set it to a name of rank 0's host \
                 that the others know"
            )),
            false => error.with_advice(format!(
                "see that rank 0 is started, and that port {port} there can be reached from here"
            )),
        }
    }

    fn attempt(&self, deadline: Deadline) -> Result<Meeting, Attempt> {
        let master = self.launch.master_address().map_err(|error| error.to_string())?;
        let place = match self.launch.agent_serves {
            true => self.place_by_agent(master, deadline)?,
            false => master,
        };
        let store = connect(place, deadline)?;
        self.register(&store, place)?;
        let answer = self.answer(&store, deadline)?;
        let (kind, rest) = answer.split_once('\n').unwrap_or_default();
        if kind == "error" {
            let _ = store.add(READ_KEY, 1);
            return Err(Attempt::Never(GroupError::from_line(rest)));
        }
        let members: Option<Vec<_>> = rest.lines().map(Member::from_line).collect();
        let members = members.ok_or_else(|| "its roster cannot be read".to_owned())?;
        let roster = Roster::new(members).map_err(Attempt::Never)?;
        Ok(Meeting { store, roster })
    }

    /// The address that rank 0 left in the agent's store.
    fn place_by_agent(&self, master: SocketAddr, deadline: Deadline) -> EngineResult<SocketAddr> {
        let agent = connect(master, deadline)?;
        let place = agent.get(PLACE_KEY)?.ok_or("it left no address with torchrun's agent")?;
        String::from_utf8_lossy(&place).parse().map_err(|_| "its address cannot be read".into())
    }

    /// Presents this rank, unless somebody else did so: processes that were ended since, or a process that
    /// was started with the same RANK.
    fn register(&self, store: &Store, place: SocketAddr) -> Result<(), Attempt> {
        let rank = self.launch.rank;
        if store.add(&format!("came/{rank}"), 1)? == 1 {
            return Ok(store.set(&member_key(rank), self.own.to_line().as_bytes())?);
        }
        let other = store.get(&member_key(rank))?.unwrap_or_default();
        let Some(other) = Member::from_line(&String::from_utf8_lossy(&other)) else {
            return Err(Attempt::Again(format!("the store at {place} is of other processes")));
        };
        if other == self.own {
            return Ok(());
        }
        if self.launch.agent_serves {
            return Err(Attempt::Again(format!("the store at {place} is of ended processes")));
        }
        let message = format!(
            "two processes say that they are rank {rank}: {} on host {} and {} on host {}",
            other.process, other.host, self.own.process, self.own.host
        );
        let error = GroupError::new(Fault::Launch, Some(rank), message);
        Err(Attempt::Never(error.with_advice("give each process a RANK of its own")))
    }

    fn answer(&self, store: &Store, deadline: Deadline) -> EngineResult<String> {
        let patience = Deadline::after(deadline.remaining() + GRACE);
        loop {
            if let Some(answer) = store.get(ROSTER_KEY)? {
                return Ok(String::from_utf8_lossy(&answer).into_owned());
            }
            if patience.is_over() {
                return Err("it serves the store, but gives no answer".into());
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Connects to a store. c10d's own attempts last twice as long as they are told, so somebody must listen
/// before it begins.
fn connect(place: SocketAddr, deadline: Deadline) -> EngineResult<Store> {
    let patience = deadline.remaining().clamp(PAUSE, ATTEMPT);
    TcpStream::connect_timeout(&place, patience).map_err(|error| format!("{place}: {error}"))?;
    Store::connect(&place.ip().to_string(), place.port(), patience)
}
