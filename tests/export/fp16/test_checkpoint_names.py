import pytest

from fuseline.export.fp16.checkpoint_names import checkpoint_name

NAMES = {
    "conv1": "pre.0",
    "layer1.0.conv1": "stage1.0.left.0",
    "layer1.0.conv2": "stage1.0.left.3",
    "layer1.0.downsample.0": "stage1.0.right.0",
    "layer2.0.bn1": "stage2.0.bn1",
    "layer2.0.conv1": "stage2.0.conv1",
    "fc": "head",
}


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("conv1", "pre.0"),
        ("layer1.0.downsample.0", "stage1.0.right.0"),
        ("fc", "head"),
        # Without weights: the module that calls it, which the checkpoint knows by the layers in it.
        ("layer1.0/Add", "stage1.0/Add"),
        ("layer1.0.relu/Relu_2", "stage1.0.relu/Relu_2"),
        # A BatchNorm that is computed as a scale and a shift has a name of its own.
        ("layer2.0.bn1/Mul", "stage2.0.bn1/Mul"),
        ("ReduceMean", "ReduceMean"),
        ("maxpool/MaxPool", "maxpool/MaxPool"),
    ],
)
def test_nodes_are_called_as_in_the_checkpoint(node: str, name: str) -> None:
    assert checkpoint_name(node, NAMES) == name
