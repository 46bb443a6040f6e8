"""A process that helps another one with its run (``model.peers``): it computes, and neither reads nor writes files."""

from advrbd.method.perturbation import pushing
from advrbd.model.helping import Job, serve
from advrbd.model.inference import answering
from advrbd.model.peers import joined
from advrbd.model.training import learning

JOBS: dict[str, Job] = {"train": learning, "infer": answering, "push": pushing}


def help_the_leader() -> None:
    """Do what the leader of the processes that torchrun started hands out, until its end.

    Raises ``PeerLostError`` where that comes without a word, ``DeviceError`` where the device here can't do it.
    """
    with joined() as peers:
        serve(peers, JOBS)
