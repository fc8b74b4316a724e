"""Changes of a graph before it is parsed, of which each makes of it something that the plan is not."""

import numpy as np
from onnx import helper, numpy_helper


def disagreeing(facts):
    return {fact.key: fact for fact in facts if not fact.agrees}


def set_constant(old, new, shape):
    """Another number in the place of a constant of the graph."""

    def change(graph):
        found = [
            t
            for t in graph.initializer
            if not t.external_data
            and tuple(t.dims) == shape
            and np.allclose(numpy_helper.to_array(t), np.asarray(old, numpy_helper.to_array(t).dtype))
        ]
        assert len(found) == 1
        dtype = numpy_helper.to_array(found[0]).dtype
        found[0].CopyFrom(numpy_helper.from_array(np.full(shape, new, dtype), found[0].name))

    return change


def set_attribute(operator, name, value):
    def change(graph):
        node = next(node for node in graph.node if node.op_type == operator)
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def skip(operator):
    """Nodes of this kind give what they are given."""

    def change(graph):
        for node in graph.node:
            if node.op_type == operator:
                node.op_type = "Identity"
                del node.input[1:], node.attribute[:]

    return change


def double(operator, *, behind, value=2.0):
    """The first tensor that such a node is given or gives, times a number or a vector, in the node's type."""

    def change(graph):
        index = next(index for index, node in enumerate(graph.node) if node.op_type == operator)
        node = graph.node[index]
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), "by"))
        own, new = (node.output, "twice") if behind else (node.input, "twice")
        given, made = (new, own[0]) if behind else (own[0], new)
        own[0] = new
        nodes = [
            helper.make_node("CastLike", ["by", given], ["by like it"]),
            helper.make_node("Mul", [given, "by like it"], [made]),
        ]
        for number, one in enumerate(nodes):
            graph.node.insert(index + number + behind, one)

    return change
