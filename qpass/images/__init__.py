"""Images by the thousand, read in batches: from files, from data sets, or drawn from a model."""

from qpass.images.contract import First, Images, Pictures, cut
from qpass.images.drawn import DrawnImages, OriginalImages
from qpass.images.open import open_images

__all__ = ["DrawnImages", "First", "Images", "OriginalImages", "Pictures", "cut", "open_images"]
