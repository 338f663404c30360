//! Prometheus' [text format](https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format), version 0.0.4.

use std::fmt::{self, Display, Write};

pub(crate) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Families of metrics, as they are written one behind the other.
#[derive(Default)]
pub(crate) struct Exposition(String);

/// A metric, whose samples differ in their labels.
pub(crate) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

/// A distribution: how many there were up to each bound, in all, and what they add up to.
#[derive(Clone)]
pub(crate) struct Histogram<const N: usize> {
    bounds: [f64; N],
    counts: [u64; N],
    count: u64,
    sum: f64,
}

type Labels<'a> = [(&'a str, &'a str)];

impl Exposition {
    /// What only grows. By convention its name ends in `_total`.
    pub(crate) fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family("counter", name, help)
    }

    /// What comes and goes.
    pub(crate) fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family("gauge", name, help)
    }

    pub(crate) fn histogram(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family("histogram", name, help)
    }

    fn family(&mut self, kind: &str, name: &'static str, help: &str) -> Family<'_> {
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        let text = &mut self.0;
        Family { text, name }
    }

    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

impl Family<'_> {
    pub(crate) fn sample(&mut self, labels: &Labels<'_>, value: impl Display) -> &mut Self {
        self.line("", labels, value)
    }

    pub(crate) fn samples<const N: usize>(
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

/// Labels as they are written: none, or all in one pair of braces.
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
    /// With these bounds, in order.
    pub(crate) fn new(bounds: [f64; N]) -> Self {
        Self {
            bounds,
            counts: [0; N],
            count: 0,
            sum: 0.0,
        }
    }

    pub(crate) fn add(&mut self, value: f64) {
        for (count, bound) in self.counts.iter_mut().zip(self.bounds) {
            *count += u64::from(value <= bound);
        }
        self.count += 1;
        self.sum += value;
    }
}
