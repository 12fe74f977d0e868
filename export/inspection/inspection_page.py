"""The page of an inspection: one HTML file, which needs no other."""

import base64

from fuseline.export.html_page import page_environment
from fuseline.export.inspection.filters import filters_picture
from fuseline.export.inspection.fp16_risk import MAX_SUBNORMAL_SHARE, MIN_ACTIVATION_MARGIN
from fuseline.export.inspection.inspected import DEAD_GAIN, Inspection
from fuseline.export.inspection.inspection_charts import gain_chart, receptive_field_chart
from fuseline.export.inspection.inspection_text import (
    field_text,
    fp16_risk_text,
    parameters_text,
    short_count,
    stride_text,
    window_text,
)
from fuseline.export.inspection.package_inspection import InspectedPackage
from fuseline.serve.precision import FP16_LARGEST


def inspection_page(inspection: Inspection, package: InspectedPackage | None = None) -> str:
    """Return the HTML of `inspection`, of a checkpoint or of `package`'s network."""
    picture = None if inspection.filters is None else filters_picture(inspection.filters.weight)
    layers = [
        {
            "facts": layer,
            "window": window_text(layer),
            "stride": stride_text(layer),
            "field": field_text(layer),
            "short_parameters": short_count(layer.parameters),
            "short_multiply_adds": short_count(layer.multiply_adds),
        }
        for layer in inspection.layers
    ]
    return (
        page_environment()
        .get_template("inspection/inspection.html.j2")
        .render(
            inspection=inspection,
            package=package,
            layers=layers,
            short_multiply_adds=short_count(inspection.multiply_adds),
            parameters_text=parameters_text(inspection),
            fp16_risk=fp16_risk_text(inspection),
            most_parameters=max((layer.parameters for layer in inspection.layers), default=0),
            most_multiply_adds=max((layer.multiply_adds for layer in inspection.layers), default=0),
            field_chart=receptive_field_chart(inspection.layers, inspection.input_shape),
            gain_chart=gain_chart(inspection.batchnorms) if inspection.batchnorms else None,
            picture=picture,
            picture_base64=None if picture is None else base64.b64encode(picture.png).decode("ascii"),
            risks=[(facts.layer, risk) for facts in inspection.fp16.layers for risk in facts.risks],
            dead_gain=DEAD_GAIN,
            fp16_largest=FP16_LARGEST,
            min_margin=MIN_ACTIVATION_MARGIN,
            max_subnormal=MAX_SUBNORMAL_SHARE,
        )
    )
