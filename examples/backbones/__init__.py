"""Flow models behind one interface."""

from quiet import without_torchvision_notices

without_torchvision_notices()
