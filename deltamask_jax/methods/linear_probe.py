"""Linear probing: only the head is trained, by federated averaging. The lower bracket, and DeltaMask's head.

DeltaMask starts from a head that one round of this method has trained (its "LP" initialisation).
"""

from deltamask_jax.local_training import cosine, cross_entropy
from deltamask_jax.methods.averaging import NOT_PRIVATE, averaging
from deltamask_jax.methods.method import Method
from deltamask_jax.privacy import Mechanism
from deltamask_jax.task import Task


def linear_probe(
    task: Task, *, learning_rate: float, decay: float, rounds: int, privacy: Mechanism = NOT_PRIVATE
) -> Method:
    """Train the head on the frozen network's features, by Adam.

    Args:
        learning_rate, decay: of the first of so many rounds, and the last's as a share of it.
        privacy: as of `averaging.averaging`.
    """

    def loss_of(frozen, head, batch):
        return cross_entropy(batch["inputs"] @ head["kernel"] + head["bias"], batch)

    return averaging(
        "linear_probe",
        "features",
        weights=task.head,
        frozen=(),
        loss_of=loss_of,
        learning_rate=cosine(learning_rate, decay, rounds),
        network=lambda head: (task.params, head),
        privacy=privacy,
    )
