//! Which process has a port: from the kernel's socket tables to the process that holds the socket's inode.
//!
//! On Linux through `/proc`; elsewhere nobody is found, and the error says only that the port is taken.

use std::fmt;
use std::net::SocketAddr;

use super::Protocol;

/// Who has a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process; `None` where this user may not see which it is.
    pub pid: Option<u32>,
    /// Its command line, as far as it is readable, with control characters left out.
    pub command: String,
    /// The user ID that owns the socket.
    pub user: u32,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) if self.command.is_empty() => write!(f, "process {pid}"),
            Some(pid) => write!(f, "process {pid} ({})", self.command),
            None => write!(
                f,
                "a process of user {} that only that user and root may see",
                self.user
            ),
        }
    }
}

pub(super) fn describe(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "another process".to_owned();
    }
    let names: Vec<_> = holders.iter().map(Holder::to_string).collect();
    names.join(" and ")
}

#[cfg(not(target_os = "linux"))]
pub(super) fn find(_: SocketAddr, _: Protocol) -> Vec<Holder> {
    Vec::new()
}

/// The processes that listen on `address` or on one that includes it, in the order of their IDs.
#[cfg(target_os = "linux")]
pub(super) fn find(address: SocketAddr, protocol: Protocol) -> Vec<Holder> {
    linux::find(address, protocol)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeMap;
    use std::fs;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
    use std::path::Path;

    use super::{Holder, Protocol};

    /// Letters of a command line that are shown: enough to know a program by, short enough for one line.
    const COMMAND_MAX: usize = 60;

    /// The state of a listening TCP socket in the kernel's tables.
    const LISTEN: &str = "0A";

    pub(super) fn find(address: SocketAddr, protocol: Protocol) -> Vec<Holder> {
        let tables = match protocol {
            Protocol::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
            Protocol::Udp => ["/proc/net/udp", "/proc/net/udp6"],
        };
        // A table that cannot be read has nothing to say: this only makes an error message better.
        let mut users: BTreeMap<u64, u32> = tables
            .into_iter()
            .filter_map(|path| fs::read_to_string(path).ok())
            .flat_map(|table| {
                let rows = table.lines().skip(1).filter_map(|line| row(line, protocol));
                rows.filter(|row| overlaps(row.local, address))
                    .map(|row| (row.inode, row.user))
                    .collect::<Vec<_>>()
            })
            .collect();
        let mut holders = processes_with(&mut users);
        holders.extend(users.into_values().map(|user| Holder {
            pid: None,
            command: String::new(),
            user,
        }));
        holders.dedup();
        holders
    }

    pub(super) struct Row {
        pub(super) local: SocketAddr,
        pub(super) user: u32,
        pub(super) inode: u64,
    }

    /// One line of a table; `None` for what is no listener, and for what cannot be read.
    pub(super) fn row(line: &str, protocol: Protocol) -> Option<Row> {
        let mut fields = line.split_ascii_whitespace();
        let local = local_address(fields.nth(1)?)?;
        let state = fields.nth(1)?;
        if protocol == Protocol::Tcp && state != LISTEN {
            return None;
        }
        let user = fields.nth(3)?.parse().ok()?;
        let inode = fields.nth(1)?.parse().ok()?;
        Some(Row { local, user, inode })
    }

    /// `0100007F:1151`: the address as words of 32 bits in the machine's own byte order, and the port.
    fn local_address(text: &str) -> Option<SocketAddr> {
        let (address, port) = text.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let mut bytes = Vec::with_capacity(16);
        let mut rest = address;
        while let Some((word, after)) = rest.split_at_checked(8) {
            bytes.extend(u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
            rest = after;
        }
        let ip = if let Ok(four) = <[u8; 4]>::try_from(bytes.as_slice()) {
            IpAddr::V4(Ipv4Addr::from(four))
        } else {
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))
        };
        Some(SocketAddr::new(ip, port))
    }

    /// Whether sockets on both addresses are in each other's way.
    fn overlaps(a: SocketAddr, b: SocketAddr) -> bool {
        let (a_ip, b_ip) = (a.ip().to_canonical(), b.ip().to_canonical());
        a.port() == b.port() && (a_ip == b_ip || a_ip.is_unspecified() || b_ip.is_unspecified())
    }

    /// The processes that have any of the sockets open, which are then removed from `sockets`.
    fn processes_with(sockets: &mut BTreeMap<u64, u32>) -> Vec<Holder> {
        let mut pids: Vec<u32> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        pids.sort_unstable();
        let mut holders = Vec::new();
        let wanted: BTreeMap<u64, u32> = sockets.clone();
        for pid in pids {
            let directory = format!("/proc/{pid}");
            let open = fs::read_dir(format!("{directory}/fd"))
                .into_iter()
                .flatten();
            let inodes = open.filter_map(|entry| inode(&fs::read_link(entry.ok()?.path()).ok()?));
            let mut user = None;
            for inode in inodes {
                if let Some(owner) = wanted.get(&inode) {
                    user = Some(*owner);
                    sockets.remove(&inode);
                }
            }
            if let Some(user) = user {
                holders.push(Holder {
                    pid: Some(pid),
                    command: command(&directory),
                    user,
                });
            }
        }
        holders
    }

    /// The inode in `socket:[12345]`.
    fn inode(link: &Path) -> Option<u64> {
        let text = link.to_str()?;
        text.strip_prefix("socket:[")?
            .strip_suffix(']')?
            .parse()
            .ok()
    }

    fn command(directory: &str) -> String {
        let line = fs::read(format!("{directory}/cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches('\0').replace('\0', " ");
        // The program by its name, without the directory it lies in.
        let (program, arguments) = text.split_once(' ').unwrap_or((&text, ""));
        let program = program.rsplit('/').next().unwrap_or(program);
        let whole = format!("{program} {arguments}");
        let mut shown: String = whole
            .trim_end()
            .chars()
            .filter(|letter| !letter.is_control())
            .take(COMMAND_MAX)
            .collect();
        if whole.trim_end().chars().count() > COMMAND_MAX {
            shown.push('…');
        }
        shown
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn rows_of_the_kernels_tables_are_read() {
        let tcp4 = "   0: 0100007F:1151 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 41234 1 0 100 0 0 10 0";
        let row = linux::row(tcp4, Protocol::Tcp).unwrap();
        assert_eq!(row.local, "127.0.0.1:4433".parse().unwrap());
        assert_eq!((row.user, row.inode), (1000, 41234));

        let udp6 = " 1234: 00000000000000000000000001000000:1151 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 555 2 0 0";
        let row = linux::row(udp6, Protocol::Udp).unwrap();
        assert_eq!(row.local, "[::1]:4433".parse().unwrap());
        assert_eq!((row.user, row.inode), (0, 555));
    }

    #[test]
    fn connections_and_broken_rows_are_not_listeners() {
        let connected = "   0: 0100007F:1151 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1000        0 41234 1 0 20 4 30 10 -1";
        assert!(linux::row(connected, Protocol::Tcp).is_none());
        for broken in [
            "",
            "0:",
            "0: 01:1151 0:0 0A 0:0 0:0 0 0 0 1",
            "0: zz 0 0A a b c d e f",
        ] {
            assert!(linux::row(broken, Protocol::Tcp).is_none(), "{broken}");
        }
    }

    #[test]
    fn holders_are_described_with_what_is_known() {
        let known = Holder {
            pid: Some(1234),
            command: "remus up".into(),
            user: 1000,
        };
        let hidden = Holder {
            pid: None,
            command: String::new(),
            user: 0,
        };
        assert_eq!(describe(&[]), "another process");
        assert_eq!(
            describe(std::slice::from_ref(&known)),
            "process 1234 (remus up)"
        );
        assert_eq!(
            describe(&[known, hidden]),
            "process 1234 (remus up) and a process of user 0 that only that user and root may see"
        );
    }
}
