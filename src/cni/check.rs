//! CHECK: is the pod served as ADD left it?

use super::add::Pod;
use super::{Code, Failure, Request};
use crate::error::Error;
use crate::fast::{self, Enrolled};
use crate::node::Node;

/// Looks the pod up as ADD enrolled it, and proves that packets find their way. It holds right
/// after ADD and goes on to hold when later plugins change routes.
pub(super) fn check(request: &Request<'_>) -> Result<(), Failure> {
    let mut node = Node::open()?;
    let pod = Pod::of(request, &node)?;
    let Some(wanted) = pod.attachment else { return Ok(()) };
    let way_out = "restart the pod, or see \"symroute status\" and run \"symroute up\"";
    let off =
        |what: String| Failure::new(Code::NotAsAdded, format!("symroute: {what}")).with(way_out);
    let found = node.state.attachment(&wanted.key).map_err(Error::from)?;
    if found.as_ref() != Some(&wanted) {
        let addresses: Vec<_> = wanted.addresses.iter().map(ToString::to_string).collect();
        return Err(off(format!("the pod is not enrolled with {}", addresses.join(", "))));
    }
    let marking = node.marking();
    let settings = &pod.config.settings;
    // IPVS may have come since: the next ADD sees to that, and this pod is none the worse.
    let in_force = settings.fingerprints();
    fast::prove(&mut node.kernel, marking, settings, &in_force, &wanted.addresses)
        .map_err(|fast::Surprise(why)| off(why))?;
    let mut enrolled = Enrolled::at(marking, &mut node.kernel.netfilter);
    for (set, address) in fast::memberships(&wanted) {
        let name = enrolled.name(set);
        let member = enrolled
            .contains(set, address)
            .map_err(Error::kernel(format!("look {address} up in {name}")))?;
        if !member {
            return Err(off(format!("{address} is missing in {name}")));
        }
    }
    node.leave();
    Ok(())
}
