from torch.onnx._internal.exporter._registration import ONNXRegistry

from tests.exporter_table import keep_table


def test_the_table_that_is_kept_is_the_one_that_torch_makes():
    keep_table()
    kept, anew = ONNXRegistry.from_torchlib(), ONNXRegistry.from_torchlib.makes_anew()
    assert type(kept) is type(anew)
    assert vars(kept).keys() == vars(anew).keys()
    assert kept.opset_version == anew.opset_version
    assert kept.functions.keys() == anew.functions.keys()
    for operator, found in anew.functions.items():
        assert [f.onnx_function for f in kept.functions[operator]] == [f.onnx_function for f in found]
        assert [str(f.signature) for f in kept.functions[operator]] == [str(f.signature) for f in found]


def test_what_an_export_adds_to_its_table_is_in_no_other():
    keep_table()
    one = ONNXRegistry.from_torchlib()
    operator, found = next(iter(one.functions.items()))
    found.append(None)
    one.functions["added"] = []
    other = ONNXRegistry.from_torchlib()
    assert "added" not in other.functions
    assert None not in other.functions[operator]
