"""The front door for a shell: ``d3m``. One file a group of commands; importing them adds them to the program."""

from d3m_assets.cli.app import app, main
from d3m_assets.cli.bundles import export, inspect, lineage, regenerate, verify
from d3m_assets.cli.first_steps import doctor, init
from d3m_assets.cli.foundation import foundation_card, foundation_train
from d3m_assets.cli.pipeline import distill, metrics, plan, prune, status
from d3m_assets.cli.web import ui

__all__ = [
    "app",
    "distill",
    "doctor",
    "export",
    "foundation_card",
    "foundation_train",
    "init",
    "inspect",
    "lineage",
    "main",
    "metrics",
    "plan",
    "prune",
    "regenerate",
    "status",
    "ui",
    "verify",
]
