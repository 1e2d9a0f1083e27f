"""Which parameters of a model are matrices for a rule that updates matrices as a whole.

Those with two dimensions, but for embeddings: each row of these is a vector of its own, looked up
and not multiplied with. Convolutions have more dimensions, and are none. An output layer is
usually left out, too, which only its workload knows. Source: Jordan et al. 2024, "Muon: An
optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from ..errors import UserError

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
ATTRIBUTE = "not_matrices"  # of a workload, optional


def matrices_of(model: nn.Module, not_matrices: Collection[str] = ()) -> set[str]:
    """The names of a model's parameters that are matrices, as `named_parameters` has them.

    `not_matrices` are the names of others that are none. Raises UserError for a name that the
    model does not have, or if they are no names.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    if isinstance(not_matrices, str) or not isinstance(not_matrices, Collection):
        raise UserError(
            f"workload: {ATTRIBUTE} must be a list of names of parameters, got {not_matrices!r}"
        )
    if strangers := [name for name in not_matrices if name not in known]:
        raise UserError(
            f"workload: {ATTRIBUTE} names {strangers[0]!r}, which is no parameter of the model; it "
            f"has {', '.join(known)}"
        )
    tables = (one for one in model.modules() if isinstance(one, EMBEDDINGS))
    left_out = {id(known[name]) for name in not_matrices}
    left_out |= {id(parameter) for table in tables for parameter in table.parameters()}
    own = model.named_parameters()
    return {name for name, one in own if one.ndim == 2 and id(one) not in left_out}


def output_weight(loss: Tensor) -> Tensor | None:
    """The weight of the output layer: of the trained parameters with two dimensions or more, the
    one that the fewest operations lead to from the loss. None if there is none.
    """
    nodes = {loss.grad_fn: None}
    seen = dict(nodes)
    while nodes:
        for node in nodes:
            parameter = getattr(node, "variable", None)  # of a leaf of the graph
            if isinstance(parameter, Tensor) and parameter.ndim >= 2:
                return parameter
        before = (one for node in nodes for one, _ in getattr(node, "next_functions", ()))
        nodes = {one: None for one in before if one is not None and one not in seen}
        seen |= nodes
    return None
