"""What `fuseline bench peers` compares: contenders, cases of load, and bars."""

from dataclasses import dataclass, replace

CONCURRENCY = 32
JPEG_SHAPE = (375, 500, 3)
"""Height, width and channels of the pictures in JPEG files, as many photographs of ImageNet have them."""
SAME_ENGINE = "onnxruntime"
"""What runs the model in every contender but those that say otherwise."""
OVERLOAD_DEADLINE_MS = 250.0
"""Sent with every call of the case `overload`; an answer within it, from when the request was due, is goodput."""
OVERLOAD_LOADS = (0.8, 1.0, 2.0, 5.0)
"""What is offered to each contender, in multiples of its own capacity."""
OVERLOAD_LEAST = {2.0: 0.95, 5.0: 0.95}
"""Load to the goodput that Fuseline has to keep, as a share of its own capacity."""
OVERLOAD_LEAST_LEAD = 0.0
"""How far above each Triton's share Fuseline's has to be at these loads."""


PROTOCOLS = ("infer", "shared-memory", "rest")
"""ModelInfer of the Open Inference Protocol, with the pixels in its message or in system shared memory, and its REST
with binary tensors."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Who is measured under a load."""

    title: str
    server: str
    """`fuseline`, `echo`, `http-echo`, `bare` (the backend itself, called in a loop), `bare-lanes` (the same with a
    lane for each core), `cpu-limit` (see `fuseline.benchmarks.peers.cpu_limit`), or one of `PEER_SERVERS`."""
    backend: str = SAME_ENGINE
    """Fuseline's backend."""
    precision: str = "fp32"
    one_image: bool = False
    """Whether a request has one image, however many the case says."""
    flags: tuple[str, ...] = ()
    """What `fuseline serve` is told besides."""
    protocol: str = ""
    """One of `PROTOCOLS`; empty: the server's own, which is Classify of Fuseline."""
    side: int = 0
    """Height and width of its pictures, by a model of its own that costs nothing; 0: those of the case."""


PEERS = {"triton": "Triton", "mosec": "Mosec"}
"""Servers that a user would pick instead; installed by `make peers`."""
PEER_SERVERS = {"triton": "triton", "triton-policy": "triton", "mosec": "mosec"}
"""Server to which of `PEERS` it is. `triton-policy` is Triton with a queue policy: it rejects what has waited for
`OVERLOAD_DEADLINE_MS`, or for less if the request says so."""

CONTENDERS = {
    "fuseline": Contender("Fuseline", "fuseline"),
    "fuseline-openvino": Contender("Fuseline, OpenVINO", "fuseline", "openvino"),
    "fuseline-int8": Contender("Fuseline, OpenVINO INT8", "fuseline", "openvino", "int8"),
    "fuseline-bf16": Contender("Fuseline, OpenVINO BF16", "fuseline", "openvino", "bf16"),
    "bare": Contender("the bare backend", "bare"),
    "bare-lanes": Contender("the bare backend in lanes", "bare-lanes"),
    "echo": Contender("grpc.aio echo", "echo"),
    "triton": Contender("Triton", "triton"),
    "mosec": Contender("Mosec", "mosec"),
    "mosec-single": Contender("Mosec, one image a request", "mosec", one_image=True),
    "triton-policy": Contender("Triton, queue policy", "triton-policy"),
    "triton-policy-100": Contender("Triton, queue policy 100 ms", "triton-policy"),
    "fuseline-infer": Contender("Fuseline, ModelInfer", "fuseline", protocol="infer"),
    "fuseline-infer-32": Contender("Fuseline, ModelInfer of 3 KB", "fuseline", protocol="infer", side=32),
    "fuseline-shared-memory": Contender("Fuseline, shared memory", "fuseline", protocol="shared-memory"),
    "triton-shared-memory": Contender("Triton, shared memory", "triton", protocol="shared-memory"),
    "fuseline-rest": Contender("Fuseline, REST", "fuseline", protocol="rest"),
    "triton-rest": Contender("Triton, REST", "triton", protocol="rest"),
    "http-echo": Contender("uvicorn echo", "http-echo", protocol="rest"),
}
_ONE_LANE = ("fuseline", "fuseline-openvino")
CONTENDERS |= {
    f"{name}-one-lane": replace(CONTENDERS[name], title=f"{CONTENDERS[name].title}, one lane", flags=("--lanes", "1"))
    for name in _ONE_LANE
}
CPU_LIMITS = {name: f"{name}-cpu-limit" for name in ("fuseline", "fuseline-openvino", "fuseline-bf16", "fuseline-int8")}
"""Each of Fuseline's contenders that is sent JPEGs to the limit that it is held against."""
CONTENDERS |= {
    limit: replace(
        CONTENDERS[name],
        title=CONTENDERS[name].title.replace("Fuseline", "decode and engine alone"),
        server="cpu-limit",
    )
    for name, limit in CPU_LIMITS.items()
}
QUEUE_TIMEOUT_MS = {"triton-policy": OVERLOAD_DEADLINE_MS, "triton-policy-100": 100.0}
"""Contender to what its requests under an open load say as Triton's parameter `timeout`: how long they may wait. A
request that has waited for nearly all of its deadline is computed and comes late, so the second one says less."""


def goodput_at(load: float) -> str:
    """The measure, of `MEASURES`, under `load` times the contender's own capacity."""
    return f"goodput at {load:g}"


MEASURES = {
    "CPU": "server CPU a request",
    "CPU an image": "server CPU ms an image",
    "images/s": "images/s",
    "p50": "p50 ms",
    "p99": "p99 ms",
    **{goodput_at(load): f"goodput / own capacity, offered {load:g} times it" for load in OVERLOAD_LOADS},
}


@dataclass(frozen=True, slots=True)
class Bar:
    """What a contender has to reach."""

    contender: str
    measure: str
    """One of `MEASURES`."""
    against: str
    """Another contender, or empty: `limit` is a figure of its own."""
    relation: str
    """`times`: the ratio of the two; `above`: their difference; empty where there is no other."""
    limit: float
    is_least: bool
    """Whether the limit is the least that passes, or else the most."""

    def passes(self, value: float) -> bool:
        """Whether `value` is within the bar."""
        return value >= self.limit if self.is_least else value <= self.limit

    @property
    def text(self) -> str:
        """The bar in words."""
        against = f" {self.relation} that of {CONTENDERS[self.against].title}" if self.against else ""
        return f"at {'least' if self.is_least else 'most'} {self.limit:g}{against}"


def _at_least(limit: float, measure: str, against: str, contender: str = "fuseline") -> Bar:
    return Bar(contender, measure, against, "times", limit, True)


def _at_most(
    limit: float, measure: str, against: str = "", relation: str = "times", contender: str = "fuseline"
) -> Bar:
    return Bar(contender, measure, against, relation if against else "", limit, False)


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load, who is put under it, and the bars."""

    title: str
    side: int
    """Height and width of the picture, in pixels."""
    classes: int
    contenders: tuple[str, ...]
    bars: tuple[Bar, ...]
    images: int = 1
    """Images of each request."""
    stream: bool = False
    concurrency: int = CONCURRENCY
    least_seconds: float = 0.0
    """Least length of a stretch: where a batch takes a second, a shorter one would count hardly any."""
    network: str = ""
    """Name of a network that gets random weights and all cores; empty: the tiny model, on one core."""
    share_of_capacity: float | None = None
    """Open loop: requests are due as a Poisson process at this share of what Triton answers under `concurrency`, which
    is measured at the beginning of each round. None: closed loop."""
    jpeg: bool = False
    """Whether pictures are sent as JPEG files of `JPEG_SHAPE`, which servers decode, resize and crop."""
    busy: bool = False
    """Whether one process of the same priority takes what it can get of a core all the time."""

    @property
    def model(self) -> tuple[str, int, int, bool]:
        """Network, side, classes, whether files are sent: cases of the same model share their servers."""
        return self.network, self.side, self.classes, self.jpeg


@dataclass(frozen=True, slots=True)
class OverloadCase(Case):
    """Poisson arrivals at multiples of what each contender itself answers under `concurrency`, measured before each."""

    loads: tuple[float, ...] = OVERLOAD_LOADS
    """Multiples of the contender's own capacity."""
    deadline_ms: float = OVERLOAD_DEADLINE_MS


_ALIKE = ("fuseline", "echo", "triton", "mosec", "bare")
_TO_ECHO = _at_most(1.5, "CPU", "echo")
_LEAST_SECONDS = 3.0
_RESNET = ("bare", "fuseline", "triton", "fuseline-openvino", "fuseline-int8", "fuseline-bf16", "mosec")
_TRITONS = ("triton", "triton-policy", "triton-policy-100")

CASES = {
    "unary": Case("Classify, 3 KB", 32, 10, _ALIKE, (_TO_ECHO,)),
    "unary-224": Case("Classify, 150 KB", 224, 1000, _ALIKE, (_TO_ECHO,)),
    "stream": Case("ClassifyStream, 3 KB", 32, 10, ("fuseline", "echo", "bare"), (_TO_ECHO,), stream=True),
    "images": Case(
        "Classify, 16 x 3 KB",
        32,
        10,
        ("fuseline", "echo", "mosec", "mosec-single", "bare"),
        (_at_most(0.05, "CPU an image"), _at_most(1, "CPU an image", "mosec-single")),
        images=16,
    ),
    "shared-memory": Case(
        "ModelInfer, 150 KB by shared memory",
        224,
        10,
        ("fuseline-shared-memory", "fuseline-infer-32", "fuseline-infer", "triton-shared-memory", "triton"),
        (_at_most(1.15, "CPU", "fuseline-infer-32", contender="fuseline-shared-memory"),),
    ),
    "images-shared-memory": Case(
        "ModelInfer, 16 x 150 KB by shared memory",
        224,
        10,
        ("fuseline-shared-memory", "fuseline-infer", "triton-shared-memory"),
        (_at_most(1, "CPU an image", "fuseline-infer", contender="fuseline-shared-memory"),),
        images=16,
    ),
    "rest": Case(
        "REST, binary, 3 KB",
        32,
        10,
        ("fuseline-rest", "http-echo", "triton-rest", "mosec", "fuseline-infer"),
        (_at_most(1.5, "CPU", "http-echo", contender="fuseline-rest"),),
    ),
    "alone": Case(
        "Classify, 3 KB, one at a time",
        32,
        10,
        ("fuseline", "echo", "bare"),
        (_at_most(1.2, "p50", "bare", "above"),),
        concurrency=1,
    ),
    "resnet18": Case(
        "Classify, ResNet-18 at 224",
        224,
        1000,
        _RESNET,
        (
            _at_least(0.97, "images/s", "bare"),
            _at_least(1.2, "images/s", "triton"),
            _at_least(1.2, "images/s", "triton", "fuseline-openvino"),
            _at_least(4, "images/s", "triton", "fuseline-int8"),
            _at_least(1.7, "images/s", "fuseline-openvino", "fuseline-bf16"),
        ),
        least_seconds=_LEAST_SECONDS,
        network="resnet18",
    ),
    "resnet18-open": Case(
        "ResNet-18, Poisson arrivals at 0.8 of Triton's capacity",
        224,
        1000,
        ("fuseline", "triton", "mosec"),
        (_at_most(0.6, "p99", "triton"),),
        least_seconds=_LEAST_SECONDS,
        network="resnet18",
        share_of_capacity=0.8,
    ),
    "jpeg": Case(
        "Classify, JPEG of 500 x 375, ResNet-18 at 224",
        224,
        1000,
        (*CPU_LIMITS, *CPU_LIMITS.values(), "triton", "mosec"),
        tuple(_at_least(0.95, "images/s", limit, name) for name, limit in CPU_LIMITS.items()),
        least_seconds=_LEAST_SECONDS,
        network="resnet18",
        jpeg=True,
    ),
    "busy": Case(
        "Classify, ResNet-18 at 224, beside one busy process",
        224,
        1000,
        (*_ONE_LANE, *(f"{name}-one-lane" for name in _ONE_LANE), "bare-lanes"),
        tuple(_at_least(1.3, "images/s", f"{name}-one-lane", name) for name in _ONE_LANE),
        least_seconds=_LEAST_SECONDS,
        network="resnet18",
        busy=True,
    ),
    "overload": OverloadCase(
        "ResNet-18, overload",
        224,
        1000,
        ("fuseline", *_TRITONS, "mosec"),
        (
            *(Bar("fuseline", goodput_at(load), "", "", least, True) for load, least in OVERLOAD_LEAST.items()),
            *(
                Bar("fuseline", goodput_at(load), triton, "above", OVERLOAD_LEAST_LEAD, True)
                for load in OVERLOAD_LEAST
                for triton in _TRITONS
            ),
        ),
        least_seconds=_LEAST_SECONDS,
        network="resnet18",
    ),
}
