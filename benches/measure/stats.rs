//! Sums up samples, and draws random orders.

use serde_json::{Value, json};

/// One row of a table: samples of one call, summed up.
pub(crate) struct Measured {
    /// Table of the row.
    pub(crate) section: String,
    /// The candidate, or the node that it ran on.
    pub(crate) label: String,
    /// The measured call.
    pub(crate) call: String,
    pub(crate) unit: String,
    pub(crate) count: u64,
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    /// Half the width of the median's 95 % confidence interval, as a share of the median.
    pub(crate) doubt: f64,
}

impl Measured {
    pub(crate) fn of(
        section: &str,
        label: &str,
        call: &str,
        unit: &str,
        mut all: Vec<f64>,
    ) -> Self {
        assert!(!all.is_empty(), "no sample of {section}, {label}, {call}");
        all.sort_unstable_by(f64::total_cmp);
        let at = |percent: usize| all[((all.len() - 1) * percent).div_ceil(100)];
        // The number of samples below the median is binomial with a standard deviation of half the
        // root of the count. Two of those are 95 %.
        let (middle, ranks) = (all.len() / 2, all.len().isqrt());
        let (low, high) = (middle.saturating_sub(ranks), (middle + ranks).min(all.len() - 1));
        let doubt = (all[high] - all[low]) / 2.0 / at(50);
        Self {
            section: section.into(),
            label: label.into(),
            call: call.into(),
            unit: unit.into(),
            count: all.len() as u64,
            min: all[0],
            median: at(50),
            p95: at(95),
            p99: at(99),
            doubt,
        }
    }

    pub(crate) fn json(&self) -> Value {
        let round = |number: f64| (number * 10_000.0).round() / 10_000.0;
        json!({
            "section": self.section, "label": self.label, "call": self.call, "unit": self.unit,
            "count": self.count, "min": round(self.min), "median": round(self.median),
            "p95": round(self.p95), "p99": round(self.p99), "doubt": round(self.doubt),
        })
    }

    pub(crate) fn from_json(value: &Value) -> Self {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| value[key].as_f64().unwrap_or(f64::NAN);
        Self {
            section: text("section"),
            label: text("label"),
            call: text("call"),
            unit: text("unit"),
            count: value["count"].as_u64().unwrap_or(0),
            min: number("min"),
            median: number("median"),
            p95: number("p95"),
            p99: number("p99"),
            doubt: number("doubt"),
        }
    }
}

/// Random numbers that are good enough for the order of candidates (xorshift64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(now.map_or(1, |now| u64::from(now.subsec_nanos()) | 1))
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % end
    }

    /// The numbers below `count` in random order.
    pub(crate) fn order(&mut self, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            all.swap(last, self.below(last + 1));
        }
        all
    }
}
