//! The work of an ADD: writes the attachment's file, then proves that the node is ready or reconciles it.

use std::net::IpAddr;

use nix::net::if_::if_indextoname;

use super::observe::has_ipvs;
use super::proof::{self, Surprise};
use super::{Node, teardown};
use crate::backend::nftables::rules::TableFamily;
use crate::backend::nftables::table_diff::TableChange;
use crate::backend::nftables::{offload, table};
use crate::config::Settings;
use crate::error::Error;
use crate::netlink;
use crate::netlink::uapi::RTN_UNICAST;
use crate::state::{AgentLock, Attachment, Lock, Ready, Written};

impl Node {
    /// Attaches a pod. On a ready node the file and a proof are enough, otherwise the plugin reconciles. After
    /// a failure, an attachment that did not exist before leaves nothing behind.
    pub(crate) fn attach(
        &mut self,
        settings: &Settings,
        attachment: &Attachment,
    ) -> Result<(), Error> {
        let (attached, before) = match self.state.attach(attachment) {
            Ok(written) => (self.make_ready(settings, attachment, &written), written.before),
            Err(error) => (Err(error.into()), self.state.attachment(&attachment.key)?),
        };
        if let (Err(_), Some(before)) = (&attached, &before) {
            self.state.attach(before)?;
        } else if attached.is_err() {
            for error in teardown::remove(&self.state, &attachment.key, || {}) {
                log::error!("{}: {error}", attachment.key.container);
            }
        }
        attached
    }

    fn make_ready(
        &mut self,
        settings: &Settings,
        attachment: &Attachment,
        written: &Written,
    ) -> Result<(), Error> {
        if attachment.left_out && self.state.record()?.is_none() {
            // No backend marks on this node. The next reconcile reads the file.
            return Ok(());
        }
        if !written.has_own_settings && self.is_ready(settings, attachment) {
            return Ok(());
        }
        let lock = self.lock()?;
        // Of many pods that start on a new node, the first does the work for all.
        if !written.has_own_settings && self.is_ready(settings, attachment) {
            return Ok(());
        }
        self.attach_slowly(settings, attachment, &lock)
    }

    /// Whether the node is ready. If it has a flowtable, adds the pod's devices to it.
    fn is_ready(&mut self, settings: &Settings, attachment: &Attachment) -> bool {
        let form = settings.fingerprint(has_ipvs());
        let proven = proof::prove(&self.state, &mut self.kernel, &[form]);
        let unchanged =
            |ready: Ready| proof::check_ordinary_ways(&mut self.kernel, &ready).map(|()| ready);
        match proven.and_then(unchanged) {
            Ok(ready) => {
                self.offload(&ready, attachment);
                true
            }
            Err(Surprise(why)) => {
                log::info!("slow path: {why}");
                false
            }
        }
    }

    /// Adds the pod's devices to the flowtable, if there is one and no agent does it. A failure only means that
    /// the pod's packets are not offloaded.
    fn offload(&mut self, ready: &Ready, attachment: &Attachment) {
        if ready.offloads && !AgentLock::is_held(&self.state) {
            if let Err(error) = self.feed_flowtable(&attachment.addresses) {
                log::info!("the flowtable does not take the packets of the pod: {error}");
            }
        }
    }

    fn feed_flowtable(&mut self, pod: &[IpAddr]) -> Result<(), netlink::Error> {
        let ways = proof::ways_to(&mut self.kernel, pod)?.into_iter().flatten();
        let forwarded = ways.filter(|way| way.kind == RTN_UNICAST).map(|way| way.link);
        let name = |link: u32| if_indextoname(link).ok()?.into_string().ok();
        let devices: Vec<_> = forwarded.filter_map(name).collect();
        if devices.is_empty() {
            return Ok(());
        }
        let feed = [TableChange::AddDevices(offload::flowtable(devices))];
        table::commit(&mut self.kernel.netfilter, TableFamily::Inet, &feed)
    }

    fn attach_slowly(
        &mut self,
        settings: &Settings,
        attachment: &Attachment,
        lock: &Lock,
    ) -> Result<(), Error> {
        // The DEL of the last pod may have removed the folder.
        self.state.attach(attachment)?;
        let plan = self.reconcile(lock, &attachment.key.network, settings)?;
        for note in &plan.notes {
            log::warn!("{note}");
        }
        let form = settings.fingerprint(has_ipvs());
        if let Err(Surprise(why)) = proof::prove(&self.state, &mut self.kernel, &[form]) {
            log::warn!("the node is reconciled, but {why}; see \"symroutectl status\"");
        }
        Ok(())
    }
}
