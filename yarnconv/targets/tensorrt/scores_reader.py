"""What becomes of the scores of an attention in a network: by what they are multiplied and bent, how far back
they reach, and how queries grow. In the builder's process.
"""

import math
from collections.abc import Iterator
from typing import Any

from yarnconv.targets.tensorrt.network_layers import PASSES, TOKENS_AND_POSITIONS, Layer, NetworkLayers

MOST_STEPS = 24  # from a softmax back to the scores, and from queries to what rotates them
LOWEST = -1e30  # what hides a score is no larger


class ScoresReader:
    """Reads one network's."""

    def __init__(self, layers: NetworkLayers) -> None:
        self._layers = layers

    def factors(self, query: Any, key: Any) -> tuple[list[float], tuple[float, float] | None]:
        """(scales, growth): what queries and keys are multiplied with between their projections, or norms,
        and their product.

        scales: all numbers on the way, once for each of those that a request's context chooses from; NaN
        where something else than numbers and positions is among them.
        growth: (beta, context) of queries times 1 + beta ln(1 + floor(position / context)); of anything else
        made of positions that they or keys are multiplied with NaN; None where they are not.
        """
        of_query, of_key = (list(self._factors(tensor)) for tensor in (query, key))
        every = (*of_query, *of_key)
        scale = math.prod(factor for factor in every if isinstance(factor, float))
        chosen = [factor for factor in every if isinstance(factor, list)]
        scales = [scale * one for one in chosen[0]] if chosen else [scale]
        scales = scales if len(chosen) < 2 else [math.nan]
        grown, keys = ([f for f in some if not isinstance(f, float | list)] for some in (of_query, of_key))
        if not grown and not keys:
            return scales, None
        unknown = math.nan, math.nan
        known = None if keys or len(grown) != 1 else self._growth_itself(grown[0])
        return scales, known or unknown

    def _factors(self, tensor: Any) -> Iterator[float | list[float] | Any]:
        """What a tensor is multiplied with, the last first: numbers, lists of numbers of which a request's
        context chooses one, tensors made of positions, and NaN for anything else. Rotations are linear: what
        stands in front of them counts as what stands behind. A norm takes back whatever stands in front of
        it.
        """
        layers = self._layers
        for _ in range(MOST_STEPS):
            layer = layers.maker(tensor)
            if layer is None or layers.is_of(layer, "MATRIX_MULTIPLY"):
                return
            if layers.is_of(layer, *PASSES, "SLICE", "ROTARY_EMBEDDING"):
                tensor = layer.get_input(0)
            elif layers.is_of(layer, "CONCATENATION"):  # new keys behind those of the cache
                made = [one for one in layers.inputs(layer) if layers.maker(one) is not None]
                if len(made) != 1:
                    yield from self._alike(made)
                    return
                tensor = made[0]
            elif (found := layers.with_number(tensor)) is not None:
                yield from self._of_number(layer, found[0], found[2])
                tensor = found[1]
            elif not layers.is_of(layer, "ELEMENTWISE") or self._is_division(tensor):
                return  # a norm
            elif layers.operation(layer) == "SUM":  # a bias
                # a graph may join constants before it adds them
                own = [one for one in layers.inputs(layer) if layers.made_of(one)]
                if len(own) != 1:
                    yield math.nan
                    return
                tensor = own[0]
            elif layers.operation(layer) == "PROD":
                both = layers.inputs(layer)
                chosen = [self._chosen_by_context(one) for one in both]
                if any(chosen):
                    yield chosen[0] or chosen[1]
                    tensor = both[1] if chosen[0] else both[0]
                    continue
                grown = [one for one in both if self._is_of_positions(one)]
                if len(grown) != 1:
                    if not any(self._is_division(layers.passed(one)) for one in both):
                        yield math.nan
                    return  # otherwise a norm's product with its weights
                yield grown[0]
                tensor = both[0] if grown[0] is both[1] else both[1]
            else:
                yield math.nan
                return
        yield math.nan

    def _chosen_by_context(self, tensor: Any) -> list[float] | None:
        """The numbers that a tensor is one of, where no token and no position chooses among them."""
        layers, tensor = self._layers, self._layers.passed(tensor)
        layer = layers.maker(tensor)
        if layer is None or not layers.is_of(layer, "GATHER"):
            return None
        numbers = layers.numbers(layer.get_input(0))
        if numbers is None or layers.made_of(layer.get_input(1)) & TOKENS_AND_POSITIONS:
            return None
        return numbers

    def _alike(self, parts: list[Any]) -> Iterator[float | Any]:
        """What parts of heads that stand side by side are multiplied with, all by the same."""
        found = [
            math.prod((f if isinstance(f, float) else math.nan for f in self._factors(part)), start=1.0)
            for part in parts
        ]
        yield found[0] if found and len(set(found)) == 1 else math.nan

    def _of_number(self, layer: Layer, operation: str, number: float) -> Iterator[float]:
        """By what a layer that joins a tensor and a number multiplies the tensor."""
        if operation == "PROD":
            yield number
        elif operation == "DIV" and number and self._layers.number(layer.get_input(1)) is not None:
            yield 1.0 / number
        else:
            yield math.nan

    def _is_division(self, tensor: Any) -> bool:
        """Of a tensor by another, as in a norm."""
        layer = self._layers.maker(tensor)
        return (
            layer is not None
            and self._layers.operation(layer) == "DIV"
            and self._layers.with_number(tensor) is None
        )

    def window(self, mask: Any) -> int | None:
        """The number that is added to the slots' ranks before they are compared with the query's."""
        for _, layer in self._layers.behind([mask]):
            if layer is None or not self._layers.is_of(layer, "ELEMENTWISE"):
                continue
            if self._layers.operation(layer) == "GREATER":
                added = self._layers.with_number(self._layers.passed(layer.get_input(0)))
                if added is not None and added[0] == "SUM":
                    return int(added[2])
        return None

    def _is_of_positions(self, tensor: Any) -> bool:
        """Whether it is made of the positions and of no token."""
        made_of = self._layers.made_of(tensor)
        return "position_ids" in made_of and "input_ids" not in made_of

    def _growth_itself(self, tensor: Any) -> tuple[float, float] | None:
        steps, numbers = list[str](), list[float]()
        for _ in range(MOST_STEPS):
            tensor = self._layers.passed(tensor)
            if tensor.name == "position_ids":
                break
            layer = self._layers.maker(tensor)
            found = self._layers.with_number(tensor)
            if found is not None:
                steps.append(found[0])
                numbers.append(found[2])
                tensor = found[1]
            elif layer is not None and self._layers.operation(layer) == "LOG":
                steps.append("LOG")
                tensor = layer.get_input(0)
            else:
                return None
        if steps != ["SUM", "PROD", "LOG", "SUM", "DIV"] or (numbers[0], numbers[2]) != (1.0, 1.0):
            return None
        return numbers[1], numbers[3]

    def primitives(self, softmax: Layer) -> tuple[Layer, Any | None, float | None, bool] | None:
        """(the product that the scores are, what hides some of them, their softcap, whether sinks stand
        beside them) of an attention made of primitive layers; None where none leads to this softmax. softcap:
        c of c tanh(score / c), None for none, NaN for something else. What does not hide them wholly is no
        mask.
        """
        sinks = False
        masks, bends = list[Any](), list[tuple[str, float | None]]()
        tensor = softmax.get_input(0)
        for _ in range(MOST_STEPS):
            layer = self._layers.maker(tensor)
            if layer is None:
                return None
            found = self._layers.with_number(tensor)
            if self._layers.is_of(layer, "MATRIX_MULTIPLY"):
                return layer, masks[0] if len(masks) == 1 else None, _softcap(bends), sinks
            if self._layers.is_of(layer, "SELECT"):
                hidden = self._layers.number(layer.get_input(2))
                masks += [layer.get_input(0)] if hidden is not None and hidden <= LOWEST else []
                tensor = layer.get_input(1)
            elif self._layers.is_of(layer, *PASSES):
                tensor = layer.get_input(0)
            elif self._layers.is_of(layer, "CONCATENATION") and not sinks:
                # made of no input's values, at most of their sizes
                sinks = len(self._layers.inputs(layer)) == 2
                tensor = layer.get_input(0)
            elif found is not None:
                bends.append((found[0], found[2]))
                tensor = found[1]
            elif self._layers.inputs(layer):
                bends.append((self._layers.operation(layer), None))
                tensor = layer.get_input(0)
            else:
                return None
        return None


def _softcap(bends: list[tuple[str, float | None]]) -> float | None:
    """By what is done to scores, the last first."""
    if not bends:
        return None
    operations, numbers = [name for name, _ in bends], {number for _, number in bends} - {None}
    if operations != ["PROD", "TANH", "DIV"] or len(numbers) != 1:
        return math.nan
    return numbers.pop()
