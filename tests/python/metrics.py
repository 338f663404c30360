"""Reads metrics in Prometheus' text format from standard input, with the parser of `prometheus-client`, and prints their values as JSON. Each
key is the sample's name and the values of its labels. Mistakes that the parser tolerates are errors here.
"""

import json
import math
import re
import sys

from prometheus_client.parser import text_string_to_metric_families

KINDS = {"counter", "gauge", "histogram"}


def main():
    text = sys.stdin.read()
    assert text.endswith("\n"), "the last line has no end"
    for kind in re.findall(r"^# TYPE (\S+ \S+)$", text, re.MULTILINE):
        assert kind.endswith("_total counter") == kind.endswith(" counter"), kind
    values, names = {}, set()
    for family in text_string_to_metric_families(text):
        assert family.name not in names, f"{family.name} comes twice"
        names.add(family.name)
        assert family.type in KINDS and family.documentation, family
        for sample in family.samples:
            key = " ".join([sample.name, *sample.labels.values()])
            assert key not in values, f"{key} comes twice"
            assert not sample.name.endswith("_created") and sample.timestamp is None, key
            values[key] = sample.value
        if family.type == "histogram":
            check(family)
    # Every line that is not a comment must be a sample.
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(values), (len(lines), len(values))
    print(json.dumps(values))


def check(histogram):
    """Buckets that begin to count at 0, each holds the one before, and the last holds all."""
    series = {}
    for sample in histogram.samples:
        labels = {**sample.labels}
        bound = labels.pop("le", None)
        one = series.setdefault(tuple(labels.items()), {"buckets": []})
        if bound is None:
            one[sample.name.removeprefix(histogram.name)] = sample.value
        else:
            one["buckets"].append((float(bound), sample.value))
    for one in series.values():
        bounds, counts = zip(*one["buckets"])
        assert list(bounds) == sorted(set(bounds)) and bounds[-1] == math.inf, bounds
        assert list(counts) == sorted(counts) and counts[-1] == one["_count"], counts
        assert one["_sum"] >= 0


main()
