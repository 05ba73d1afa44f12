//! The backend of a test run, and what each backend leaves on a node.
//!
//! `SYMROUTE_BACKEND=nftables|iptables-nft|iptables-legacy` chooses it for a whole run. Without the
//! variable, and with `nftables`, the settings name no backend, like those of most users.

use std::env;

use serde_json::Value;

use super::netns::Netns;
use super::node::Node;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Backend {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

impl Backend {
    pub(crate) const ALL: [Self; 3] = [Self::Nftables, Self::IptablesNft, Self::IptablesLegacy];

    /// The backend that this run tests.
    pub(crate) fn of_run() -> Self {
        let Some(name) = env::var_os("SYMROUTE_BACKEND") else {
            return Self::Nftables;
        };
        let known = Self::ALL.into_iter().find(|backend| name == backend.name());
        known.unwrap_or_else(|| panic!("SYMROUTE_BACKEND={name:?}: there are {:?}", Self::ALL))
    }

    /// The backend's name in the settings.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        }
    }

    pub(crate) fn is_iptables(self) -> bool {
        self != Self::Nftables
    }

    /// Name of an iptables program, for instance `ip6tables-legacy-restore`, in the variant that
    /// programs beside this backend use: `nft` except beside iptables-legacy.
    pub(crate) fn tool(self, v6: bool, job: &str) -> String {
        let (family, variant) = (if v6 { "ip6tables" } else { "iptables" }, self.variant());
        format!("{family}-{variant}{job}")
    }

    fn variant(self) -> &'static str {
        if self == Self::IptablesLegacy { "legacy" } else { "nft" }
    }

    /// Writes the backend into settings that name none.
    pub(crate) fn into_settings(self, settings: &mut Value) {
        if self.is_iptables() && settings.get("backend").is_none() {
            settings["backend"] = self.name().into();
        }
    }
}

impl Netns {
    /// Runs `iptables` and `ip6tables` of the variant with these arguments, one after the other.
    pub(crate) fn iptables(&self, backend: Backend, arguments: &str) {
        for v6 in [false, true] {
            let tool = backend.tool(v6, "");
            let argv: Vec<&str> = [tool.as_str()].into_iter().chain(arguments.split(' ')).collect();
            self.exec(&argv, "");
        }
    }

    /// The table mangle of both families, as `iptables-save` of the variant prints it.
    pub(crate) fn mangle(&self, backend: Backend) -> String {
        [false, true].map(|v6| self.mangle_of(backend, v6)).concat()
    }

    pub(crate) fn mangle_of(&self, backend: Backend, v6: bool) -> String {
        let text = self.exec(&[&backend.tool(v6, "-save")], "");
        let table = text.split_once("*mangle\n").map(|(_, rest)| rest);
        table.and_then(|rest| rest.split("COMMIT\n").next()).unwrap_or_default().to_owned()
    }

    /// Names of symroute's ipsets.
    pub(crate) fn ipsets(&self) -> Vec<String> {
        let names = self.exec(&["ipset", "list", "-name"], "");
        names.lines().filter(|name| name.starts_with("symroute")).map(str::to_owned).collect()
    }

    /// The backends that have anything on this node.
    pub(crate) fn backends(&self) -> Vec<Backend> {
        let nft = self.exec(&["nft", "list", "tables"], "").contains("table inet symroute");
        let chains = |backend| self.mangle(backend).contains("symroute");
        let sets = !self.ipsets().is_empty();
        let (on_nft, on_legacy) = (chains(Backend::IptablesNft), chains(Backend::IptablesLegacy));
        // Sets without chains may belong to either variant; they count for iptables-nft.
        let stand = [nft, on_nft || (sets && !on_legacy), on_legacy];
        Backend::ALL.into_iter().zip(stand).filter_map(|(b, there)| there.then_some(b)).collect()
    }
}

impl Node {
    /// Deletes all rules of the run's kind, those of symroute and of other programs.
    pub(crate) fn flush_all_rules(&self) {
        match Backend::of_run() {
            Backend::Nftables | Backend::IptablesNft => self.ns.nft("flush ruleset"),
            Backend::IptablesLegacy => {
                // In one transaction: otherwise an agent could put rules back in between.
                let empty = "*mangle\nCOMMIT\n*nat\nCOMMIT\n*filter\nCOMMIT\n";
                for program in ["iptables-legacy-restore", "ip6tables-legacy-restore"] {
                    self.ns.exec(&[program], empty);
                }
            }
        }
    }

    /// Empties symroute's chain of prerouting.
    pub(crate) fn flush_a_chain(&self) {
        match Backend::of_run() {
            Backend::Nftables => self.ns.nft("flush chain inet symroute prerouting"),
            variant => self.ns.iptables(variant, "-t mangle -F symroute-prerouting"),
        }
    }

    /// Changes a set of inside or outside addresses so that symroute takes the client for an inside
    /// host.
    pub(crate) fn spoil_a_set(&self) {
        match Backend::of_run() {
            Backend::Nftables => self.ns.nft("flush set inet symroute outside"),
            _ => drop(self.ns.exec(&["ipset", "add", "symroute-inside4", "203.0.113.0/24"], "")),
        }
    }
}
