"""`fuseline manifest`: what Kubernetes, KServe, Ray and Helm need to run one package, sized by what was measured.

    package ──measuring.py──▶ measurement.py ──sizing.py──▶ figures ──▶ kubernetes.py kserve.py ray.py helm.py ──▶ YAML

The YAML of `deploy/kubernetes`, `deploy/kserve` and `deploy/helm` is the only copy of what is written: the modules here
read it and change names and figures. `kustomization.py` reads the kustomizations as kubectl does.
"""
