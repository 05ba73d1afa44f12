//! Refusals of the node: RST and ICMP errors leave by the arrival NIC too.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::json;

use crate::lab::capture::{Capture, assert_replies_symmetric};
use crate::lab::netns::Netns;
use crate::lab::proof::Proof;
use crate::lab::two_nics::{NICS, NODE, NODE6, POD, POD6, two_nics};

const PATIENT: Duration = Duration::from_secs(8);
const BASELINE: Duration = Duration::from_millis(1500);

/// The result of a TCP connection to a closed port.
fn tcp(client: &Netns, address: &str, deadline: Duration) -> ErrorKind {
    let to = SocketAddr::new(address.parse().expect("an address"), 9);
    let outcome = client.run(|| TcpStream::connect_timeout(&to, deadline));
    outcome.expect_err("nobody listens there").kind()
}

/// The result of a datagram to a closed port.
fn udp(client: &Netns, address: &str, deadline: Duration) -> ErrorKind {
    let to = SocketAddr::new(address.parse().expect("an address"), 9);
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = client.run(|| UdpSocket::bind(any)).expect("a socket");
    socket.connect(to).expect("a route");
    socket.set_read_timeout(Some(deadline)).expect("a timeout");
    socket.send(b"who\n").expect("send");
    socket.recv(&mut [0; 8]).expect_err("nobody answers there").kind()
}

#[test]
fn resets_and_icmp_errors_leave_by_the_arrival_nic() {
    let layout = two_nics();
    let refused = ErrorKind::ConnectionRefused;
    for address in [NODE[1], NODE6[1]] {
        assert_ne!(tcp(&layout.client, address, BASELINE), refused, "{address} without us");
    }
    let settings = json!({"uplinks": NICS});
    let proof = Proof::begin(&layout.node, &layout.router);
    for pod in &layout.pods {
        layout.node.add(&settings, pod);
    }
    let capture = Capture::start(&layout.router.ns);
    let addresses = [NODE, NODE6, POD, POD6].concat();
    for address in &addresses {
        assert_eq!(tcp(&layout.client, address, PATIENT), refused, "TCP to {address}");
        assert_eq!(udp(&layout.client, address, PATIENT), refused, "UDP to {address}");
    }
    let symmetric = assert_replies_symmetric(&capture.stop(), &NICS, true);
    assert_eq!(symmetric, addresses.len(), "connections reset by the NIC of their SYN");
    proof.assert_nothing_dropped();
    for pod in &layout.pods {
        layout.node.del(&settings, pod);
    }
    proof.assert_as_before();
}
