import os
from pathlib import Path

from fuseline.serve.batching.batcher import Batcher
from fuseline.serve.metrics.metrics import Metrics
from fuseline.serve.model import load_model
from fuseline.serve.workers.catalogue import Catalogue, catalogue_for, served_model
from tests.serve.conftest import settings


async def test_a_worker_is_told_what_is_new_to_it_and_all_that_is_served(package: Path) -> None:
    """Also of a package whose path JSON can't hold, as a link's may be."""
    model = load_model(package, settings(max_batch=2), Metrics(), name="shapes", version="7")
    model.package = model.package.model_copy(update={"folder": Path(os.fsdecode(b"/models/r\xe9"))})
    assert isinstance(model.batcher, Batcher)
    served = served_model(model, model.batcher)
    catalogue = catalogue_for({3: served, 9: served}, frozenset({3, 5}))
    read = Catalogue.model_validate_json(catalogue.model_dump_json())
    assert read == catalogue
    assert read.served == (3, 9)
    assert read.added == {9: served}
    assert (served.name, served.version) == ("shapes", "7")
    assert served.arena_shape.slots == model.batcher.policy.max_queue_rows + 2 * 2
    await model.close()
