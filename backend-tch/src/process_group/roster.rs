//! The members of a group: each rank's host, process and build.

use std::collections::HashMap;
use std::net::IpAddr;

use super::fault::{Fault, GroupError};

/// One rank, as it presents itself to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Name of its machine.
    pub(super) host: String,
    /// Address of that machine, on which it listens.
    pub(super) address: IpAddr,
    /// Process id.
    pub(super) process: u32,
    /// WORLD_SIZE as it was told.
    pub(super) size: usize,
    /// The build of the plugin.
    pub(super) build: String,
    /// The CPUs that it may use, as Linux lists them.
    pub(super) cpus: String,
    /// The CUDA devices that it sees; all of its host where this is empty.
    pub(super) gpus: String,
}

impl Member {
    /// This process.
    pub(super) fn own(address: IpAddr, size: usize, build: &str) -> Self {
        Self {
            host: host_name(),
            address,
            process: std::process::id(),
            size,
            build: build.into(),
            cpus: allowed_cpus(),
            gpus: std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default(),
        }
    }

    /// A line for the store.
    pub(super) fn to_line(&self) -> String {
        let Self { host, address, process, size, build, cpus, gpus } = self;
        format!("{host}\t{address}\t{process}\t{size}\t{build}\t{cpus}\t{gpus}")
    }

    /// The member of a line; `None` where the line is something else.
    pub(super) fn from_line(line: &str) -> Option<Self> {
        let mut parts = line.split('\t');
        Some(Self {
            host: parts.next()?.into(),
            address: parts.next()?.parse().ok()?,
            process: parts.next()?.parse().ok()?,
            size: parts.next()?.parse().ok()?,
            build: parts.next()?.into(),
            cpus: parts.next()?.into(),
            gpus: parts.next()?.into(),
        })
    }

    fn shares_a_host_with(&self, other: &Self) -> bool {
        self.host == other.host && self.address == other.address
    }
}

fn host_name() -> String {
    let mut buffer = [0_u8; 256];
    // SAFETY: the buffer is as long as it says; one byte less leaves a zero at its end.
    unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len() - 1) };
    let name = buffer.split(|&byte| byte == 0).next().unwrap_or_default();
    match String::from_utf8_lossy(name).replace(['\t', '\n'], " ") {
        name if name.is_empty() => "unknown".into(),
        name => name,
    }
}

fn allowed_cpus() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.map(|list| list.trim().to_owned()).unwrap_or_default()
}

/// All members, by rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Roster(Vec<Member>);

impl Roster {
    /// A roster of members that fit together.
    ///
    /// # Errors
    /// When one was built otherwise or told another number of ranks than rank 0.
    pub(super) fn new(members: Vec<Member>) -> Result<Self, GroupError> {
        let roster = Self(members);
        let Some(first) = roster.0.first() else { return Ok(roster) };
        for (rank, member) in roster.0.iter().enumerate() {
            let (name, of_first) = (roster.name(rank), roster.name(0));
            let mismatch = |message, advice| {
                Err(GroupError::new(Fault::Mismatch, Some(rank), message).with_advice(advice))
            };
            if member.build != first.build {
                let (theirs, ours) = (&member.build, &first.build);
                let message = format!("{name} has {theirs}, and {of_first} has {ours}");
                return mismatch(message, "install the same sppo and plugin on all hosts");
            }
            if member.size != first.size {
                let (theirs, ours) = (member.size, first.size);
                let message = format!(
                    "{name} was started with WORLD_SIZE={theirs}, and {of_first} with \
                     WORLD_SIZE={ours}"
                );
                return mismatch(message, "start all ranks with the same WORLD_SIZE");
            }
        }
        Ok(roster)
    }

    pub(super) fn members(&self) -> &[Member] {
        &self.0
    }

    /// A rank with its host, for instance "rank 1 on host b". Where several machines have one name, their
    /// addresses are added.
    pub(super) fn name(&self, rank: usize) -> String {
        match self.0.get(rank) {
            Some(_) => format!("rank {rank} on host {}", self.host(rank)),
            None => format!("rank {rank}"),
        }
    }

    /// The host of a rank, with its address where its name is that of another host too.
    pub(super) fn host(&self, rank: usize) -> String {
        let Some(member) = self.0.get(rank) else { return String::new() };
        let is_twin = |other: &Member| other.host == member.host && other.address != member.address;
        match self.0.iter().any(is_twin) {
            true => format!("{} ({})", member.host, member.address),
            false => member.host.clone(),
        }
    }

    /// Position of a rank among those of its host that have the same `resource`, and their number.
    fn share(&self, rank: usize, resource: impl Fn(&Member) -> &str) -> (usize, usize) {
        let Some(own) = self.0.get(rank) else { return (0, 1) };
        let shares =
            |other: &Member| other.shares_a_host_with(own) && resource(other) == resource(own);
        let before = self.0[..rank].iter().filter(|other| shares(other)).count();
        (before, self.0.iter().filter(|other| shares(other)).count())
    }

    /// Ranks that use the same CPUs as this one, itself included. A launcher that gives each rank its own
    /// makes that one.
    pub(super) fn ranks_on_cpus(&self, rank: usize) -> usize {
        self.share(rank, |member| &member.cpus).1
    }

    /// Ranks that see the same CUDA devices as this one, itself included.
    pub(super) fn ranks_on_gpus(&self, rank: usize) -> usize {
        self.share(rank, |member| &member.gpus).1
    }

    /// Number of a rank among those that see the same CUDA devices: the device that is its own.
    pub(super) fn cuda_device(&self, rank: usize) -> usize {
        self.share(rank, |member| &member.gpus).0
    }

    /// Whether a rank sees the same CUDA devices as all other ranks of its host.
    pub(super) fn sees_all_of_host(&self, rank: usize) -> bool {
        self.ranks_on_gpus(rank) == self.share(rank, |_| "").1
    }

    /// Hosts with the number of their ranks, in the order of ranks.
    pub(super) fn hosts(&self) -> Vec<(String, usize)> {
        let (mut hosts, mut places) = (Vec::new(), HashMap::new());
        for (rank, member) in self.0.iter().enumerate() {
            let place = *places.entry((&member.host, member.address)).or_insert_with(|| {
                hosts.push((self.host(rank), 0));
                hosts.len() - 1
            });
            hosts[place].1 += 1;
        }
        hosts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(host: &str, address: &str) -> Member {
        Member {
            host: host.into(),
            address: address.parse().unwrap(),
            process: 1,
            size: 3,
            build: "sppo-backend-tch 0.1.0".into(),
            cpus: "0-7".into(),
            gpus: String::new(),
        }
    }

    #[test]
    fn a_member_crosses_the_store_whole() {
        let own = Member::own("10.0.0.1".parse().unwrap(), 4, "a build");
        assert_eq!(Member::from_line(&own.to_line()), Some(own));
        assert_eq!(Member::from_line("something else"), None);
    }

    #[test]
    fn ranks_are_named_with_hosts_and_hosts_of_one_name_with_addresses() {
        let members = [("a", "10.0.0.1"), ("b", "10.0.0.2"), ("b", "10.0.0.3"), ("a", "10.0.0.1")];
        let members = members.map(|(host, address)| member(host, address)).to_vec();
        let roster = Roster::new(members).unwrap();
        assert_eq!(roster.name(0), "rank 0 on host a");
        assert_eq!(roster.name(2), "rank 2 on host b (10.0.0.3)");
        let hosts = [("a", 2), ("b (10.0.0.2)", 1), ("b (10.0.0.3)", 1)];
        assert_eq!(roster.hosts(), hosts.map(|(host, count)| (host.to_owned(), count)));
    }

    #[test]
    fn cpus_and_gpus_are_shared_by_those_who_may_use_the_same() {
        let mut members = vec![member("a", "10.0.0.1"); 4];
        members[3].cpus = "8-15".into();
        members[2].gpus = "5".into();
        let roster = Roster::new(members).unwrap();
        assert_eq!([0, 1, 2, 3].map(|rank| roster.ranks_on_cpus(rank)), [3, 3, 3, 1]);
        assert_eq!([0, 1, 2, 3].map(|rank| roster.cuda_device(rank)), [0, 1, 0, 2]);
    }

    #[test]
    fn members_that_do_not_fit_are_refused_by_name() {
        let refusal = |change: fn(&mut Member)| {
            let mut members = vec![member("a", "10.0.0.1"), member("b", "10.0.0.2")];
            change(&mut members[1]);
            Roster::new(members).unwrap_err()
        };
        let error = refusal(|member| member.build = "sppo-backend-tch 0.2.0".into());
        assert_eq!((error.fault(), error.rank()), (Fault::Mismatch, Some(1)));
        assert_eq!(
            error.to_string(),
            "rank 1 on host b has sppo-backend-tch 0.2.0, and rank 0 on host a has \
             sppo-backend-tch 0.1.0"
        );
        let error = refusal(|member| member.size = 4);
        assert!(error.to_string().contains("rank 1 on host b was started with WORLD_SIZE=4"));
    }
}
