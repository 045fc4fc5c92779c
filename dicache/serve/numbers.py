"""What an engine has done, as Prometheus reads it."""

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dicache.serve.engine import Engine

TEXT = "text/plain; version=0.0.4"
"""The kind of what `text` gives."""
SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
"""Borders of the histogram of latencies."""


class Numbers(Collector):
    """Of one engine, from when it was made."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.registry: CollectorRegistry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        self.latency: Histogram = Histogram(
            "dicache_request_seconds",
            "From when a request came until it was served.",
            buckets=SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def metrics(self) -> list[Metric]:
        """All, with those of the process. They can be sent to another one."""
        return list(self.registry.collect())

    def collect(self) -> list[Metric]:
        engine, counts = self.engine, self.engine.counts
        requests = CounterMetricFamily("dicache_requests", "Requests by what became of them.", labels=["outcome"])
        for outcome in ("served", "failed", "cancelled", "refused"):
            requests.add_metric([outcome], vars(counts)[outcome])
        work = CounterMetricFamily("dicache_macs", "Multiply-accumulates of the denoiser.", labels=["kind"])
        work.add_metric(["executed"], counts.executed)
        work.add_metric(["uncached"], counts.uncached)
        audits = CounterMetricFamily("dicache_audits", "Samples that were drawn again uncached.", labels=["budget"])
        for outcome, count in counts.audits.items():
            audits.add_metric([outcome], count)
        return [
            requests,
            work,
            audits,
            CounterMetricFamily("dicache_loosened", "Requests whose budget grew with the queue.", counts.loosened),
            CounterMetricFamily(
                "dicache_steps", "Joint calls of the denoiser, or none where all skipped.", counts.steps
            ),
            CounterMetricFamily("dicache_calls", "Denoiser calls that requests made in them.", counts.calls),
            GaugeMetricFamily("dicache_padding", "Share of all rows that filled groups.", engine.padding),
            GaugeMetricFamily("dicache_running", "Requests that run.", len(engine.running)),
            GaugeMetricFamily("dicache_waiting", "Requests that wait.", len(engine.queue)),
        ]


class Merged(Collector):
    """Those of several processes, told apart by a label `replica`."""

    def __init__(self, replicas: Mapping[str, Sequence[Metric]]) -> None:
        self.replicas = replicas

    def collect(self) -> Iterator[Metric]:
        families = dict[str, Metric]()
        for name, metrics in self.replicas.items():
            for metric in metrics:
                family = Metric(metric.name, metric.documentation, metric.type)
                family = families.setdefault(metric.name, family)
                family.samples += [each._replace(labels={**each.labels, "replica": name}) for each in metric.samples]
        yield from families.values()

    def text(self) -> bytes:
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)
