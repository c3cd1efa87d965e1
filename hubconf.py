"""For `torch.hub`: every system by its name, and `create_model`.

    torch.hub.load("OWNER/REPOSITORY", "tanet", backbone="resnet50", num_classes=174)

Arguments are those of `tam_triton.nets.create_model`.
"""

from functools import partial as _partial
from functools import update_wrapper as _named

from tam_triton.nets import create_model
from tam_triton.nets import list_models as _list_models

dependencies = ["torch", "torchvision"]

for _name in _list_models():
    globals()[_name] = _named(_partial(create_model, _name), create_model)
