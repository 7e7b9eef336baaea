"""Small reference networks in plain torch."""

from .blocks import BasicBlock as BasicBlock
from .blocks import Bottleneck as Bottleneck
from .characters import CharLSTM as CharLSTM
from .characters import CharTransformer as CharTransformer
from .mlp import mlp as mlp
from .registry import check as check
from .registry import get as get
from .registry import names as names
from .resnet import ResNet as ResNet
from .resnet import resnet18 as resnet18
from .resnet import resnet20 as resnet20
from .resnet import resnet34 as resnet34
from .resnet import resnet50 as resnet50
from .resnet import resnet56 as resnet56
from .vgg import VGG as VGG
from .vgg import vgg11 as vgg11
