"""A grid without processes: the ClientApp answers every message here and now."""

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from deltamask_jax.flower.client import app

RUN = {"config": "quickstart", "changes": "", "workdir": "", "deadline": 60.0, "patience": 0.0}


class Nodes:
    """Flower's `Grid`, as far as the server uses it.

    Args:
        clients: one node of each; node 100 + k is client k's.
        run: the run config.

    Attributes:
        contexts: what each node keeps, {node: Context}; without its entry a node is offline.
        silent: nodes that do not answer.
        broken: nodes whose program raises.
        sent: (node, message) of every message.
    """

    def __init__(self, clients: int, run: dict):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # as in a run's processes
        self.run, self.contexts = run, {}
        self.silent, self.broken, self.sent, self._replies = set(), set(), [], {}
        for client in range(clients):
            self.start(100 + client, client)

    def start(self, node: int, client: int) -> None:
        self.contexts[node] = Context(1, node, {"partition-id": client}, RecordDict(), self.run)

    def get_node_ids(self):
        return list(self.contexts)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            ids.append(f"message {len(self.sent)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.sent.append((node, message))
            if node in self.broken:
                error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "ValueError:\nno luck")
                self._replies[ids[-1]] = Message(error, reply_to=message)
            elif node not in self.silent and node in self.contexts:
                self._replies[ids[-1]] = app(message, self.contexts[node])
        return ids

    def pull_messages(self, ids):
        return [self._replies.pop(name) for name in ids if name in self._replies]
