"""DeepReduce (Xu et al., NeurIPS 2021, arXiv 2102.03112) for masks: sparse updates with a Bloom index.

DeepReduce sends a sparse tensor as an index of its positions and their values. The sparse tensor of a mask
is its flips against m_g, and a flip has no value: of the two parts only the index remains. A round is
DeltaMask's without the ranking (all flips travel), and its filter is a Bloom filter.

The filter reports all n flips and some false positives, P positions in all. The paper's policies say which of
them get a value; here they say which of them are flipped (`config.deepreduce.policy`):

    P0  all P. In the paper the true value of every one of them travels, so this policy loses nothing; flips
        have no value that could undo a false one, so here its false positives stay, as noise on the mask.
    P1  n of the P, chosen by a public hash that both ends know: as many as really flipped, but a share
        1 − n/P of them wrong, and as many true flips lost.
    P2  n of the P, by conflict sets: the positions that hash to one set bit of the filter. Some true flip
        must have set it, so a set of one is certain, and small sets are likely. Ours takes positions in the
        order of the smallest conflict set they are in, ties by the public hash, which is one sort
        (docs/fidelity.md has the paper's order).

What does not apply: value compression, and the paper's P1 and P2 sending the chosen positions' values, which
repairs what they choose wrongly. The round's `false_flip_rate` is flips received less flips sent, so it is 0
under P1 and P2, whose false flips stand in for lost ones.
"""

from typing import Any

import optax

from deltamask_jax import codecs
from deltamask_jax.methods.deltamask import deltamask
from deltamask_jax.methods.method import Method
from deltamask_jax.task import Task


def deepreduce(
    task: Task, options: Any, bounds: Any, *, clients: int, fpr: float, policy: str, **settings: Any
) -> Method:
    """DeepReduce; κ does not apply.

    Args:
        options, bounds, clients, settings: as of `deltamask.deltamask`.
        fpr: false-positive rate of the Bloom filter.
        policy: 'P0', 'P1' or 'P2'.
    """
    codec_of = [codecs.get("bloom", fpr=fpr, policy=policy)] * clients
    everything = optax.constant_schedule(1.0)
    return deltamask(
        task, options, codec_of, bounds, clients=clients, kappa=everything, name="deepreduce", **settings
    )
