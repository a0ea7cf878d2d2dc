"""Looking through saved scores in a browser: filter, sort, see samples, and decide about them."""

from diffin.explore.explorer import Explorer, explore
from diffin.explore.marks import Marks

__all__ = ["Explorer", "Marks", "explore"]
