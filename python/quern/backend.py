"""The `onnx.backend` interface: prepare, run_model, run_node, supports_device."""

import onnx
from onnx.backend.base import Backend, BackendRep

import quern


class QuernRep(BackendRep):
    """A prepared model."""

    def __init__(self, model):
        self.model = model

    def run(self, inputs, **kwargs):
        return tuple(self.model(inputs))


class QuernBackend(Backend):
    """Keyword arguments go to quern.compile."""

    @classmethod
    def prepare(cls, model, device="CPU", **kwargs):
        if not cls.supports_device(device):
            raise quern.UnsupportedError(f"device {device} is not supported: CPU is, and CUDA where there is a GPU")
        if device != "CPU":
            kwargs.setdefault("target", device.lower())
        return QuernRep(quern.compile(model.SerializeToString(), **kwargs))

    @classmethod
    def run_model(cls, model, inputs, device="CPU", **kwargs):
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(cls, node, inputs, device="CPU", outputs_info=None, **kwargs):
        """outputs_info: (dtype, shape) per output, where they cannot be found."""
        names = [name for name in node.input if name]
        infos = [onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
                 for name, x in zip(names, inputs)]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        for info, known in zip(outputs, outputs_info or ()):
            kind = onnx.helper.np_dtype_to_tensor_dtype(known[0])
            info.CopyFrom(onnx.helper.make_tensor_value_info(info.name, kind, known[1]))
        graph = onnx.helper.make_graph([node], "node", infos, outputs)
        version = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(node.domain, version)])
        if outputs_info is None:
            model = onnx.shape_inference.infer_shapes(model)
        return cls.run_model(model, inputs, device, **kwargs)

    @classmethod
    def supports_device(cls, device):
        """"CPU", and "CUDA" or "CUDA:1" where there are so many GPUs."""
        kind, _, number = device.partition(":")
        return kind == "CPU" or kind == "CUDA" and int(number or 0) < quern.device_count()


prepare = QuernBackend.prepare
run_model = QuernBackend.run_model
run_node = QuernBackend.run_node
supports_device = QuernBackend.supports_device
is_compatible = QuernBackend.is_compatible
