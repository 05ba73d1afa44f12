//! Checks the next hop that the tracepoint of an IPv4 look-up reports.
//!
//! If the route has no next hop, the tracepoint does not write the field, and old bytes remain
//! there (Linux 6.18, `include/trace/events/fib.h`). So the trace uses the next hop only if the
//! table has a route with it.

use std::net::IpAddr;

use super::text::Lookup;
use crate::error::Error;
use crate::model::{Family, Route};
use crate::netlink::{Socket, route};

/// Routes and addresses of the node when the trace began.
#[derive(Debug, Default)]
pub(crate) struct Routers {
    routes: Vec<Route>,
    /// Addresses of the node. A route to one of them has no next hop.
    own: Vec<IpAddr>,
}

impl Routers {
    pub(crate) fn read(socket: &mut Socket, family: Family) -> Result<Self, Error> {
        let own = route::addresses(socket).map_err(Error::kernel("list addresses"))?;
        let own = own.into_iter().map(|address| address.ip).collect();
        let routes = route::routes(socket, family, |_| true);
        Ok(Self { routes: routes.map_err(Error::kernel("list routes"))?, own })
    }

    /// Next hop of the look-up, if the table has a route with it. `name` gives the name of an
    /// interface by index.
    pub(crate) fn of(&self, lookup: &Lookup, name: impl Fn(u32) -> String) -> Option<IpAddr> {
        let router = lookup.router.filter(|_| !self.own.contains(&lookup.to))?;
        let fits = |route: &&Route| route.table == lookup.table && route.dst.contains(lookup.to);
        let longest = self.routes.iter().filter(fits).map(|route| route.dst.prefix()).max()?;
        let best = self.routes.iter().filter(fits).filter(|r| r.dst.prefix() == longest);
        let mut hops = best.flat_map(|route| &route.nexthops);
        hops.any(|hop| hop.gateway == Some(router) && name(hop.link) == lookup.nic)
            .then_some(router)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Nexthop;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn route(table: u32, dst: &str, link: u32, gateway: Option<&str>) -> Route {
        let hop = Nexthop { link, gateway: gateway.map(ip), onlink: false, weight: 0 };
        Route {
            table,
            dst: dst.parse().unwrap(),
            kind: 1,
            scope: 0,
            protocol: 4,
            metric: 0,
            nexthops: vec![hop],
            metrics: Vec::new(),
            is_special: false,
        }
    }

    #[test]
    fn only_what_the_table_has_is_believed() {
        let table = vec![
            route(254, "0.0.0.0/0", 2, Some("10.20.0.1")),
            route(254, "10.21.0.0/24", 3, None),
            route(150, "0.0.0.0/0", 3, Some("10.21.0.1")),
        ];
        let known = Routers { routes: table, own: vec![ip("198.51.100.1")] };
        let of = |table, to: &str, nic: &str, router: &str| {
            let (from, nic, router) = (ip("10.20.0.10"), nic.to_owned(), Some(ip(router)));
            let lookup = Lookup { table, error: 0, iif: 1, from, to: ip(to), nic, router };
            known.of(&lookup, |link| format!("eth{}", link - 2)).map(|ip| ip.to_string())
        };
        assert_eq!(of(254, "203.0.113.9", "eth0", "10.20.0.1").as_deref(), Some("10.20.0.1"));
        assert_eq!(of(150, "203.0.113.9", "eth1", "10.21.0.1").as_deref(), Some("10.21.0.1"));
        for (table, to, nic, router) in [
            (254, "203.0.113.9", "eth0", "0.234.255.255"),
            (254, "203.0.113.9", "eth1", "10.20.0.1"),
            (254, "10.21.0.9", "eth1", "10.20.0.1"),
            (150, "203.0.113.9", "eth1", "10.20.0.1"),
            (254, "198.51.100.1", "eth0", "10.20.0.1"),
        ] {
            assert_eq!(of(table, to, nic, router), None, "{table} {to} {nic} {router}");
        }
    }
}
