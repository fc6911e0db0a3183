"""What a data set and a network start from, by content: changed is what holds other bytes, whatever its time.

The plans name these contents, and both orchestrators go by the plans: so one list serves both.
"""

from pathlib import Path
from typing import Any

from fsd.experiment.params import Params
from fsd.experiment.schema import Network
from fsd.files import fingerprint

DATA = Path("data")  # hashes of sources and initial weights are remembered there


def of_source(params: Params, dataset: str) -> str | None:
    """Fingerprint of a data set's source; None where it is drawn, or its source is not here."""
    source = params.datasets[dataset].data.source
    return fingerprint(Path(source), DATA) if source else None


def of_initial_weights(network: Network) -> str | None:
    """Fingerprint of the weights that a network starts from; None without any, or where they are not here."""
    return fingerprint(Path(network.init.weights), DATA) if network.init else None


def contents(**found: str | None) -> dict[str, Any]:
    """As a plan holds them: nothing where there is nothing."""
    known = {name: value for name, value in found.items() if value is not None}
    return {"contents": known} if known else {}


def changed(params: Params, dataset: str) -> str | None:
    """One sentence where a data set's source holds other bytes than when it was prepared; else None.

    None also where that cannot be told: it is not prepared, or its source is not here any more.
    """
    from fsd.data import store

    now, then = of_source(params, dataset), store.prepared_from(DATA, dataset)
    if now is None or then is None or now == then:
        return None
    source = params.datasets[dataset].data.source
    return (
        f"{source} has changed since {dataset} was prepared: run `fsd prepare --dataset {dataset}`"
    )
