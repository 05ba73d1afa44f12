//! Number of connections in the flowtable.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::node::{View, counters};
use crate::plan::Uplink;

#[derive(Debug)]
pub(super) struct Offloaded {
    /// Number of connections by the id of their uplink or router.
    by_id: BTreeMap<u32, u64>,
    /// Names of the uplinks whose connections are never offloaded.
    pub(super) without: Vec<String>,
}

impl Offloaded {
    /// Reads the number of offloaded connections. `None` without a flowtable.
    pub(super) fn of(view: &View) -> Result<Option<Self>, Error> {
        if !view.plan.offloads() {
            return Ok(None);
        }
        let by_id = counters::offloaded(view.settings.field)?;
        Ok(Some(Self { by_id, without: view.plan.not_offloaded.clone() }))
    }

    /// Number of offloaded connections of an uplink, including those of its routers.
    pub(super) fn count_of(&self, uplink: &Uplink) -> u64 {
        uplink.total(&self.by_id)
    }
}
