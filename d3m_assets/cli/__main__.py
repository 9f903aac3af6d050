"""``python -m d3m_assets.cli``."""

from d3m_assets.cli import main

main()
