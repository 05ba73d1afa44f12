//! Targets for files of the node state and of the runtime.

use crate::backend::Marker;
use crate::cli::result_cache as cache;
use crate::config::Automatic;
use crate::config::source::NetworkConfig;
use crate::state::{Attachment, Ready, Record};

use super::cni::could_be_in_force;

/// `node.json`
pub(super) fn record(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Some(mut record) = Record::from_json(text) else { return };
    // The file names the automatic choices only for the settings in force.
    for settings in &mut record.previous {
        settings.automatic = Automatic::default();
    }
    let written = record.to_json();
    if !record.owned().into_iter().all(could_be_in_force) {
        return;
    }
    assert_eq!(Record::from_json(&written).as_ref(), Some(&record), "{written}");
    assert!(!record.owned().is_empty());
    assert_eq!(record.settle(&record.network, &record.settings), record.settings);
    let _ = NetworkConfig::from(record);
}

/// A file of `pods`.
pub(super) fn attachment(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Some((attachment, _)) = Attachment::from_json(text) else { return };
    let written = attachment.to_json();
    assert_eq!(Attachment::from_json(&written), Some((attachment, false)), "{written}");
}

/// `.ready`
pub(super) fn ready(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Some(ready) = Ready::from_text(text) else { return };
    let written = ready.to_text();
    assert!(written.starts_with(if ready.marker == Marker::Nftables { "nft" } else { "ipt" }));
    assert_eq!(Ready::from_text(&written), Some(ready), "{written}");
}

/// A file of libcni's cache.
pub(super) fn result_cache(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Some(entry) = cache::read(text) else { return };
    assert!(entry.pod.is_none_or(|pod| pod.contains('/')));
}
