//! Metrics in Prometheus' [text format](https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format), version 0.0.4.

use std::fmt::{self, Display, Write};

/// The value of `Content-Type` for this format.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The text of an answer to a scrape, to which metrics are appended.
#[derive(Debug, Default)]
pub struct Exposition(String);

/// One metric of an [`Exposition`]. Its samples differ in their labels.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

/// A distribution of values: how many values were at most each bound, how many there were in all, and their sum.
#[derive(Clone, Debug)]
pub struct Histogram<const N: usize> {
    bounds: [f64; N],
    counts: [u64; N],
    count: u64,
    sum: f64,
}

/// Names and values of labels.
type Labels<'a> = [(&'a str, &'a str)];

impl Exposition {
    /// Begins a counter, which only grows. By convention its name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family("counter", name, help)
    }

    /// Begins a gauge, which grows and shrinks.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family("gauge", name, help)
    }

    /// Begins a histogram.
    pub fn histogram(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family("histogram", name, help)
    }

    fn family(&mut self, kind: &str, name: &'static str, help: &str) -> Family<'_> {
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        let text = &mut self.0;
        Family { text, name }
    }

    /// Returns the text.
    pub fn into_text(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// Appends one sample of a counter or a gauge.
    pub fn sample(&mut self, labels: &Labels<'_>, value: impl Display) -> &mut Self {
        self.line("", labels, value)
    }

    /// Appends the samples of one histogram: its buckets, its sum and its count.
    pub fn samples<const N: usize>(
        &mut self,
        labels: &Labels<'_>,
        histogram: &Histogram<N>,
    ) -> &mut Self {
        let bounds = histogram.bounds.iter().map(f64::to_string);
        let buckets = bounds.zip(histogram.counts);
        for (bound, count) in buckets.chain([("+Inf".to_owned(), histogram.count)]) {
            let labels = [labels, &[("le", &*bound)]].concat();
            self.line("_bucket", &labels, count);
        }
        self.line("_sum", labels, histogram.sum)
            .line("_count", labels, histogram.count)
    }

    fn line(&mut self, suffix: &str, labels: &Labels<'_>, value: impl Display) -> &mut Self {
        let (name, labels) = (self.name, Braced(labels));
        let _ = writeln!(self.text, "{name}{suffix}{labels} {value}");
        self
    }
}

/// Writes labels in one pair of braces, or nothing if there are none.
struct Braced<'a>(&'a Labels<'a>);

impl Display for Braced<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, value)) in self.0.iter().enumerate() {
            let before = if n == 0 { '{' } else { ',' };
            let value = value.replace('\\', r"\\").replace('"', r#"\""#);
            let value = value.replace('\n', r"\n");
            write!(f, "{before}{name}=\"{value}\"")?;
        }
        f.write_str(if self.0.is_empty() { "" } else { "}" })
    }
}

impl<const N: usize> Histogram<N> {
    /// Creates an empty histogram with upper bounds in ascending order.
    pub fn new(bounds: [f64; N]) -> Self {
        Self {
            bounds,
            counts: [0; N],
            count: 0,
            sum: 0.0,
        }
    }

    /// Counts a value.
    pub fn add(&mut self, value: f64) {
        for (count, bound) in self.counts.iter_mut().zip(self.bounds) {
            *count += u64::from(value <= bound);
        }
        self.count += 1;
        self.sum += value;
    }
}
