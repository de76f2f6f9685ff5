"""Causal graphs, models, discovery and effects, on networkx's graphs and pandas's
tables."""

from mlbook.causal.additive import anm_direction, cam
from mlbook.causal.constraint import pc
from mlbook.causal.effects import (
    adjust,
    doubly_robust,
    front_door,
    icp,
    match,
    possible_effects,
    two_stage,
)
from mlbook.causal.generative import cgnn, cgnn_pair
from mlbook.causal.graphs import (
    adjustment_sets,
    cpdag,
    d_separated,
    markov_equivalent,
    shd,
)
from mlbook.causal.independence import hsic
from mlbook.causal.lingam import direct_lingam, ica_lingam
from mlbook.causal.pairs import igci, pair_lingam, quantile_score
from mlbook.causal.scm import graph_of, simulate
from mlbook.causal.scores import exact, notears
from mlbook.causal.series import granger, mci

__all__ = [
    "adjust",
    "adjustment_sets",
    "anm_direction",
    "cam",
    "cgnn",
    "cgnn_pair",
    "cpdag",
    "d_separated",
    "direct_lingam",
    "doubly_robust",
    "exact",
    "front_door",
    "granger",
    "graph_of",
    "hsic",
    "ica_lingam",
    "icp",
    "igci",
    "markov_equivalent",
    "match",
    "mci",
    "notears",
    "pair_lingam",
    "pc",
    "possible_effects",
    "quantile_score",
    "shd",
    "simulate",
    "two_stage",
]
