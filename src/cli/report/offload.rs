//! How many connections are in the flowtable.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::node::{View, counters};
use crate::plan::Uplink;

#[derive(Debug)]
pub(super) struct Offloaded {
    /// Connections by the id of their uplink.
    by_id: BTreeMap<u32, u64>,
    /// Uplinks whose connections stay with the rules all the same.
    pub(super) without: Vec<String>,
}

impl Offloaded {
    /// None where there is no flowtable.
    pub(super) fn of(view: &View) -> Result<Option<Self>, Error> {
        if !view.plan.offloads() {
            return Ok(None);
        }
        let by_id = counters::offloaded(view.settings.field)?;
        Ok(Some(Self { by_id, without: view.plan.not_offloaded.clone() }))
    }

    /// Connections of an uplink, with its routers.
    pub(super) fn by(&self, uplink: &Uplink) -> u64 {
        uplink.total(&self.by_id)
    }
}
