"""What several tests share: tiny real models, recipes, servers, processes."""

from pathlib import Path


ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
RECIPES = ROOT / "recipes"
