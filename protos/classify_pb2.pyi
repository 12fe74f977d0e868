from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Image(_message.Message):
    __slots__ = ("encoded", "raw")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    encoded: bytes
    raw: bytes
    def __init__(self, encoded: _Optional[bytes] = ..., raw: _Optional[bytes] = ...) -> None: ...

class ClassifyRequest(_message.Message):
    __slots__ = ("model", "images", "top_k", "id", "return_logits", "timeout_ms", "priority", "model_version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    RETURN_LOGITS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    images: _containers.RepeatedCompositeFieldContainer[Image]
    top_k: int
    id: str
    return_logits: bool
    timeout_ms: int
    priority: str
    model_version: str
    def __init__(self, model: _Optional[str] = ..., images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., top_k: _Optional[int] = ..., id: _Optional[str] = ..., return_logits: _Optional[bool] = ..., timeout_ms: _Optional[int] = ..., priority: _Optional[str] = ..., model_version: _Optional[str] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("index", "label", "probability")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    index: int
    label: str
    probability: float
    def __init__(self, index: _Optional[int] = ..., label: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class ImageResult(_message.Message):
    __slots__ = ("predictions", "logits")
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    logits: bytes
    def __init__(self, predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., logits: _Optional[bytes] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("preprocess_ms", "queue_ms", "compute_ms", "batch_rows")
    PREPROCESS_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    preprocess_ms: float
    queue_ms: float
    compute_ms: float
    batch_rows: int
    def __init__(self, preprocess_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ..., batch_rows: _Optional[int] = ...) -> None: ...

class StreamError(_message.Message):
    __slots__ = ("code", "message", "error_name", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ERROR_NAME_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    error_name: str
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., error_name: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("model", "model_version", "id", "results", "timing", "error", "served_model")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SERVED_MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_version: str
    id: str
    results: _containers.RepeatedCompositeFieldContainer[ImageResult]
    timing: Timing
    error: StreamError
    served_model: str
    def __init__(self, model: _Optional[str] = ..., model_version: _Optional[str] = ..., id: _Optional[str] = ..., results: _Optional[_Iterable[_Union[ImageResult, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., error: _Optional[_Union[StreamError, _Mapping]] = ..., served_model: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Assumption(_message.Message):
    __slots__ = ("key", "value", "meaning", "alternatives", "flag", "settled_by")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    MEANING_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    SETTLED_BY_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: str
    meaning: str
    alternatives: _containers.RepeatedScalarFieldContainer[str]
    flag: str
    settled_by: str
    def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ..., meaning: _Optional[str] = ..., alternatives: _Optional[_Iterable[str]] = ..., flag: _Optional[str] = ..., settled_by: _Optional[str] = ...) -> None: ...

class Verification(_message.Message):
    __slots__ = ("artifact", "backend", "images", "agreement", "passed", "accuracy", "eager_accuracy")
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    EAGER_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    artifact: str
    backend: str
    images: int
    agreement: float
    passed: bool
    accuracy: float
    eager_accuracy: float
    def __init__(self, artifact: _Optional[str] = ..., backend: _Optional[str] = ..., images: _Optional[int] = ..., agreement: _Optional[float] = ..., passed: _Optional[bool] = ..., accuracy: _Optional[float] = ..., eager_accuracy: _Optional[float] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("name", "version", "architecture", "labels", "height", "width", "channels", "resize_shorter_side", "interpolation", "backend", "precision", "backend_reason", "batch_buckets", "max_images_per_request", "max_message_bytes", "verification_json", "task", "crop_offset", "assumptions", "verification", "half_share", "lanes", "served_model")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    RESIZE_SHORTER_SIDE_FIELD_NUMBER: _ClassVar[int]
    INTERPOLATION_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    BACKEND_REASON_FIELD_NUMBER: _ClassVar[int]
    BATCH_BUCKETS_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_JSON_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CROP_OFFSET_FIELD_NUMBER: _ClassVar[int]
    ASSUMPTIONS_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_FIELD_NUMBER: _ClassVar[int]
    HALF_SHARE_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    SERVED_MODEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    architecture: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    height: int
    width: int
    channels: int
    resize_shorter_side: int
    interpolation: str
    backend: str
    precision: str
    backend_reason: str
    batch_buckets: _containers.RepeatedScalarFieldContainer[int]
    max_images_per_request: int
    max_message_bytes: int
    verification_json: str
    task: str
    crop_offset: str
    assumptions: _containers.RepeatedCompositeFieldContainer[Assumption]
    verification: _containers.RepeatedCompositeFieldContainer[Verification]
    half_share: float
    lanes: Lanes
    served_model: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., architecture: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., channels: _Optional[int] = ..., resize_shorter_side: _Optional[int] = ..., interpolation: _Optional[str] = ..., backend: _Optional[str] = ..., precision: _Optional[str] = ..., backend_reason: _Optional[str] = ..., batch_buckets: _Optional[_Iterable[int]] = ..., max_images_per_request: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., verification_json: _Optional[str] = ..., task: _Optional[str] = ..., crop_offset: _Optional[str] = ..., assumptions: _Optional[_Iterable[_Union[Assumption, _Mapping]]] = ..., verification: _Optional[_Iterable[_Union[Verification, _Mapping]]] = ..., half_share: _Optional[float] = ..., lanes: _Optional[_Union[Lanes, _Mapping]] = ..., served_model: _Optional[str] = ...) -> None: ...

class Lanes(_message.Message):
    __slots__ = ("lanes", "reason", "images_per_s")
    class ImagesPerSEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    LANES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    IMAGES_PER_S_FIELD_NUMBER: _ClassVar[int]
    lanes: int
    reason: str
    images_per_s: _containers.ScalarMap[int, float]
    def __init__(self, lanes: _Optional[int] = ..., reason: _Optional[str] = ..., images_per_s: _Optional[_Mapping[int, float]] = ...) -> None: ...
