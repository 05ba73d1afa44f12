//! The services of IPVS, from `/proc/net/ip_vs` (`ip_vs_info_seq_show`, `net/netfilter/ipvs/ip_vs_ctl.c`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address and port that IPVS distributes to servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    /// The protocol, `IPPROTO_*`.
    pub(crate) protocol: u8,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    /// The scheduler, for instance "rr".
    pub(crate) scheduler: String,
    pub(crate) servers: Vec<(IpAddr, u16)>,
}

/// Parses the services of the file. Leaves out services that are defined by a firewall mark.
pub(crate) fn parse(text: &str) -> Vec<Service> {
    let mut found: Vec<Service> = Vec::new();
    // Whether the next servers belong to the last service of `found`.
    let mut is_known = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if first == "->" {
            if let (true, Some(server), Some(service)) = (is_known, end(second), found.last_mut()) {
                service.servers.push(server);
            }
            continue;
        }
        let service = super::protocol(&first.to_lowercase()).zip(end(second));
        is_known = service.is_some();
        found.extend(service.map(|(protocol, (address, port))| Service {
            protocol,
            address,
            port,
            scheduler: words.next().unwrap_or_default().into(),
            servers: Vec::new(),
        }));
    }
    found
}

/// Parses `0A600001:0050` or `[2001:0db8:0000:0000:0000:0000:0000:0001]:0050`.
fn end(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let address = match address.strip_prefix('[') {
        Some(v6) => IpAddr::V6(v6.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?),
        None => IpAddr::V4(Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?)),
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_of_both_families() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:0050 rr
  -> 0AF40105:1F90      Masq    1      0          0
  -> 0AF40207:1F90      Masq    1      0          0
FWM  00000001 rr
  -> 0AF40309:1F90      Masq    1      0          0
UDP  [2001:0db8:0000:0000:0000:0000:0000:0001]:0035 wrr
  -> [2001:0db8:0000:0000:0000:0000:0000:0005]:0035 Masq 1 0 0
";
        let found = parse(text);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!((found[0].protocol, found[0].port, found[0].servers.len()), (6, 80, 2));
        assert_eq!(found[0].servers[1], ("10.244.2.7".parse().unwrap(), 8080));
        assert_eq!(found[1].address, "2001:db8::1".parse::<IpAddr>().unwrap());
        assert_eq!((found[1].protocol, found[1].scheduler.as_str()), (17, "wrr"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read(text: String) {
            let _ = parse(&text);
        }
    }
}
