"""Renders a chart by Helm's own library: run with build/manifest-tools' Python.

    helm_charts.py CHART < [{"name": ..., "values": ...}, ...]

For each it prints, in one JSON list, the text of the chart's templates by file, or `error`; last what Helm's linter
says.
"""

import json
import sys

import helm_python

rendered = []
with helm_python.Chart.load(sys.argv[1]) as chart:
    for release in json.load(sys.stdin):
        try:
            chart.validate_schema(release["values"])
            rendered.append(chart.render(release["values"], name=release["name"], namespace="pictures"))
        except helm_python.HelmError as error:
            rendered.append({"error": str(error)})
print(json.dumps([*rendered, helm_python.lint(sys.argv[1])]))
