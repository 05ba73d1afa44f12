//! Draws bars as SVG: the median, and a line from the minimum to the 95th percentile.

use std::fmt::Write as _;

pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) p95: f64,
    /// Whether the bar is one of symroute.
    pub(crate) own: bool,
}

const LEFT: f64 = 270.0;
const WIDTH: f64 = 430.0;
const HEIGHT: f64 = 24.0;
const TOP: f64 = 44.0;

pub(crate) fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let longest = bars.iter().map(|bar| bar.median).fold(1e-9, f64::max);
    // Scaled to the medians, so that one high percentile does not make all bars short.
    let scale = |value: f64| LEFT + WIDTH * (value / (longest * 1.15)).min(1.0);
    let mut y = TOP;
    let mut svg = String::new();
    for Bar { label, min, median, p95, own } in bars {
        let (middle, text) = (y + HEIGHT / 2.0, y + HEIGHT * 0.68);
        let (colour, end) = (if *own { "#2a6fbb" } else { "#9aa5b1" }, scale(*median));
        let digits = if *median < 20.0 { 2 } else { 0 };
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{text:.0}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LEFT}\" y=\"{:.0}\" width=\"{:.1}\" height=\"{:.0}\" fill=\"{colour}\"/>\n\
             <path d=\"M{:.1} {middle:.0}H{:.1}\" stroke=\"#222\"/>\n\
             <text x=\"{:.0}\" y=\"{text:.0}\">{median:.digits$}</text>",
            LEFT - 8.0,
            escaped(label),
            y + 3.0,
            end - LEFT,
            HEIGHT - 6.0,
            scale(*min),
            scale(*p95),
            scale(*p95).max(end) + 6.0,
        );
        y += HEIGHT;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"780\" height=\"{:.0}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n<text x=\"10\" y=\"24\" font-size=\"15\">{} ({})</text>\n{svg}</svg>\n",
        y + 12.0,
        escaped(title),
        escaped(unit)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
