//! TUN devices whose packets travel in UDP: `flannel0` as flannel's UDP backend makes it, or a VPN.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};

use super::agent::until;
use super::netns::Netns;

/// The part of `struct ifreq` (linux/if.h) that TUNSETIFF reads.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// One end of the tunnel. Dropping it removes the device.
pub(crate) struct Tunnel {
    socket: UdpSocket,
    carrier: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Makes the interface in `ns`. It sends its packets from `local` to the other end at `peer`.
    pub(crate) fn open(ns: &Netns, name: &str, local: &str, peer: &str) -> Self {
        let (device, socket) = ns.run(|| (open_tun(name), UdpSocket::bind(local)));
        let socket = socket.expect("bind the tunnel's socket");
        socket.connect(peer).expect("connect the tunnel's socket");
        let carrying = socket.try_clone().expect("a second handle");
        let carrier = thread::spawn(move || carry(device, &carrying));
        Self { socket, carrier: Some(carrier) }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // Wakes the carrier, whose next read returns nothing and ends it.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        // When the carrier has ended, the port is free and the device gone.
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

fn open_tun(name: &str) -> File {
    let device =
        OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("open /dev/net/tun");
    let flags = libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI).expect("flags fit");
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // A child of another test holds the descriptors of this process until it executes its program.
    // With them it holds the device of a closed tunnel.
    until("the name of the tunnel is free", || {
        // SAFETY: TUNSETIFF reads and writes one ifreq, and `request` has its size and layout.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        let error = std::io::Error::last_os_error();
        let is_busy = result != 0 && error.raw_os_error() == Some(libc::EBUSY);
        assert!(result == 0 || is_busy, "TUNSETIFF: {error}");
        result == 0
    });
    device
}

/// Copies packets both ways until the socket is shut down.
fn carry(mut device: File, socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        let mut ready = [
            PollFd::new(device.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut ready, PollTimeout::NONE).expect("wait for packets");
        let [from_device, from_socket] = ready.map(|fd| fd.any().unwrap_or(false));
        if from_device {
            let Ok(length) = device.read(&mut buffer) else {
                return;
            };
            // The other end may not exist yet, or no longer.
            let _ = socket.send(&buffer[..length]);
        }
        if from_socket {
            match socket.recv(&mut buffer) {
                Ok(0) => return,
                // The device refuses packets while it is down.
                Ok(length) => drop(device.write_all(&buffer[..length])),
                Err(_) => {}
            }
        }
    }
}
