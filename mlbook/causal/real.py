"""Real data that packages carry: experiments with people, molecules, networks that
experts drew, logs of recommendations."""

import gzip
import io
import warnings
from collections.abc import Callable
from functools import partial

import networkx as nx
import pandas as pd

from mlbook.common import packaged

CAUSALDATA, CDT, OBP = "causaldata==0.1.4", "cdt==0.6.0", "obp==0.4.1"
DIGESTS = {
    "nsw_mixtape.dta": "e4a64e4436c2c178f47d6c82a371d20f1596b82b44862ce24bf13c71ac797339",
    "cps_mixtape.dta": "1345a61d4f4f6ab84abd475906a86671b969b278a8ef0e96d8e8ba8e3c3556e1",
    "titanic.dta": "1479bc495af72b848f6acf444b69390dac9a3c7621de1107d082ba63e586f659",
    "card.csv.bz2": "10181955c6486c2b7c05c0f48e374c34f0990f58a6a8c51d68a01cd21a92d61a",
    "cyto_full_data.csv": "fc331dcd0bc1d8765986b88cd1d23dd5a3f52e4ffc299fdf96de9d522ddf01aa",
    "cyto_full_target.csv": "398bc137b2669432ef12e0c57d3783fa876c1c7e2377577d3e75410f085485f6",
    "random/all/all.csv": "7168295b6e0a9eabcf3392320a5dd434e542b68e705d5cd9491499af589812f1",
    "bts/all/all.csv": "0ad874e4dbf6902f0845dd478ad8dde5ef6903583d3ffaace78411bdad064106",
    "random/men/men.csv": "ede6d08c6877f99cd3770f7d09e26c738e6aa6de4445ccccfb1356ba5d06b1eb",
    "random/women/women.csv": "e65f3bd3beb17664fa69cc129bf7bf852a775f8ffa630506e505fc905315bb34",
    "bts/men/men.csv": "db6d1f7ed2d591ba521533e45286d4c1fba7fe57a8ad2e80342210335f43c527",
    "bts/women/women.csv": "e5d1b49a39b608585a2f3014a3f54970430cd37a495c1b73fceb85cdf428a5b8",
}
# Rows of each experiment of Sachs et al., in the order of their supplement: the file is
# the nine tables one below the other (the chapter looks for the seams in the data).
CONDITIONS = {
    "none": 853,
    "ICAM-2": 902,
    "Akt inhibitor": 911,
    "G0076": 723,
    "psitectorigenin": 810,
    "U0126": 799,
    "LY294002": 848,
    "PMA": 913,
    "β2cAMP": 707,
}


def _read(name: str, package: str, read: Callable, **how) -> pd.DataFrame:
    data = packaged.check(packaged.file(name, package), DIGESTS[name])
    return read(io.BytesIO(data), **how)


def lalonde() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The NSW experiment (445 men, Dehejia & Wahba's sample) and 15,992 men of the
    Current Population Survey, with the same columns: treat, age, educ, black, hisp,
    marr, nodegree, re74, re75, re78 (earnings in dollars)."""
    files = ("nsw_mixtape.dta", "cps_mixtape.dta")
    return tuple(
        _read(name, CAUSALDATA, pd.read_stata).drop(columns="data_id").astype(float)
        for name in files
    )


def titanic() -> pd.DataFrame:
    """The 2,201 people on board: class ("crew" among them), age, sex, survived."""
    return _read("titanic.dta", CAUSALDATA, pd.read_stata).astype(str)


def card() -> pd.DataFrame:
    """3,010 men of the US survey of young men, 1976: log wage, years of schooling, and
    whether they grew up near a college (Card 1995)."""
    return _read("card.csv.bz2", "linearmodels==7.1", pd.read_csv, compression="bz2")


def sachs() -> tuple[pd.DataFrame, pd.Series, nx.DiGraph]:
    """7,466 cells, eleven proteins of each (Sachs et al. 2005); the experiment that
    each cell was in; the 18 arrows that the package gives as known."""
    table = _read("cyto_full_data.csv", CDT, pd.read_csv)
    condition = pd.Series(
        [name for name, rows in CONDITIONS.items() for _ in range(rows)],
        name="condition",
    )
    graph = nx.DiGraph()
    graph.add_nodes_from(table.columns)
    graph.add_edges_from(_read("cyto_full_target.csv", CDT, pd.read_csv).to_numpy())
    return table, condition, graph


def bandit(policy: str, campaign: str = "all") -> pd.DataFrame:
    """10,000 rows of the Open Bandit data: which item was shown in which place, with
    what chance, and whether it was clicked (Saito et al. 2021).

    Args:
        policy: that chose: "random", or "bts" (Bernoulli Thompson sampling).
        campaign: "all" (80 items), "men" (34) or "women" (46).
    Raises:
        ValueError: there is no log of that name.
    """
    name = f"{policy}/{campaign}/{campaign}.csv"
    if name not in DIGESTS:
        raise ValueError(f"no log of policy {policy!r} in campaign {campaign!r}")
    table = _read(name, OBP, pd.read_csv, index_col=0)
    return table[["item_id", "position", "click", "propensity_score"]]


def network(name: str):
    """A Bayesian network that pgmpy carries: "asia", "child", "insurance", "alarm", ...

    Returns:
        pgmpy's model, with `.edges`, `.nodes` and `.simulate(n)`.
    Raises:
        FileNotFoundError: it has none of that name.
    """
    with warnings.catch_warnings():  # of its own parts that will move
        warnings.simplefilter("ignore", FutureWarning)
        import pgmpy.estimators  # noqa: F401
        from pgmpy.readwrite import BIFReader

    path = packaged.file(f"example_models/{name}.bif.gz", "pgmpy==1.1.2")
    return BIFReader(string=gzip.decompress(path.read_bytes()).decode()).get_model()


def network_graph(model) -> nx.DiGraph:
    """The graph of a network, without its tables."""
    graph = nx.DiGraph()
    graph.add_nodes_from(model.nodes)
    graph.add_edges_from(model.edges)
    return graph


def chance_if_done(network, do: dict, then: dict, given: str) -> float:
    """P(then | do), back-door adjustment for `given` in a network's own tables.

    Args:
        network: of pgmpy, discrete; do, then: variable → its value.
    """
    from pgmpy.inference import VariableElimination  # slow to import

    ask = partial(VariableElimination(network).query, show_progress=False)
    prior, (name,) = ask([given]), then
    chances = [
        ask([name], evidence=do | {given: value}).get_value(**then)
        for value in prior.state_names[given]
    ]
    return float(prior.values @ chances)
