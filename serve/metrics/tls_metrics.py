"""What is counted of the certificate that a server shows."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from fuseline.serve.tls.certificates import Certificates

EXPIRY = "fuseline_tls_certificate_expiry_timestamp_seconds"


def show_certificates(certificates: Certificates, registry: CollectorRegistry, *, counts: bool = True) -> None:
    """Show in `registry` until when the present certificate is valid and, with `counts`, what became of changes.

    Of the processes of one server, which all see the same changes, one counts them.
    """
    registry.register(_CertificateCollector(certificates, counts=counts))


class _CertificateCollector(Collector):
    def __init__(self, certificates: Certificates, *, counts: bool) -> None:
        self._certificates = certificates
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        its = self._certificates
        yield GaugeMetricFamily(
            EXPIRY, "Until when the certificate that is shown is valid, since the epoch.", its.current.not_after
        )
        if not self._counts:
            return
        reloads = CounterMetricFamily(
            "fuseline_tls_reloads",
            "Changes of the certificate's files, by whether they were taken up (ok) or are broken (failed).",
            labels=["result"],
        )
        reloads.add_metric(["ok"], its.reloads)
        reloads.add_metric(["failed"], its.failures)
        yield reloads
